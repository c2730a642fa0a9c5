"""Find the files of a data set: the folder that a user names, the data sets in it, the splits.

No images are read here and torchvision is not imported, so that this takes no time.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from skipnet_rl.errors import DataDamagedError, DataNotFoundError

VARIABLE = "SKIPNET_DATA"
CIFAR = {  # torchvision's name of the folder, and a file that identifies it
    "cifar10": ("cifar-10-batches-py", "data_batch_1"),
    "cifar100": ("cifar-100-python", "train"),
}
SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")
VALIDATION = ("val", "valid", "validation")  # usual names of the folder of validation images
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
SPLIT_NAMES = ("train", "test", *VALIDATION)
# files and folders of operating systems, in lower case; names that begin with a dot are ignored, too
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
SYSTEM_FOLDERS = {
    "__macosx",
    "__pycache__",
    "@eadir",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}


def is_given(data_dir: str | os.PathLike[str] | None) -> bool:
    """Whether the user names a data folder, by argument or by $SKIPNET_DATA."""
    return data_dir is not None or bool(os.environ.get(VARIABLE))


def data_folder(data_dir: str | os.PathLike[str] | None, name: str = "data", download: bool = False) -> Path:
    """The data folder: `data_dir`, else $SKIPNET_DATA, else ./data, which need not exist.

    Args:
        data_dir: the folder that the user names.
        name: name of the data set, for the error.
        download: whether a missing folder will be created.

    Raises:
        DataNotFoundError: the folder that the user names does not exist.
        ValueError: `data_dir` is not a path.
    """
    if not is_given(data_dir):
        return Path("data")
    given, by = (os.environ[VARIABLE], f"${VARIABLE}") if data_dir is None else (data_dir, "data_dir")
    if not isinstance(given, (str, os.PathLike)) or str(given) == "":
        raise ValueError(f"{by} is {given!r}; expected the path of a folder")
    folder = Path(os.path.expanduser(given))
    if folder.is_dir() or (download and not folder.exists()):
        return folder
    found = "is not a folder" if folder.exists() else "is missing"
    raise DataNotFoundError(f"no {name}: {folder} {found}; correct {by} or leave it out")


def dataset_folder(name: str, folder: Path) -> Path:
    """The folder of a data set's files inside a data folder, whether or not it exists.

    `folder` may be that folder itself: `cifar-10-batches-py`, or the `train/` of an image folder.
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


def datasets_in(folder: Path) -> list[str]:
    """Names of the data sets in a folder."""
    found = [name for name in CIFAR if dataset_folder(name, folder).is_dir()]
    found += ["svhn"] if _has_svhn(dataset_folder("svhn", folder)) else []
    own = dataset_folder("imagefolder", folder)
    if (own / "meta.bin").is_file() or any(own.glob("ILSVRC2012_*.tar*")):
        return [*found, "imagenet"]
    classes = any(classes_in(own / split) for split in SPLIT_NAMES)
    return [*found, "imagefolder"] if classes else found


def _has_svhn(place: Path) -> bool:
    return any((place / file).is_file() for file in SVHN_FILES)


def is_users(name: str) -> bool:
    """Whether a file or folder is the user's: not hidden and not made by the operating system."""
    return not name.startswith(".") and name.lower() not in SYSTEM_FILES | SYSTEM_FOLDERS


def classes_in(folder: Path) -> list[str]:
    """Names of the folders that have at least one image, sorted; empty if `folder` does not exist."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        folders = [entry for entry in entries if is_users(entry.name) and entry.is_dir()]
    return sorted(entry.name for entry in folders if _has_image(entry.path))


def is_image(path: str, root: str) -> bool:
    """Whether a file below `root` is an image of the user, judged by its name."""
    inside = path.removeprefix(root).strip(os.sep).split(os.sep)
    return path.lower().endswith(ENDINGS) and all(map(is_users, inside))


def _has_image(folder: str) -> bool:
    deeper = []
    with os.scandir(folder) as entries:
        for entry in filter(lambda entry: is_users(entry.name), entries):
            if entry.is_dir():
                deeper.append(entry.path)
            elif entry.name.lower().endswith(ENDINGS):
                return True
    return any(map(_has_image, deeper))


def split_folders(folder: Path) -> dict[str, Path]:
    """The folder of each split of an image folder.

    The test split is `test/`, or else the folder of validation images. There is a `"val"` only if such a
    folder exists besides `test/`; otherwise validation images are held out of `train/`. A folder without
    classes, such as a `test/` of unlabelled images, is ignored.

    Raises:
        DataDamagedError: more than one folder of validation images.
    """
    own = [folder / name for name in VALIDATION if classes_in(folder / name)]
    if len(own) > 1:
        raise DataDamagedError(f"{own[0]} and {own[1]} may both be the validation images; keep one of them")
    found = {"train": folder / "train"} if (folder / "train").is_dir() else {}
    if classes_in(folder / "test"):
        return {**found, "test": folder / "test", **({"val": own[0]} if own else {})}
    return {**found, **({"test": own[0]} if own else {})}


def describe_splits(folder: Path) -> str:
    """Describe which folder each split comes from."""
    places = split_folders(folder)
    test = f"test from {places['test'].name}/" if "test" in places else "no test images"
    if "val" in places:
        return f"train from train/, val from {places['val'].name}/, {test}"
    return f"train and val from train/, nine tenths and one tenth of it, {test}"


def fingerprint(name: str, folder: Path) -> str:
    """Digest of the paths of a data set's files and, for those read into memory, their sizes and times.

    Images in single files are decoded each time, so their names are enough.
    """
    place, digest = dataset_folder(name, folder).resolve(), hashlib.sha256()
    if name == "rendered-digits":  # drawn, not read from files
        return ""
    roots = [place] if name in CIFAR or name == "svhn" else [place / split for split in SPLIT_NAMES]
    for root in roots:
        for at, folders, files in os.walk(root, followlinks=True):
            folders.sort()
            if name == "svhn":  # only these two files; the folder may have others
                folders.clear()
                files = [file for file in files if file in SVHN_FILES]
            digest.update(os.fsencode("\0".join([at, *sorted(files)])))
            for file in sorted(files) if root is place else ():
                about = os.stat(os.path.join(at, file))
                digest.update(f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}\0".encode())
    return digest.hexdigest()
