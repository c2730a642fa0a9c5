"""Thresholds and mixing weights of a chain, chosen for compute budgets on recorded answers.

A strong baseline for every policy that decides by the image: "defer where the margin is small" has two or
three numbers to choose. The next network is asked where the answer so far is less sure than a threshold. The
last threshold is exact: images are asked about in the order of their sureness until the budget is spent. What
comes before it (the weights, and the shares of the images that earlier networks are asked about) is searched
on a grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from skipnet_rl.belief import SURENESS, Threshold
from skipnet_rl.chain import mix_answers
from skipnet_rl.member import Answer
from skipnet_rl.recording import Records

ROUNDING = 1 + 1e-9  # rounding of the sum must not cost an image
WEIGHTS = (0.2, 0.3, 0.4)  # more candidates fit the noise of 5,000 images, and are worse on others
SHARES = tuple(1.1**-k for k in range(36))  # of all images, 1 to 0.035
FEW_WEIGHTS, FEW_SHARES = WEIGHTS[1:2], SHARES[::3]  # for chains of more than three networks


@dataclass(frozen=True)
class Tuned:
    """The best choice for a budget.

    Attributes:
        budget: largest mean FLOPs per image, over those of the last network.
        mix: weight of the answer so far at each decision, N.
        thresholds: of `Threshold`, N.
        by: its measure of sureness.
        accuracy, macs: means over the images that it was chosen on.
    """

    budget: float
    mix: tuple[float, ...]
    thresholds: tuple[float, ...]
    by: str
    accuracy: float
    macs: float

    def policy(self) -> Threshold:
        """The policy, for a process over `Chain.mixed(self.mix)`."""
        return Threshold(self.thresholds, self.by)


class Grid(NamedTuple):
    """Candidates at every decision: weights of the answer so far, shares of the images."""

    by: str
    weights: Sequence[float]
    shares: Sequence[float]


@dataclass(frozen=True)
class Path:
    """A partial choice of weights and thresholds: the answer so far and its cost."""

    answer: Answer
    mix: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()


def tune(
    records: Records,
    whole_macs: int,
    budgets: Sequence[float],
    *,
    by: str = "margin",
    weights: Sequence[float] | None = None,
    shares: Sequence[float] | None = None,
) -> list[Tuned]:
    """Find the most accurate thresholds and weights for each budget, on recorded images.

    Args:
        records: answers of n networks to validation images.
        whole_macs: MACs that a budget of 1 stands for, see `ChainMDP.whole_macs`.
        budgets: mean FLOPs per image as shares of it; no less than the first network's.
        by: the measure of sureness, see `Threshold`.
        weights: weights of the answer so far, tried at every decision (default: `WEIGHTS`, fewer in long
            chains).
        shares: shares of the images, tried at every decision but the last (default: `SHARES`, fewer in long
            chains).

    Returns:
        One choice per budget, in their order.

    Raises:
        ValueError: a budget below what the first network costs.
    """
    first, *between, last = [Answer(each[:, :-1], each[:, -1]) for each in records.answers.unbind(dim=1)]
    least = first.macs.mean().item() / whole_macs
    if min(budgets) * ROUNDING < least:
        raise ValueError(f"budget {min(budgets):g} is out of reach: the first network costs {least:.4f}")
    long = len(between) > 1
    grid = Grid(by, weights or (FEW_WEIGHTS if long else WEIGHTS), shares or (FEW_SHARES if long else SHARES))
    most = {budget: budget * ROUNDING * whole_macs for budget in budgets}
    best: dict[float, Tuned] = {}
    for path in _paths(Path(first), between, grid, max(most.values())):
        for tuned in _last(path, last, records.labels, grid, most):
            known = best.get(tuned.budget)
            if known is None or (tuned.accuracy, -tuned.macs) > (known.accuracy, -known.macs):
                best[tuned.budget] = tuned
    return [best[budget] for budget in budgets]


def threshold_for(sureness: Tensor, count: int) -> float:
    """The threshold with `count` images below it, halfway to the next one: sureness [M], ascending.

    If images tie there, none of them is below it.
    """
    if count == 0:
        return -math.inf
    if count == len(sureness):
        return math.inf
    return (sureness[count - 1].item() + sureness[count].item()) / 2


def _paths(path: Path, rest: Sequence[Answer], grid: Grid, most: float) -> Iterator[Path]:
    """Every choice for the decisions about the networks `rest` that costs at most `most` MACs per image."""
    if not rest:
        yield path
        return
    for longer in _continued(path, rest[0], grid):
        if longer.answer.macs.mean() <= most:
            yield from _paths(longer, rest[1:], grid, most)


def _continued(path: Path, found: Answer, grid: Grid) -> Iterator[Path]:
    """Continue a path: ask the next network about some of the images, or about none."""
    so_far, macs = path.answer
    sureness = SURENESS[grid.by](so_far)
    ascending = sureness.sort().values
    for share, weight in [(0.0, grid.weights[0]), *product(grid.shares, grid.weights)]:
        threshold = threshold_for(ascending, round(share * len(sureness)))
        asked = sureness < threshold
        mixed = torch.where(asked[:, None], mix_answers(so_far, found.log_probs, weight), so_far)
        answer = Answer(mixed, macs + asked * found.macs)
        yield Path(answer, (*path.mix, weight), (*path.thresholds, threshold))


def _last(
    path: Path, found: Answer, labels: Tensor, grid: Grid, most: Mapping[float, float]
) -> Iterator[Tuned]:
    """The best choice for the last decision at each weight and budget; `most` MACs per image for each."""
    so_far, macs = path.answer
    sureness, order = SURENESS[grid.by](so_far).sort(stable=True)
    costs = _sums(macs.mean(), found.macs[order])
    apart = torch.ones(len(costs), dtype=torch.bool, device=costs.device)
    apart[1:-1] = sureness[1:] > sureness[:-1]  # images that tie are asked about together
    right = so_far.argmax(dim=1) == labels
    for weight in grid.weights:
        mixed = mix_answers(so_far, found.log_probs, weight).argmax(dim=1) == labels
        accuracy = _sums(right.double().mean(), (mixed.double() - right.double())[order])
        for budget, macs_at_most in most.items():
            affordable = (apart & (costs <= macs_at_most)).nonzero()
            if len(affordable):
                count = int(affordable[-1])
                yield Tuned(
                    budget,
                    (*path.mix, weight),
                    (*path.thresholds, threshold_for(sureness, count)),
                    grid.by,
                    accuracy[count].item(),
                    costs[count].item(),
                )


def _sums(start: Tensor, added: Tensor) -> Tensor:
    """A mean over M images, as each in turn adds its part: [M] → [M + 1]."""
    return torch.cat([start[None], start + added.cumsum(0) / len(added)])
