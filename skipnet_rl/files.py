"""Atomic file writes: a file is written next to its destination, synced, then moved into place.

All differences between platforms are here. Windows syncs only files that are open for writing, cannot open
folders, does not replace a folder or a file that is open, and reserves characters in names.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PAUSES = (0.01, 0.04, 0.16, 0.64)  # seconds between attempts to move a file that another program has open
# raised by file systems that cannot sync a folder
NO_SYNC = {errno.EBADF, errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOTSUP}
NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*\x00-\x1f]')  # on Windows, and "/" everywhere


@contextmanager
def whole_file(path: Path, *, new: bool = False, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to a file; at the end of the block it becomes the file.

    If the block raises, neither the partial file nor folders made for it are left behind.

    Args:
        path: the file; its folder is created if missing.
        new: create the file or fail; of several processes exactly one succeeds.
        shared: other processes may write the same file at the same time; the last one wins.

    Raises:
        OSError: the file cannot be written; raised before the block if the folder is the reason.
        FileExistsError: `new` is set and the file exists.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "there is a folder of that name", str(path))
    if in_the_way := next((folder for folder in path.parents if folder.is_file()), None):
        raise NotADirectoryError(errno.ENOTDIR, "there is a file where a folder is needed", str(in_the_way))
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    own = f".{secrets.token_hex(4)}" if new or shared else ""
    beside = path.with_name(f"{path.name}{own}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        yield beside
        sync(beside)
        (_create if new else move)(beside, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            beside.unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()
        raise
    sync(path.parent)


def write_text(path: Path, text: str, *, new: bool = False) -> None:
    """Write a text file atomically, in UTF-8 whatever the machine's encoding."""
    with whole_file(path, new=new) as beside:
        beside.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk; folders only where the platform can."""
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    except PermissionError:
        if is_folder:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (is_folder and error.errno in NO_SYNC):
            raise
    finally:
        os.close(descriptor)


def move(source: Path, target: Path) -> None:
    """Rename a file, replacing the target, or a folder whose target does not exist."""
    _patiently(os.replace, source, target)


def remove_folder(folder: Path) -> None:
    """Remove a folder and its content, if it exists."""
    if folder.exists():
        _patiently(shutil.rmtree, folder)


def new_folder(folder: Path) -> Path:
    """Create a new folder atomically; if the name is taken, -2, -3, … is appended."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        chosen = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            chosen.mkdir()
        except FileExistsError:
            number += 1
        else:
            return chosen


def as_name(text: str) -> str:
    """Turn a text into a valid file name on any platform.

    >>> as_name("rooms:SkipResNet20-v0, 12:30")
    'rooms-SkipResNet20-v0, 12-30'
    """
    return NOT_IN_NAMES.sub("-", text).rstrip(". ")


def _create(source: Path, target: Path) -> None:
    """Move a file atomically to a path that must not exist."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except (OSError, AttributeError):  # a file system or platform without hard links
        _create_without_links(source, target)
    with suppress(OSError):
        source.unlink()


def _create_without_links(source: Path, target: Path) -> None:
    """Do the same, except that a crash in the middle leaves a partial file."""
    with target.open("xb") as file:
        try:
            file.write(source.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                target.unlink()
            raise


def _patiently(call: Callable[..., object], *args: Path) -> None:
    """Call, and retry while another program, such as a virus scanner, has the file open."""
    for pause in PAUSES:
        try:
            call(*args)
        except PermissionError:
            time.sleep(pause)
        else:
            return
    call(*args)
