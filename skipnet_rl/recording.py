"""The answers of a chain's networks, computed once per image and replayed from then on.

An episode over records runs no network, so thresholds are tuned and policies learn in seconds. `Records` take
the place of the images, and a `Replayed` that of each network: it reads the network's answers from the
records. The process, its environments and its learners stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skipnet_rl.chain import Chain
from skipnet_rl.data import Images
from skipnet_rl.device import autocast
from skipnet_rl.evaluate import usual_batch_size
from skipnet_rl.member import Answer
from skipnet_rl.modules import evaluation_mode

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Records(Images):
    """The answers of a chain's networks to one split of a data set; an `Images` whose batches are answers.

    Attributes:
        source: the images.
        answers: [M, n, K + 1] float64: log-probabilities of each of the n networks, then its MACs.
    """

    source: Images
    answers: Tensor

    def __post_init__(self) -> None:
        """Take name, labels, classes and statistics from the images."""
        for name in ("name", "split", "labels", "classes", "mean", "std"):
            object.__setattr__(self, name, getattr(self.source, name))

    @property
    def correct(self) -> Tensor:
        """Whether each network by itself is right about each image: [M, n] bool."""
        return self.answers[:, :, :-1].argmax(dim=2) == self.labels[:, None]

    def to(self, device: torch.device | str) -> Self:
        """A copy on another device."""
        return replace(self, source=self.source.to(device), answers=self.answers.to(device))

    def subset(self, index: Tensor, split: str | None = None) -> Self:
        """The records of some of the images, in the order of `index`."""
        return replace(self, source=self.source.subset(index, split), answers=self.answers[index])

    def sized(self, size: int) -> Self:
        """Itself: the networks have seen the images in their own size."""
        return self

    def with_statistics(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Self:
        """Itself: the networks have seen the images as they were normalised."""
        return self

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Records [B, n, K + 1] and labels of `index` [B]."""
        index = self.placed(index)
        return self.answers[index], self.labels[index]

    def training_batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same, without augmentation: the answers are to the images as they are."""
        return self.batch(index)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """The image, for display: [H, W, 3] uint8."""
        return self.source.picture(index)


class Replayed(nn.Module):
    """Stand-in for a network of a chain, which reads the network's answers from the records.

    Args:
        number: number of the network in the chain.
        member: the network; its name, sizes and costs are kept.
    """

    dtype = torch.float32

    def __init__(self, number: int, member: Any) -> None:
        super().__init__()
        self.number, self.name = number, member.name
        self.num_classes, self.image_size, self.depth = member.num_classes, member.image_size, member.depth
        self.macs, self.whole_macs = member.macs, member.whole_macs

    def forward(self, records: Tensor) -> Answer:
        """The network's part of the records [B, n, K + 1]."""
        own = records[:, self.number]
        return Answer(own[:, :-1], own[:, -1])

    def for_inference(self, precision: str = "fp32") -> Replayed:
        """Itself: there is nothing to train."""
        return self


def replayed(chain: Chain) -> Chain:
    """The chain that plays `Records` of another one."""
    members = [Replayed(number, member) for number, member in enumerate(chain.members)]
    return Chain(members, chain.mix.tolist()).to(chain.mix.device)


@torch.no_grad()
def answers(chain: Chain, images: Tensor) -> Tensor:
    """Every network's answers to a batch [B, 3, H, W], as in `Records`: [B, n, K + 1]."""
    found: list[Answer] = [member(images) for member in chain.members]
    return torch.stack([torch.cat([each.log_probs, each.macs[:, None]], dim=1) for each in found], dim=1)


def record(
    chain: Chain,
    images: Images,
    *,
    precision: str = "fp32",
    batch_size: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Records:
    """Ask every network of a chain about every image, in evaluation mode.

    Args:
        chain: the networks; left as they are.
        images: a split, on their device.
        precision: `"fp32"` or `"bf16"`.
        batch_size: images at a time (default: that of `evaluate`).
        progress: called after each batch with the number of images done, and with M.

    Raises:
        ValueError: no images.
    """
    images.check_not_empty()
    batch_size = batch_size or usual_batch_size(images.device, chain.image_size)
    frozen, parts = chain.for_inference(), []
    with evaluation_mode(frozen):
        for number, (batch, _) in enumerate(images.batches(batch_size)):
            with autocast(precision, batch.device):
                parts.append(answers(frozen, batch))
            if progress:
                progress(min((number + 1) * batch_size, len(images)), len(images))
    return Records(images, torch.cat(parts))
