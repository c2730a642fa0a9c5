"""Official data sets and image folders, read through torchvision.

A separate module because importing torchvision takes two seconds, which the embedded images do not need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import CIFAR10, CIFAR100, SVHN, ImageFolder, ImageNet
from torchvision.datasets.utils import check_integrity

from skipnet_rl.data.files import ImageFiles
from skipnet_rl.data.images import IMAGENET_STATISTICS, Images, Statistics
from skipnet_rl.data.imageset import ImageSet
from skipnet_rl.data.places import classes_in, is_image, split_folders
from skipnet_rl.errors import DataDamagedError, DataNotFoundError


def _cifar10(source: str, place: Path, download: bool) -> ImageSet:
    statistics = IMAGENET_STATISTICS  # as for published weights
    return _cifar(CIFAR10, "cifar10", source, place, download, statistics)


def _cifar100(source: str, place: Path, download: bool) -> ImageSet:
    statistics = Statistics((0.507, 0.487, 0.441), (0.267, 0.256, 0.276))  # of the training images
    return _cifar(CIFAR100, "cifar100", source, place, download, statistics)


def _cifar(
    kind: type[CIFAR10], name: str, source: str, place: Path, download: bool, statistics: Statistics
) -> ImageSet:
    if not download:
        meta = (kind.meta["filename"], kind.meta["md5"])
        _check_files(name, place, [*kind.train_list, *kind.test_list, meta])
    here = type(kind.__name__, (kind,), {"base_folder": place.name})  # the user may have renamed the folder
    root = str(place.parent)
    data = _read(name, place, lambda: here(root, train=source == "train", download=download))
    return ImageSet(
        name=name,
        split=source,
        images=torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(),
        labels=torch.tensor(data.targets, device="cpu"),
        classes=tuple(data.classes),
        flip=True,
        mean=statistics.mean,
        std=statistics.std,
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
        padding=2,  # more could move a neighbouring digit to the centre
    )


def _imagenet(source: str, folder: Path, download: bool) -> ImageFiles:
    folder = folder.absolute()  # files are read later, perhaps from another working directory
    data = _read("imagenet", folder, lambda: _ImageNet(folder, "val" if source == "test" else "train"))
    return _image_files("imagenet", source, data, [names[0] for names in data.classes])


def _imagefolder(source: str, folder: Path, download: bool) -> ImageFiles:
    folder = folder.absolute()  # files are read later, perhaps from another working directory
    place = split_folders(folder).get(source, folder / source)
    if not place.is_dir():
        others = " (nor val/, valid/ or validation/)" if source == "test" else ""
        raise DataNotFoundError(
            f"no {source} images: {place} is missing{others}; expected one folder per class in it"
        )
    data = _read("imagefolder", place, lambda: _ImageFolder(folder, place))
    return _image_files("imagefolder", source, data, data.classes)


class _Numbered:
    """Classes numbered as in the folder `numbering`, so that a label means the same in every split.

    A class is a folder with images; hidden folders and those of operating systems are ignored.
    """

    numbering: Path

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Names and numbers of the classes.

        Raises:
            DataNotFoundError: no folder has images.
            DataDamagedError: a class that `numbering` does not have, or only one class.
        """
        classes = classes_in(self.numbering)
        if not classes_in(Path(directory)):
            raise DataNotFoundError(f"no images: {directory} has none in the folders of its classes")
        if unknown := sorted({*classes_in(Path(directory))} - {*classes}):
            raise DataDamagedError(f"{directory}/{unknown[0]} is a class that {self.numbering} does not have")
        if len(classes) == 1:  # often one folder too many above the classes
            raise DataDamagedError(
                f"{self.numbering} has one class, {classes[0]!r}, so there is nothing to tell apart; "
                "expected one folder for each class in it"
            )
        return classes, {name: number for number, name in enumerate(classes)}

    def _as_in(self, folder: Path, place: Path) -> dict[str, Any]:
        """Number the classes as in train/, if it has any; return the arguments for torchvision."""
        train = folder / "train"
        self.numbering = train if classes_in(train) else place
        return {"is_valid_file": lambda path: is_image(path, str(place)), "allow_empty": True}


class _ImageFolder(_Numbered, ImageFolder):
    def __init__(self, folder: Path, place: Path) -> None:
        super().__init__(str(place), **self._as_in(folder, place))


class _ImageNet(_Numbered, ImageNet):
    def __init__(self, folder: Path, split: str) -> None:
        super().__init__(str(folder), split, **self._as_in(folder, folder / split))


def _image_files(name: str, source: str, data: ImageFolder, classes: list[str]) -> ImageFiles:
    paths, labels = zip(*data.samples, strict=True)
    return ImageFiles(
        name=name,
        split=source,
        paths=paths,
        labels=torch.tensor(labels, device="cpu"),
        classes=tuple(classes),
    )


LOADERS: dict[str, Callable[[str, Path, bool], Images]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "svhn": _svhn,
    "imagenet": _imagenet,
    "imagefolder": _imagefolder,
}


WHERE = "name its folder with data_dir (or $SKIPNET_DATA)"


def _read(name: str, folder: Path, read: Callable[[], Any]) -> Any:
    """Call torchvision and turn its errors into named ones."""
    try:
        return read()
    except ModuleNotFoundError as error:
        raise DataNotFoundError(f"{name} needs {error.name} to be read: pip install {error.name}") from error
    except DataNotFoundError:
        raise
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{name} in {folder} is incomplete: {error}") from error
    except KeyError as error:
        raise DataDamagedError(f"{name} in {folder} has a class {error}, which its meta.bin lacks") from error
    except RuntimeError as error:  # raised by torchvision for unexpected bytes
        raise DataDamagedError(f"{name} in {folder} could not be read: {error}") from error


def _check_files(name: str, folder: Path, files: Iterable[tuple[str, str]]) -> None:
    """Check that every file exists and has its official MD5, before anything reads it."""
    remedy = f"fetch it with download, or {WHERE}"
    if not folder.is_dir():
        raise DataNotFoundError(f"no {name}: {folder} is missing; {remedy}")
    for file, md5 in files:
        if not (folder / file).is_file():
            raise DataNotFoundError(f"{name} is incomplete: {folder / file} is missing; {remedy}")
        if not check_integrity(str(folder / file), md5):
            raise DataDamagedError(
                f"{folder / file} is damaged: its MD5 is not the official {md5}; delete it and {remedy}"
            )
