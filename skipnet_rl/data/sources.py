"""Load a split of a data set by its name.

`rendered-digits` is drawn by `skipnet_rl.data.digits` and needs no download. The others are read by
`skipnet_rl.data.official` through torchvision:

- `cifar10`, `cifar100`: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
- `svhn`: Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", 2011
  (cropped digits, without the easier "extra" images).
- `imagenet`: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015; the
  test split here is the official validation set, whose labels are public.
- `imagefolder`: your own images as train/<class>/<file>, val/<class>/<file> and test/<class>/<file>. Without
  val/ (or valid/, validation/) a tenth of train/ is held out; without test/, val/ is the test split.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from skipnet_rl.data import places
from skipnet_rl.data.images import Images
from skipnet_rl.data.imageset import ImageSet
from skipnet_rl.data.places import data_folder
from skipnet_rl.device import cpu_by_default
from skipnet_rl.errors import DataNotFoundError, unknown_name

DATASETS = ("rendered-digits", "cifar10", "cifar100", "svhn", "imagenet", "imagefolder")
BY_CLASS = ("imagenet", "imagefolder")  # data sets whose images are sorted by class
HALVES = ("calibration", "selection")  # halves of the validation images
SPLITS = ("train", "val", "test", *HALVES)
VALIDATION_SHARE = 10  # one training image in ten is held out
CIFAR10_FOLDER, _ = places.CIFAR["cifar10"]


def resolve_dataset(
    name: str, data_dir: str | os.PathLike[str] | None = None, trained_on: str | None = None
) -> tuple[str, str]:
    """Turn `"auto"` into the name of a data set: that of the weights, or one in the data folder.

    In a folder that the user names, it is CIFAR-10 if it is there, else the only one there. Without such a
    folder it is CIFAR-10 if ./data has it, and `rendered-digits` otherwise.

    Args:
        name: `"auto"`, or the name of a data set.
        data_dir: the folder that the user names.
        trained_on: what the weights were trained on, if they say so. `"auto"` is this data set, unless the
            user names a folder without it; `rendered-digits` needs none.

    Returns:
        The name, and the reason in words; for an `imagefolder` with the folder of each split.

    Raises:
        ValueError: an unknown name; it lists the known ones and the nearest.
        DataNotFoundError: the folder that the user names is missing, or has no data set or several.
    """
    if name in DATASETS:
        return name, f"{name} (asked for by name{_splits(name, data_dir)})"
    if name != "auto":
        raise unknown_name("dataset", name, ("auto", *DATASETS))
    folder = data_folder(data_dir)
    found = places.datasets_in(folder)
    chosen = ["cifar10"] if "cifar10" in found else found
    named = places.is_given(data_dir)
    if trained_on in DATASETS and (trained_on in (*found, "rendered-digits") or not named):
        splits = _splits(trained_on, data_dir) if trained_on in found else ""
        return trained_on, f"{trained_on} (that of the weights{splits})"
    if chosen == ["cifar10"] or (named and len(chosen) == 1):
        return chosen[0], f"{chosen[0]} (found in {folder}{_splits(chosen[0], data_dir)})"
    if not named:
        return "rendered-digits", (
            f"rendered-digits (embedded; no {CIFAR10_FOLDER} in {folder}: choose cifar10 with download to "
            "fetch it)"
        )
    held = f"holds {' and '.join(found)}" if found else f"holds no {CIFAR10_FOLDER} and no other data set"
    raise DataNotFoundError(
        f"no data set to choose: {folder} {held}; name the one that you mean (rendered-digits needs no "
        "folder)"
    )


def _splits(name: str, data_dir: str | os.PathLike[str] | None) -> str:
    """Folders that the splits come from, for an image folder."""
    if name != "imagefolder":
        return ""
    return f"; {places.describe_splits(places.dataset_folder(name, data_folder(data_dir, name)))}"


@cpu_by_default()
def load_images(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    size: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Images:
    """Load one split of a data set, on the CPU.

    `"val"` is a fixed tenth of the official training images, `"train"` the other nine tenths, `"test"` the
    official test set. In an `imagefolder` with validation images besides `test/`, `"val"` is these and
    `"train"` is all of train/; see `places.split_folders`. `"calibration"` and `"selection"` are the halves
    of `"val"`: a policy over a frozen network or on a chain is trained on the first and selected on the
    second. On the images that a network was trained on it is nearly always right, so that skips would seem
    to cost nothing. The validation and test images of `imagenet` and `imagefolder` come in a fixed random
    order, not class by class, so that the first ones stand for all.

    Args:
        name: one of `DATASETS`, or `"auto"`.
        split: one of `SPLITS`.
        data_dir: folder of the official files or its parent (default: $SKIPNET_DATA, else ./data).
        download: fetch missing files through torchvision.
        size: side of the square images in batches; None for no change.
        progress: called with the number of images drawn and their total while `rendered-digits` are drawn,
            which takes a minute the first time.

    Raises:
        ValueError: an unknown data set or split.
        DataNotFoundError: missing files.
        DataDamagedError: a file that does not have the official bytes.
    """
    name, _ = resolve_dataset(name, data_dir)
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    folder = data_folder(data_dir, name, download)
    part = "val" if split in HALVES else split
    own = _own_splits(name, part, folder)
    whole = _whole(name, part if part in own else "train", folder, download, progress)
    whole = whole if size is None else whole.sized(size)
    index = _chosen(len(whole), split, own, by_class=name in BY_CLASS)
    return whole if index is None else whole.subset(index, split)


def _own_splits(name: str, split: str, folder: Path) -> tuple[str, ...]:
    """Splits that have images of their own; warn if val/ serves as the test split."""
    if name != "imagefolder":
        return ("train", "test")
    found = places.split_folders(places.dataset_folder(name, folder))
    test = found.get("test")
    if split == "val" and test and test.name in places.VALIDATION:
        warnings.warn(
            f"{folder} has no test/, so {test.name}/ is its test split, and 'val' is a tenth of train/",
            stacklevel=3,
        )
    return ("train", "val", "test") if "val" in found else ("train", "test")


def _whole(
    name: str, source: str, folder: Path, download: bool, progress: Callable[[int, int], object] | None
) -> Images:
    """All images of one source: the training set, the test set or separate validation images.

    Imports what is needed to read them.
    """
    if name == "rendered-digits":
        return _digits(source, progress)
    from skipnet_rl.data.official import LOADERS

    return LOADERS[name](source, places.dataset_folder(name, folder), download)


def _chosen(size: int, split: str, own: tuple[str, ...], by_class: bool) -> Tensor | None:
    """Numbers of a split's images among the `size` images of their source; None for all as they are.

    Raises:
        DataNotFoundError: too few training images for a validation split.
    """
    part = "val" if split in HALVES else split
    if part in own and (part != "train" or "val" in own):
        index = torch.arange(size, device="cpu")
    else:
        index = _held_out(size, part)
        if part == "val" and not len(index):
            raise DataNotFoundError(
                f"{size} training images are too few to hold out one in {VALIDATION_SHARE} for validation; "
                "add images, or a folder val/"
            )
    shuffled = by_class and part != "train"  # so that the first ones are of every class
    if shuffled:
        index = index[_shuffled(len(index))]
    if split in HALVES:
        half = len(index) // 2
        index = index[:half] if split == "calibration" else index[half:]
    return None if part != "val" and len(index) == size and not shuffled else index


def _held_out(size: int, split: str) -> Tensor:
    order = _shuffled(size)
    held_out = size // VALIDATION_SHARE
    return order[:held_out].sort().values if split == "val" else order[held_out:].sort().values


def _shuffled(size: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator("cpu").manual_seed(0), device="cpu")


def _digits(source: str, progress: Callable[[int, int], object] | None) -> ImageSet:
    from skipnet_rl.data.digits import load_digits

    images, labels, factors = load_digits(source, progress=progress)
    return ImageSet(
        name="rendered-digits",
        split=source,
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels),
        classes=tuple("0123456789"),
        mean=(0.376, 0.376, 0.376),  # of the training images
        std=(0.202, 0.202, 0.202),
        flip=False,
        padding=2,  # more could move a neighbouring digit to the centre
        factors={factor: torch.from_numpy(values) for factor, values in factors.items()},
    )
