"""A cascade: images of which one network is not sure are deferred to a second one, whose answer then counts.

IDK cascades: Wang, Luo, Crankshaw, Tumanov, Yu, Gonzalez, "IDK Cascades: Fast Deep Learning by Learning
not to Overthink", UAI 2018 (arXiv 1706.00885). Confidence is the largest probability. For a budget the
threshold is chosen on validation images, so that their mean cost is no more than the budget, up to ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skipnet_rl.statistics import wilson_interval

ROUNDING = 1 + 1e-9  # rounding of a sum must not cost an image


class Answers(NamedTuple):
    """Answers of a network to M images: `confidence` [M], `correct` [M] bool, and the `flops` [M] of each."""

    confidence: Tensor
    correct: Tensor
    flops: Tensor

    @property
    def accuracy(self) -> float:
        """Accuracy of the network alone."""
        return self.correct.double().mean().item()


def threshold_for(first: Answers, second: Answers, flops: float) -> float:
    """The confidence up to which images are deferred; images that tie at it are all deferred.

    Args:
        first, second: answers to the same M images.
        flops: mean cost per image, exceeded by ties alone.

    Returns:
        1 where the budget pays for all images, 0 where it pays for none.
    """
    ascending = first.confidence.argsort(stable=True)
    costs = first.flops.mean() + second.flops[ascending].cumsum(0) / len(ascending)
    count = int((costs <= flops * ROUNDING).sum())
    if count == len(ascending):
        return 1.0
    return first.confidence[ascending[count - 1]].item() if count else 0.0


def reach(first: Answers, second: Answers, whole: float) -> tuple[float, float]:
    """The least and the most that a cascade can cost, with nothing and with everything deferred.

    Both are mean FLOPs per image, as shares of `whole`.
    """
    least = first.flops.mean().item() / whole
    return least, least + second.flops.mean().item() / whole


def thresholds_for(
    first: Answers, second: Answers, whole: float, budgets: Sequence[float]
) -> dict[float, float]:
    """The threshold for each budget within `reach`, in ascending order.

    Args:
        first, second: answers to the same M validation images.
        whole: FLOPs that a budget of 1 stands for.
        budgets: shares of `whole`.
    """
    least, most = reach(first, second, whole)
    return {
        budget: threshold_for(first, second, budget * whole)
        for budget in sorted(budgets)
        if least <= budget <= most * ROUNDING
    }


def defer(first: Answers, second: Answers, threshold: float) -> tuple[Tensor, dict[str, Any]]:
    """Defer the images whose confidence is at most a threshold.

    Args:
        first, second: answers to the same M images.
        threshold: of the first network's confidence.

    Returns:
        Whether each image is right, [M] bool; and the share of images `deferred`, `mega_flops` per image, the
        `accuracy` and its interval [low, high] over images, and `random_accuracy`: the mean accuracy of
        deferring as many images at random.
    """
    deferred = first.confidence <= threshold
    correct = torch.where(deferred, second.correct, first.correct)
    share, accuracy = deferred.double().mean().item(), correct.double().mean().item()
    return correct, {
        "deferred": share,
        "mega_flops": 1e-6 * (first.flops + deferred * second.flops).mean().item(),
        "accuracy": accuracy,
        "accuracy_ci95": list(wilson_interval(int(correct.sum()), len(correct))),
        "random_accuracy": at_random(first, second, share).mean().item(),
    }


def at_random(first: Answers, second: Answers, share: float) -> Tensor:
    """Chance that each image [M] is right where a share of them is deferred at random."""
    return (1 - share) * first.correct.double() + share * second.correct.double()
