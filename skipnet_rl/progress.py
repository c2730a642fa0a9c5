"""Progress bars of the commands.

The library itself prints nothing: functions that take long have an argument `progress`, a callable that they
call as `progress(done, total)`, in images.
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
from skipnet_rl.distributed import leads
from skipnet_rl.terminal import bar_stream

DELAY = 1  # seconds before a bar appears; shorter work shows none


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """A tqdm bar, in the leader only; outside a terminal one line every 10 seconds ($TQDM_MININTERVAL)."""
    stream = bar_stream()
    if not stream.isatty():
        options |= {"position": 0, "leave": True}  # in a log every bar keeps its lines
        if "TQDM_MININTERVAL" not in os.environ:
            options["mininterval"] = 10
    return tqdm(items, dynamic_ncols=True, file=stream, disable=not leads(), **options)


@contextmanager
def image_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that counts images, for a `progress` argument; in a terminal it disappears at the end.

    Args:
        name: label of the bar, such as the name of a row.
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
    """`skipnet_rl.data.load_images`, with a progress bar while `rendered-digits` are drawn."""
    with image_progress("drawing rendered-digits") as show:
        return data.load_images(name, split, data_dir, download, size, progress=show)
