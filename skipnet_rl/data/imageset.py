"""Labelled images as one tensor on the device, with augmentation and the order of an epoch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from skipnet_rl.data.images import Images
from skipnet_rl.distributed import share, shared_generator
from skipnet_rl.randomness import Stream, for_images, step_generator


@dataclass(frozen=True)
class ImageSet(Images):
    """One split of a data set as one tensor on one device.

    Attributes:
        name, split: where the images come from.
        images: [M, 3, H, W] uint8, from 0 to 255.
        labels: [M] int64, from 0 to K - 1.
        classes: K class names.
        mean, std: of pixel values in 0 … 1, per channel.
        flip: whether mirroring keeps the class.
        padding: the largest shift in pixels, each way, that keeps the class.
        factors: difficulty factors [M] by name, if the data set has any.
        size: side of the square images in a batch, by bilinear interpolation; None for no interpolation.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool
    padding: int = 4
    factors: dict[str, Tensor] = field(default_factory=dict)
    size: int | None = None

    def __post_init__(self) -> None:
        """Raise a ValueError for images or labels of another type or shape, or for labels without a class."""
        images, labels = self.images, self.labels
        shaped = isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == 3
        if not shaped or images.dtype != torch.uint8:
            raise ValueError(
                f"images are {_words(images)}; expected a tensor [M, 3, H, W] of uint8, from 0 to 255"
            )
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels are {_words(labels)}; expected a tensor of int64, one for each of the "
                f"{len(images)} images"
            )
        # not read back from a GPU, on which labels arrive by `to`
        if len(labels) and labels.device.type == "cpu":
            least, most = (int(bound) for bound in labels.aminmax())
            if least < 0 or most >= len(self.classes):
                raise ValueError(
                    f"labels go from {least} to {most}; expected 0 to {len(self.classes) - 1} for "
                    f"{len(self.classes)} classes"
                )

    def to(self, device: torch.device | str) -> ImageSet:
        """The same images on another device."""
        factors = {name: values.to(device) for name, values in self.factors.items()}
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), factors=factors)

    def subset(self, index: Tensor, split: str | None = None) -> ImageSet:
        """Some of the images, in the order of `index`."""
        factors = {name: values[index] for name, values in self.factors.items()}
        return replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            factors=factors,
            split=split or self.split,
        )

    def sized(self, size: int) -> ImageSet:
        """The same images, interpolated in batches to squares of another size."""
        return replace(self, size=None if self.images.shape[-2:] == (size, size) else size)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images and labels of `index` [B], on any device."""
        index = self.placed(index)
        return self._resize(self.normalise(self.images[index])), self.labels[index]

    def training_batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same with a random crop of each image, and a random flip if that keeps the class."""
        index = self.placed(index)
        images = augment(self.images[index], generator, flip=self.flip, padding=self.padding)
        return self._resize(self.normalise(images)), self.labels[index]

    def picture(self, index: int) -> NDArray[np.uint8]:
        """One image as it is stored: [H, W, 3] uint8."""
        return self.images[index].permute(1, 2, 0).cpu().numpy()

    def _resize(self, images: Tensor) -> Tensor:
        if self.size is None:
            return images
        return F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)


def _words(value: object) -> str:
    """Type and shape of what came in place of a tensor."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def augment(images: Tensor, generator: torch.Generator, *, flip: bool, padding: int = 4) -> Tensor:
    """Shift and mirror each image at random, in one gather.

    Args:
        images: [B, C, H, W] uint8.
        generator: random generator on the images' device.
        flip: mirror each image with probability 1/2.
        padding: the largest shift in pixels; uncovered pixels are black, as usual for CIFAR.

    Returns:
        [B, C, H, W] uint8.
    """
    count, _, height, width = images.shape
    device = images.device

    def shifts(count: int) -> Tensor:
        """Row and column of each crop in its padded image: [2, count, 1]."""
        return torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator, device=device)

    def coins(count: int) -> Tensor:
        """Uniform in 0 … 1, [count, 1]."""
        return torch.rand((count, 1), generator=generator, device=device)

    offset = for_images(shifts, count, generator, dim=1)
    rows = offset[0] + torch.arange(height, device=device)  # [B, H]
    columns = offset[1] + torch.arange(width, device=device)  # [B, W]
    if flip:
        mirrored = for_images(coins, count, generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)  # [B, H+2p, W+2p, C]
    which = torch.arange(count, device=device).view(-1, 1, 1)
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def step_batch(data: Images, step: int, batch_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Augmented images and labels of training step `step`: of several processes, the share of this one.

    A pure function of its arguments, see `training_index` and `skipnet_rl.randomness`.
    """
    index = share(training_index(step, batch_size, len(data), seed))
    return data.training_batch(index, shared_generator(seed, step, data.device))


def training_index(step: int, batch_size: int, size: int, seed: int, stream: Stream = Stream.ORDER) -> Tensor:
    """Numbers of the images that training step `step` uses: [batch_size] on the CPU.

    A pure function of its arguments, so that a resumed run sees the same order without stored state. An epoch
    is a permutation of all `size` images; an incomplete last batch is dropped.

    Raises:
        ValueError: the batch is larger than the data set.
    """
    steps_per_epoch = size // batch_size
    if steps_per_epoch == 0:
        raise ValueError(f"batch size {batch_size} is larger than the {size} training images")
    epoch, position = divmod(step, steps_per_epoch)
    order = _order(epoch, size, seed, stream)
    return order[position * batch_size : (position + 1) * batch_size].clone()


@lru_cache(maxsize=4)  # for a million images it takes longer than a training step
def _order(epoch: int, size: int, seed: int, stream: Stream) -> Tensor:
    """The order of the images in an epoch: [size] on the CPU."""
    return torch.randperm(size, generator=step_generator(seed, epoch, "cpu", stream), device="cpu")
