"""Images that are decoded from their files when needed, for data sets too large for memory.

Augmentation and test-time crop are the usual ones of ImageNet, as for torchvision's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from skipnet_rl.data.images import IMAGENET_STATISTICS, Images
from skipnet_rl.data.pixels import open_image, read_image
from skipnet_rl.device import cpu_by_default
from skipnet_rl.forking import in_forked_child
from skipnet_rl.randomness import for_images, on_cpu

DECODERS = 8  # threads; Pillow's decoders release the GIL
RESIZE = 256 / 224  # short side before the central crop, relative to the crop
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of random crops (Szegedy et al. 2015)
# for networks whose images are at most this size, crops keep most of the image: what ImageNet's crops leave
# of it could not be recognised at so few pixels
SMALL, SMALL_AREA, SMALL_ASPECT = 64, (0.6, 1.0), (0.9, 1.1)


@dataclass(frozen=True)
class ImageFiles(Images):
    """One split of a data set whose images stay in their files.

    Attributes:
        name, split: where the images come from.
        paths: paths of the M files.
        labels: [M] int64.
        classes: K class names.
        mean, std: of pixel values in 0 … 1, per channel.
        size: side of the square images in a batch, in pixels.
    """

    name: str
    split: str
    paths: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, float, float] = IMAGENET_STATISTICS.mean
    std: tuple[float, float, float] = IMAGENET_STATISTICS.std
    size: int = 224

    def to(self, device: torch.device | str) -> ImageFiles:
        """The same images with batches on another device."""
        return replace(self, labels=self.labels.to(device))

    def subset(self, index: Tensor, split: str | None = None) -> ImageFiles:
        """Some of the images, in the order of `index`."""
        paths = tuple(self.paths[i] for i in index.tolist())
        return replace(self, paths=paths, labels=self.labels[index], split=split or self.split)

    def sized(self, size: int) -> ImageFiles:
        """The same images as squares of another size."""
        return replace(self, size=size)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised central crops [B, 3, size, size] and labels of `index` [B].

        Raises:
            DataDamagedError: a file cannot be read as an image, see `pixels.read_image`.
        """
        paths = [self.paths[i] for i in index.tolist()]
        return self._stack([partial(self._central, path) for path in paths]), self.labels[self.placed(index)]

    def training_batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same with a random resized crop and a random flip of each image, drawn on the CPU.

        Crops cover 8 to 100 % of the area at an aspect ratio of 3/4 to 4/3 (Szegedy et al. 2015); for images
        of up to 64 pixels 60 to 100 % at 0.9 to 1.1.
        """

        draws = on_cpu(generator)

        def numbers(count: int) -> Tensor:
            return torch.randint(2**62, (count,), generator=draws, device="cpu")

        seeds = for_images(numbers, len(index), generator).tolist()
        paths = [self.paths[i] for i in index.tolist()]
        boxes = [self._box(path, seed) for path, seed in zip(paths, seeds, strict=True)]
        crops = [partial(self._crop, path, *box) for path, box in zip(paths, boxes, strict=True)]
        return self._stack(crops), self.labels[self.placed(index)]

    def picture(self, index: int) -> NDArray[np.uint8]:
        """The central crop of one image: [size, size, 3] uint8."""
        return self._central(self.paths[index]).permute(1, 2, 0).numpy()

    @property
    def small(self) -> bool:
        """Whether images in a batch are small, so that crops keep more of them."""
        return self.size <= SMALL

    def _crops(self) -> tuple[list[float], list[float]]:
        """Ranges of the area and the aspect ratio of random crops."""
        area, aspect = (SMALL_AREA, SMALL_ASPECT) if self.small else (AREA, ASPECT)
        return list(area), list(aspect)

    def _stack(self, crops: Sequence[Callable[[], Tensor]]) -> Tensor:
        images = torch.stack(list(_decoders().map(lambda crop: crop(), crops)))
        if self.device.type == "cuda":
            images = images.pin_memory()  # else moving them waits for the GPU
        return self.normalise(images.to(self.device, non_blocking=True))

    def _central(self, path: str) -> Tensor:
        image = F.resize(read_image(path), [round(self.size * (1 if self.small else RESIZE))], antialias=True)
        return F.center_crop(image, [self.size, self.size])

    @cpu_by_default()  # RandomResizedCrop uses the default device
    def _box(self, path: str, seed: int) -> tuple[list[int], bool]:
        """Top, left, height and width of a random crop, and whether to mirror it."""
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.default_generator.manual_seed(seed)
            with open_image(path) as image:
                box = RandomResizedCrop.get_params(image, *self._crops())
            return list(box), torch.rand((), device="cpu").item() < 0.5

    def _crop(self, path: str, box: list[int], mirror: bool) -> Tensor:
        crop = F.resized_crop(read_image(path), *box, size=[self.size, self.size], antialias=True)
        return F.horizontal_flip(crop) if mirror else crop


@lru_cache(maxsize=1)
def _decoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")


in_forked_child(_decoders.cache_clear)  # the child has the pool but not its threads
