"""Where the images come from: names, files, splits.

`rendered-digits` is drawn by `skipnet_rl.data.digits`, nothing to download. The others are read
through torchvision from their official files:

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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, SVHN, ImageFolder, ImageNet
from torchvision.datasets.folder import find_classes
from torchvision.datasets.utils import check_integrity

from skipnet_rl.data.files import ImageFiles
from skipnet_rl.data.images import Images
from skipnet_rl.data.imageset import ImageSet
from skipnet_rl.errors import DataDamagedError, DataNotFoundError, unknown_name

SPLITS = ("train", "val", "test")
VALIDATION_SHARE = 10  # one training image in ten is held out
IMAGENET_STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


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
    whole = LOADERS[name]("test" if split == "test" else "train", data_folder(data_dir), download)
    whole = whole if size is None else whole.sized(size)
    return whole if split == "test" else whole.subset(_held_out(len(whole), split), split)


def _held_out(size: int, split: str) -> Tensor:
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    held_out = size // VALIDATION_SHARE
    return order[:held_out].sort().values if split == "val" else order[held_out:].sort().values


def _digits(source: str, folder: Path, download: bool) -> ImageSet:
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
    return _cifar(CIFAR10, "cifar10", source, folder, download, IMAGENET_STATISTICS)  # as published weights


def _cifar100(source: str, folder: Path, download: bool) -> ImageSet:
    statistics = {"mean": (0.507, 0.487, 0.441), "std": (0.267, 0.256, 0.276)}  # of the training images
    return _cifar(CIFAR100, "cifar100", source, folder, download, statistics)


def _cifar(
    kind: type[CIFAR10], name: str, source: str, folder: Path, download: bool,
    statistics: dict[str, tuple[float, float, float]],
) -> ImageSet:  # fmt: skip
    place = folder / kind.base_folder
    if not download:
        meta = (kind.meta["filename"], kind.meta["md5"])
        _check_files(name, place, [*kind.train_list, *kind.test_list, meta])
    data = _read(name, folder, lambda: kind(str(folder), train=source == "train", download=download))
    return ImageSet(
        name=name,
        split=source,
        images=torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(),
        labels=torch.tensor(data.targets),
        classes=tuple(data.classes),
        flip=True,
        **statistics,
    )


def _svhn(source: str, folder: Path, download: bool) -> ImageSet:
    if not download:
        _, file, md5 = SVHN.split_list[source]
        _check_files("svhn", folder, [(file, md5)])
    data = _read("svhn", folder, lambda: SVHN(str(folder), split=source, download=download))
    return ImageSet(
        name="svhn",
        split=source,
        images=torch.from_numpy(data.data).contiguous(),
        labels=torch.from_numpy(data.labels),
        classes=tuple("0123456789"),
        mean=(0.438, 0.444, 0.473),  # of the training images
        std=(0.198, 0.201, 0.197),
        flip=False,
        padding=2,  # more could bring a neighbour to the centre
    )


def _imagenet(source: str, folder: Path, download: bool) -> ImageFiles:
    if not folder.is_dir():
        raise DataNotFoundError(f"no ImageNet: {folder} is missing; say where it is with --data-dir")
    data = _read("imagenet", folder, lambda: ImageNet(str(folder), "val" if source == "test" else "train"))
    return _image_files("imagenet", source, data, [names[0] for names in data.classes])


def _imagefolder(source: str, folder: Path, download: bool) -> ImageFiles:
    place = folder / source
    if source == "test" and not place.is_dir():
        place = folder / "val"
    if not place.is_dir():
        raise DataNotFoundError(
            f"no {source} images: {folder / source} is missing; expected one folder per class in it"
        )
    numbering = folder / "train" if (folder / "train").is_dir() else place
    data = _read("imagefolder", place, lambda: _NumberedAs(numbering, place))
    return _image_files("imagefolder", source, data, data.classes)


class _NumberedAs(ImageFolder):
    """Classes numbered as in another folder, so that a label means the same in every split."""

    def __init__(self, numbering: Path, root: Path) -> None:
        self.numbering = numbering
        super().__init__(str(root), allow_empty=root != numbering)  # a test split need not have every class

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Names and numbers of the classes.

        Raises:
            DataDamagedError: a class that the other folder does not have.
        """
        classes, numbers = find_classes(str(self.numbering))
        if unknown := sorted(set(find_classes(str(directory))[0]) - set(classes)):
            raise DataDamagedError(f"{directory}/{unknown[0]} is a class that {self.numbering} does not have")
        return classes, numbers


def _image_files(name: str, source: str, data: ImageFolder, classes: list[str]) -> ImageFiles:
    if not data.samples:
        raise DataNotFoundError(f"no {source} images: {data.root} has none in the folders of its classes")
    paths, labels = zip(*data.samples, strict=True)
    return ImageFiles(
        name=name,
        split=source,
        paths=paths,
        labels=torch.tensor(labels),
        classes=tuple(classes),
        **IMAGENET_STATISTICS,
    )


LOADERS: dict[str, Callable[[str, Path, bool], Images]] = {
    "rendered-digits": _digits,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "svhn": _svhn,
    "imagenet": _imagenet,
    "imagefolder": _imagefolder,
}
DATASETS = tuple(LOADERS)


def _read(name: str, folder: Path, read: Callable[[], Any]) -> Any:
    """Call torchvision, and say in this project's words what went wrong."""
    try:
        return read()
    except ModuleNotFoundError as error:
        raise DataNotFoundError(f"{name} needs {error.name} to be read: pip install {error.name}") from error
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{name} in {folder} is incomplete: {error}") from error
    except RuntimeError as error:  # torchvision's answer to other bytes
        raise DataDamagedError(f"{name} in {folder} could not be read: {error}") from error


def _check_files(name: str, folder: Path, files: Iterable[tuple[str, str]]) -> None:
    """Every file is there and has its official MD5, before anything reads it."""
    remedy = "pass --download to fetch it, or --data-dir (or $SKIPNET_DATA) to say where it is"
    if not folder.is_dir():
        raise DataNotFoundError(f"no {name}: {folder} is missing; {remedy}")
    for file, md5 in files:
        if not (folder / file).is_file():
            raise DataNotFoundError(f"{name} is incomplete: {folder / file} is missing; {remedy}")
        if not check_integrity(str(folder / file), md5):
            raise DataDamagedError(
                f"{folder / file} is damaged: its MD5 is not the official {md5}; delete it and {remedy}"
            )
