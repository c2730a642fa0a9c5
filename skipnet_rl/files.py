"""Files that are whole or not there: written beside their place, synced, then moved into it.

What differs between platforms is here and nowhere else. Windows syncs only what is open for writing, opens no
folder, lets nothing take the place of a folder or of a file that somebody has open, and has names of its own.
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

PAUSES = (0.01, 0.04, 0.16, 0.64)  # seconds between attempts to move what another program has open
NO_SYNC = {errno.EBADF, errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOTSUP}  # of folders, by file systems
NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*\x00-\x1f]')  # on Windows, and "/" everywhere


@contextmanager
def whole_file(path: Path, *, new: bool = False, shared: bool = False) -> Iterator[Path]:
    """Give the place beside a file to write to; at the end of the block it becomes the file.

    Of an error in the block nothing is left, neither the half file nor the folders that were made for it.

    Args:
        path: the file; its folder is made where there is none.
        new: make the file or refuse; of several processes exactly one makes it.
        shared: other processes may write the same file at the same time; the last one's stays.

    Raises:
        OSError: the file cannot be written; where the folder is why, before the block.
        FileExistsError: `new`, and the file is there.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder is where the file is to be", str(path))
    if in_the_way := next((folder for folder in path.parents if folder.is_file()), None):
        raise NotADirectoryError(errno.ENOTDIR, "a file is where a folder is to be", str(in_the_way))
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
        with suppress(OSError):  # what went wrong first is what to say
            beside.unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()
        raise
    sync(path.parent)


def write_text(path: Path, text: str, *, new: bool = False) -> None:
    """Write a file of text whole or not at all, in UTF-8 whatever the machine's encoding is."""
    with whole_file(path, new=new) as beside:
        beside.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; a folder only where that can be done."""
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
    """Rename a file, also onto another one, or a folder to where nothing is."""
    _patiently(os.replace, source, target)


def remove_folder(folder: Path) -> None:
    """Remove a folder and all that is in it, if it is there."""
    if folder.exists():
        _patiently(shutil.rmtree, folder)


def new_folder(folder: Path) -> Path:
    """Make a folder that was not there, in one step; where the name is taken, with -2, -3, … at its end."""
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
    """A text as one part of a path on any platform.

    >>> as_name("rooms:SkipResNet20-v0, 12:30")
    'rooms-SkipResNet20-v0, 12-30'
    """
    return NOT_IN_NAMES.sub("-", text).rstrip(". ")


def _create(source: Path, target: Path) -> None:
    """Move a file to where none is, in one step."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except (OSError, AttributeError):  # a file system or platform without hard links
        _create_without_links(source, target)
    with suppress(OSError):
        source.unlink()


def _create_without_links(source: Path, target: Path) -> None:
    """The same, but that a crash in the middle leaves half a file."""
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
    """Call; where another program has the file open for a moment, as virus scanners do, again."""
    for pause in PAUSES:
        try:
            call(*args)
        except PermissionError:
            time.sleep(pause)
        else:
            return
    call(*args)
