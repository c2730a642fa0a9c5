"""Where the files of a data set lie: the folder that a user names, what it holds, its splits.

Nothing is read here and torchvision is not imported, so that asking costs no time.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from skipnet_rl.errors import DataDamagedError, DataNotFoundError

VARIABLE = "SKIPNET_DATA"
CIFAR = {  # torchvision's name of the folder, and a file that no other folder has
    "cifar10": ("cifar-10-batches-py", "data_batch_1"),
    "cifar100": ("cifar-100-python", "train"),
}
SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")
VALIDATION = ("val", "valid", "validation")  # names that people give to a folder of validation images
ENDINGS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".ppm",
    ".bmp",
    ".pgm",
    ".tif",
    ".tiff",
    ".webp",
)  # as torchvision has them
SPLIT_NAMES = ("train", "test", *VALIDATION)
NOBODYS = {  # what systems leave behind, in lower case; names that begin with a dot go, too
    "__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found",
    "thumbs.db", "desktop.ini",
}  # fmt: skip


def is_named(data_dir: str | os.PathLike[str] | None) -> bool:
    """Whether the user says where the data are, by argument or by $SKIPNET_DATA."""
    return data_dir is not None or bool(os.environ.get(VARIABLE))


def data_folder(data_dir: str | os.PathLike[str] | None, name: str = "data", download: bool = False) -> Path:
    """`data_dir`, else $SKIPNET_DATA, else ./data, which alone need not exist.

    Args:
        data_dir: what the user says.
        name: what is looked for, for the error.
        download: a folder that is missing will be made.

    Raises:
        DataNotFoundError: the folder that the user names is not there.
        ValueError: `data_dir` is no path.
    """
    if not is_named(data_dir):
        return Path("data")
    given, by = (os.environ[VARIABLE], f"${VARIABLE}") if data_dir is None else (data_dir, "data_dir")
    if not isinstance(given, (str, os.PathLike)) or str(given) == "":
        raise ValueError(f"{by} is {given!r}; expected the path of a folder")
    folder = Path(os.path.expanduser(given))
    if folder.is_dir() or (download and not folder.exists()):
        return folder
    found = "is no folder" if folder.exists() else "is missing"
    raise DataNotFoundError(f"no {name}: {folder} {found}; {by} names it, so correct that or leave it out")


def place_of(name: str, folder: Path) -> Path:
    """The folder that has a data set's files, or where they are expected.

    `folder` may be that folder itself: `cifar-10-batches-py`, or the `train/` of images of one's own.
    """
    here = folder.absolute()
    if name in CIFAR:
        usual, file = CIFAR[name]
        itself = usual in (here.name, here.resolve().name) or (here / file).is_file()
        return here if itself and not (folder / usual).is_dir() else folder / usual
    if name == "svhn":
        below = (folder / child for child in ("svhn", "SVHN"))
        return next((place for place in (folder, *below) if _has_svhn(place)), folder)
    if here.name in SPLIT_NAMES and not any((here / split).is_dir() for split in SPLIT_NAMES):
        return here.parent if (here.parent / "train").is_dir() else folder
    return folder


def found_in(folder: Path) -> list[str]:
    """Names of the data sets whose files a folder has."""
    found = [name for name in CIFAR if place_of(name, folder).is_dir()]
    found += ["svhn"] if _has_svhn(place_of("svhn", folder)) else []
    own = place_of("imagefolder", folder)
    if (own / "meta.bin").is_file() or any(own.glob("ILSVRC2012_*.tar*")):
        return [*found, "imagenet"]
    classes = any(classes_in(own / split) for split in SPLIT_NAMES)
    return [*found, "imagefolder"] if classes else found


def _has_svhn(place: Path) -> bool:
    return any((place / file).is_file() for file in SVHN_FILES)


def is_somebodys(name: str) -> bool:
    """Whether a file or folder was made on purpose: not hidden, and nothing that a system leaves behind."""
    return not name.startswith(".") and name.lower() not in NOBODYS


def classes_in(folder: Path) -> list[str]:
    """Names of the folders with at least one image in it, sorted; none where the folder is missing."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        folders = [entry for entry in entries if is_somebodys(entry.name) and entry.is_dir()]
    return sorted(entry.name for entry in folders if _has_image(entry.path))


def is_image(path: str, root: str) -> bool:
    """Whether a file below `root` is an image that somebody put there, by its name."""
    inside = path.removeprefix(root).strip(os.sep).split(os.sep)
    return path.lower().endswith(ENDINGS) and all(map(is_somebodys, inside))


def _has_image(folder: str) -> bool:
    deeper = []
    with os.scandir(folder) as entries:
        for entry in filter(lambda entry: is_somebodys(entry.name), entries):
            if entry.is_dir():
                deeper.append(entry.path)
            elif entry.name.lower().endswith(ENDINGS):
                return True
    return any(map(_has_image, deeper))


def split_folders(folder: Path) -> dict[str, Path]:
    """The folder of each split of images of one's own.

    `test/` is the test split, else the folder of validation images is. There is a `"val"` only where they
    have a folder beside `test/`; elsewhere they are held out of `train/`. A folder without classes, such as
    a `test/` whose images have no labels, counts as none.

    Raises:
        DataDamagedError: several folders of validation images.
    """
    own = [folder / name for name in VALIDATION if classes_in(folder / name)]
    if len(own) > 1:
        raise DataDamagedError(f"{own[0]} and {own[1]} may both be the validation images; keep one of them")
    found = {"train": folder / "train"} if (folder / "train").is_dir() else {}
    if classes_in(folder / "test"):
        return {**found, "test": folder / "test", **({"val": own[0]} if own else {})}
    return {**found, **({"test": own[0]} if own else {})}


def describe_splits(folder: Path) -> str:
    """Which folder serves which split, in words."""
    places = split_folders(folder)
    test = f"test from {places['test'].name}/" if "test" in places else "no test images"
    if "val" in places:
        return f"train from train/, val from {places['val'].name}/, {test}"
    return f"train and val from train/, nine tenths and one tenth of it, {test}"


def fingerprint(name: str, folder: Path) -> str:
    """Digest of where a data set's files lie, what they are called and, of those read at once, their times.

    Images in single files are decoded anew each time, so their names are enough.
    """
    place, digest = place_of(name, folder).resolve(), hashlib.sha256()
    if name == "rendered-digits":  # which has no files
        return ""
    roots = [place] if name in CIFAR or name == "svhn" else [place / split for split in SPLIT_NAMES]
    for root in roots:
        for at, folders, files in os.walk(root, followlinks=True):
            folders.sort()
            if name == "svhn":  # two files, among whatever else the folder has
                folders.clear()
                files = [file for file in files if file in SVHN_FILES]
            digest.update(os.fsencode("\0".join([at, *sorted(files)])))
            for file in sorted(files) if root is place else ():
                about = os.stat(os.path.join(at, file))
                digest.update(f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}\0".encode())
    return digest.hexdigest()
