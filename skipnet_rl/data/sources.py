"""Where the images come from: names, files, splits.

`rendered-digits` is drawn by `skipnet_rl.data.digits`, nothing to download. The others are read by
`skipnet_rl.data.official`, through torchvision:

- `cifar10`, `cifar100`: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
- `svhn`: Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", 2011
  (the cropped digits; the easier "extra" images are left out).
- `imagenet`: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015; its test
  split here is the official validation set, the one with public labels.
- `imagefolder`: your own, as train/<class>/<file> and test/<class>/<file> (or val/ where there is no
  test/).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from skipnet_rl.data.images import Images
from skipnet_rl.data.imageset import ImageSet
from skipnet_rl.errors import unknown_name
from skipnet_rl.precision import cpu_by_default

DATASETS = ("rendered-digits", "cifar10", "cifar100", "svhn", "imagenet", "imagefolder")
SPLITS = ("train", "val", "test")
VALIDATION_SHARE = 10  # one training image in ten is held out
CIFAR10_FOLDER = "cifar-10-batches-py"  # torchvision's name for it


def data_folder(data_dir: str | Path | None) -> Path:
    """`data_dir`, else $SKIPNET_DATA, else ./data."""
    return Path(data_dir or os.environ.get("SKIPNET_DATA") or "data").expanduser()


def resolve_dataset(name: str, data_dir: str | Path | None = None) -> tuple[str, str]:
    """Turn `"auto"` into a data set.

    Returns:
        The name and the reason, fit for the first line that a program prints.

    Raises:
        ValueError: an unknown name; it lists the known ones and the nearest.
    """
    if name in DATASETS:
        return name, f"{name} (asked for by name)"
    if name != "auto":
        raise unknown_name("dataset", name, ("auto", *DATASETS))
    folder = data_folder(data_dir)
    if (folder / CIFAR10_FOLDER).is_dir():
        return "cifar10", f"cifar10 (found in {folder})"
    return "rendered-digits", (
        f"rendered-digits (embedded; no {CIFAR10_FOLDER} in {folder}, which --dataset cifar10 "
        "--download would fetch)"
    )


@cpu_by_default()
def load_images(
    name: str,
    split: str,
    data_dir: str | Path | None = None,
    download: bool = False,
    size: int | None = None,
) -> Images:
    """One split of a data set, on the CPU.

    `"val"` is a fixed tenth of the official training images, `"train"` the other nine, `"test"` the
    official test set.

    Args:
        name: one of `DATASETS`, or `"auto"`.
        split: `"train"`, `"val"` or `"test"`.
        data_dir: folder of the official files (else $SKIPNET_DATA, else ./data).
        download: fetch missing files through torchvision.
        size: side of the images that the network is made for; None: as they are.

    Raises:
        ValueError: an unknown data set or split.
        DataNotFoundError: files that are not there; it says where they were expected.
        DataDamagedError: a file that does not have the official bytes; it names the file.
    """
    name, _ = resolve_dataset(name, data_dir)
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    whole = _whole(name, "test" if split == "test" else "train", data_folder(data_dir), download)
    whole = whole if size is None else whole.sized(size)
    return whole if split == "test" else whole.subset(_held_out(len(whole), split), split)


def _whole(name: str, source: str, folder: Path, download: bool) -> Images:
    """All images of the official training or test set. What reading them takes is imported here."""
    if name == "rendered-digits":
        return _digits(source)
    from skipnet_rl.data.official import LOADERS

    return LOADERS[name](source, folder, download)


def _held_out(size: int, split: str) -> Tensor:
    order = torch.randperm(size, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    held_out = size // VALIDATION_SHARE
    return order[:held_out].sort().values if split == "val" else order[held_out:].sort().values


def _digits(source: str) -> ImageSet:
    from skipnet_rl.data.digits import load_digits

    images, labels, factors = load_digits(source)
    return ImageSet(
        name="rendered-digits",
        split=source,
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels),
        classes=tuple("0123456789"),
        mean=(0.376, 0.376, 0.376),  # of the training images
        std=(0.202, 0.202, 0.202),
        flip=False,
        padding=2,  # more could bring a neighbour to the centre
        factors={factor: torch.from_numpy(values) for factor, values in factors.items()},
    )
