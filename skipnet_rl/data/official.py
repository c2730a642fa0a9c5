"""Data sets in files, official or your own, read through torchvision.

A module of its own because importing torchvision takes two seconds, which nobody should wait for who trains
on the embedded images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import CIFAR10, CIFAR100, SVHN, ImageFolder, ImageNet
from torchvision.datasets.folder import find_classes
from torchvision.datasets.utils import check_integrity

from skipnet_rl.data.files import ImageFiles
from skipnet_rl.data.images import Images
from skipnet_rl.data.imageset import ImageSet
from skipnet_rl.errors import DataDamagedError, DataNotFoundError

IMAGENET_STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


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
        labels=torch.tensor(data.targets, device="cpu"),
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
        labels=torch.tensor(labels, device="cpu"),
        classes=tuple(classes),
        **IMAGENET_STATISTICS,
    )


LOADERS: dict[str, Callable[[str, Path, bool], Images]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "svhn": _svhn,
    "imagenet": _imagenet,
    "imagefolder": _imagefolder,
}


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
