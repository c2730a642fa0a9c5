"""Where the images come from: names, files, splits.

`cifar10`: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, read through
torchvision. `rendered-digits`: drawn by `skipnet_rl.data.digits`, nothing to download.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from skipnet_rl.data.imageset import ImageSet
from skipnet_rl.errors import DataDamagedError, DataNotFoundError, unknown_name

DATASETS = ("rendered-digits", "cifar10")
SPLITS = ("train", "val", "test")
VALIDATION_SHARE = 10  # one training image in ten is held out

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


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
    if (folder / CIFAR10.base_folder).is_dir():
        return "cifar10", f"cifar10 (found in {folder})"
    return "rendered-digits", (
        f"rendered-digits (embedded; no {CIFAR10.base_folder} in {folder}, which --dataset cifar10 "
        "--download would fetch)"
    )


def load_images(
    name: str, split: str, data_dir: str | Path | None = None, download: bool = False
) -> ImageSet:
    """One split of a data set, on the CPU.

    `"val"` is a fixed tenth of the official training images, `"train"` the other nine, `"test"` the
    official test set.

    Raises:
        ValueError: an unknown data set or split.
        DataNotFoundError: files that are not there; it says where they were expected.
        DataDamagedError: a file that does not have the official bytes; it names the file.
    """
    name, _ = resolve_dataset(name, data_dir)
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    source = "test" if split == "test" else "train"
    whole = _cifar10(source, data_folder(data_dir), download) if name == "cifar10" else _digits(source)
    if split == "test":
        return whole
    return whole.subset(_held_out(len(whole), split), split)


def _held_out(size: int, split: str) -> Tensor:
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    held_out = size // VALIDATION_SHARE
    return order[:held_out].sort().values if split == "val" else order[held_out:].sort().values


def _digits(source: str) -> ImageSet:
    from skipnet_rl.data.digits import load_digits  # imports matplotlib's fonts: only where needed

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


def _cifar10(source: str, folder: Path, download: bool) -> ImageSet:
    if not download:
        _check_cifar10(folder / CIFAR10.base_folder)
    try:
        data = CIFAR10(str(folder), train=source == "train", download=download)
    except RuntimeError as error:  # torchvision's answer to a download with other bytes
        raise DataDamagedError(f"CIFAR-10 in {folder} could not be read: {error}") from error
    return ImageSet(
        name="cifar10",
        split=source,
        images=torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(),
        labels=torch.tensor(data.targets),
        classes=CIFAR10_CLASSES,
        mean=(0.485, 0.456, 0.406),  # ImageNet's: what published CIFAR weights commonly expect
        std=(0.229, 0.224, 0.225),
        flip=True,
    )


def _check_cifar10(folder: Path) -> None:
    remedy = "pass --download to fetch it, or --data-dir (or $SKIPNET_DATA) to say where it is"
    if not folder.is_dir():
        raise DataNotFoundError(f"no CIFAR-10 in {folder.parent}: {folder} is missing; {remedy}")
    files = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    for file, md5 in files:
        if not (folder / file).is_file():
            raise DataNotFoundError(f"CIFAR-10 is incomplete: {folder / file} is missing; {remedy}")
        if not check_integrity(str(folder / file), md5):
            raise DataDamagedError(
                f"{folder / file} is damaged: its MD5 is not the official {md5}; delete it and {remedy}"
            )
