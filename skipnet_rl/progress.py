"""Progress bars of the commands. The library itself is silent: what takes long takes a callable.

Such a callable, `progress(done, total)`, is told after each part how many images are done, and of how many.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from skipnet_rl import data
from skipnet_rl.data import Images
from skipnet_rl.terminal import bar_stream

DELAY = 1  # seconds before images have a bar: what is done by then needs none


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """tqdm's bar; in a job's log, which is no terminal, a line every 10 seconds ($TQDM_MININTERVAL)."""
    stream = bar_stream()
    if not stream.isatty():
        options |= {"position": 0, "leave": True}  # a log's lines stay, and no bar moves up from another
        if "TQDM_MININTERVAL" not in os.environ:
            options["mininterval"] = 10
    return tqdm(items, dynamic_ncols=True, file=stream, **options)


@contextmanager
def image_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that counts images, for a `progress` argument. In a terminal it goes when its images are done.

    Args:
        name: of what is being done, such as a row of the table.
    """
    with progress_bar(desc=name, unit="image", delay=DELAY, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def load_images(
    name: str,
    split: str,
    data_dir: str | Path | None = None,
    download: bool = False,
    size: int | None = None,
) -> Images:
    """`skipnet_rl.data.load_images`, with a bar where `rendered-digits` have to be drawn first."""
    with image_progress("drawing rendered-digits") as show:
        return data.load_images(name, split, data_dir, download, size, progress=show)
