"""Interface of labelled images, in memory or in files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self


Channels = tuple[float, float, float]  # red, green and blue


class Statistics(NamedTuple):
    """Mean and standard deviation of pixel values in 0 … 1."""

    mean: Channels
    std: Channels


IMAGENET_STATISTICS = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Images(ABC):
    """One split of a data set: M images of K classes.

    Attributes:
        name, split: where the images come from.
        labels: [M] int64, on the device of the batches.
        classes: K class names.
        mean, std: of pixel values in 0 … 1, per channel.
    """

    name: str
    split: str
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """The same images on another device."""

    @abstractmethod
    def subset(self, index: Tensor, split: str | None = None) -> Self:
        """Some of the images, in the order of `index`."""

    @abstractmethod
    def sized(self, size: int) -> Self:
        """The same images as squares of another size."""

    @abstractmethod
    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [B, 3, H, W] and labels [B] of `index` [B].

        The index may be on any device, best on the CPU: images in files are looked up by its numbers there,
        and images in memory send it to where they are.
        """

    @abstractmethod
    def training_batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same, each image augmented at random."""

    @abstractmethod
    def picture(self, index: int) -> NDArray[np.uint8]:
        """One image for display: [H, W, 3] uint8."""

    def __len__(self) -> int:
        """Number of images, M."""
        return len(self.labels)

    def check_not_empty(self) -> None:
        """Raise a ValueError if there are no images."""
        if len(self) == 0:
            raise ValueError(f"{self.name} {self.split} has no images; expected at least one")

    def class_name(self, number: int) -> str:
        """Name of a label or prediction; its number if the data set has no such class."""
        return self.classes[number] if number < len(self.classes) else str(number)

    @property
    def device(self) -> torch.device:
        """Device of the batches."""
        return self.labels.device

    @property
    def statistics(self) -> Statistics:
        """Mean and standard deviation that batches are normalised with."""
        return Statistics(self.mean, self.std)

    def with_statistics(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Self:
        """The same images, normalised with another mean and standard deviation per channel."""
        return replace(self, mean=mean, std=std)  # type: ignore[type-var]

    def placed(self, index: Tensor) -> Tensor:
        """`index` [B] on the device of the batches, without waiting for a GPU."""
        return index.to(self.device, non_blocking=True)

    def first(self, count: int) -> Self:
        """The first `count` images, or all if there are fewer."""
        return self.subset(torch.arange(min(count, len(self)), device=self.device))

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over all images in order; the last batch may be smaller."""
        for index in torch.arange(len(self), device="cpu").split(batch_size):
            yield self.batch(index)

    def normalise(self, images: Tensor) -> Tensor:
        """Scale to 0 … 1 and normalise per channel: [B, 3, H, W] uint8 → float32, channels-last."""
        statistics = torch.tensor((self.mean, self.std), device="cpu").view(2, 3, 1, 1)
        mean, std = statistics.to(images.device, non_blocking=True)
        return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
