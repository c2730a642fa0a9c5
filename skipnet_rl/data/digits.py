"""`rendered-digits`: house-number-like images with known difficulty that need no download.

Ten classes, 32×32 RGB. Digits are drawn with the fonts that matplotlib ships: in random colours, slanted and
off centre, often with neighbours cut off by the edge, then darkened, reduced in contrast, blurred and made
noisy. Image k of a split depends only on (split, k): each random number is a hash of (split, k, purpose), so
any part of the set can be drawn in any order. Each difficulty factor is drawn independently and kept, so that
a policy's decisions can be compared with it.

On another processor one value in 600,000 differs by one level of 255, with NumPy 1.26 one in 36,000: how
NumPy rounds float32 functions depends on its version and on the processor's vector instructions.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnet_rl.data.drawing import SIZE, atlas, draw
from skipnet_rl.data.hashing import Draws
from skipnet_rl.errors import unknown_name
from skipnet_rl.files import whole_file

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64], dict[str, NDArray[np.float32]]]

SIZES = {"train": 20_000, "test": 4_000}
VERSION = 1  # part of the cache file's name; raise it when a pixel changes

# factor: (easiest, hardest, exponent); value = easiest + (hardest - easiest) · u^exponent, u uniform.
# A high exponent makes most images easy and leaves a tail of hard ones.
RANGES = {
    "brightness": (1.0, 0.25, 2.0),  # multiplies every pixel
    "contrast": (1.0, 0.2, 2.0),  # between digit and background, before brightness
    "blur": (0.0, 2.0, 2.0),  # standard deviation in pixels
    "noise": (0.0, 0.1, 3.0),  # standard deviation of a pixel, white is 1
    "rotation": (-25.0, 25.0, 1.0),  # degrees; hard at both ends
    "shear": (-0.3, 0.3, 1.0),  # sideways per unit of height; hard at both ends
    "scale": (27.0, 13.0, 1.0),  # height of the digit in pixels
    "distractors": (0.0, 2.0, 1.0),  # neighbouring digits: 0, 1 or 2
}
FACTORS = tuple(RANGES)

CHUNK = 500  # images at a time: temporaries fit the processor's cache
THREADS = 4


def render_digits(
    split: str,
    indices: NDArray[np.integer] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Arrays:
    """Draw some images of a split, or all of them.

    Args:
        split: `"train"` (20,000 images) or `"test"` (4,000).
        indices: numbers of the images, [M]; None for all.
        progress: called after each part with the number of images drawn and M.

    Returns:
        images [M, 3, 32, 32] uint8, labels [M] int64, factors {name: [M] float32}.

    Raises:
        ValueError: an unknown split, or an index outside it.
    """
    if split not in SIZES:
        raise unknown_name("split", split, SIZES)
    chosen = np.arange(SIZES[split]) if indices is None else np.asarray(indices)
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= SIZES[split]):
        raise ValueError(
            f"split {split!r} has the indices 0 … {SIZES[split] - 1}; got {chosen.min()} … {chosen.max()}"
        )
    labels = _labels(split)[chosen]
    draws = _draws(split, chosen)
    factors = {name: _factor(draws, name) for name in FACTORS}
    images = np.empty((len(chosen), 3, SIZE, SIZE), np.uint8)

    def draw_chunk(start: int) -> None:
        """Draw one chunk into its place."""
        part = slice(start, start + CHUNK)
        some = {name: values[part] for name, values in factors.items()}
        images[part] = draw(_draws(split, chosen[part]), labels[part], some)

    atlas()  # made once, before the threads need it
    with ThreadPoolExecutor(min(os.cpu_count() or 1, THREADS)) as threads:  # NumPy releases the GIL
        for number, _ in enumerate(threads.map(draw_chunk, range(0, len(chosen), CHUNK)), start=1):
            if progress:
                progress(min(number * CHUNK, len(chosen)), len(chosen))
    return images, labels, factors


def load_digits(
    split: str, cache_dir: Path | None = None, progress: Callable[[int, int], object] | None = None
) -> Arrays:
    """Read all images of a split from the cache; draw and store them if they are not there.

    The cache is `cache_dir`, else $SKIPNET_CACHE, else $XDG_CACHE_HOME/skipnet-rl, else
    ~/.cache/skipnet-rl. Processes and users may share it. A file that is damaged or holds other images is
    drawn again. If the folder cannot be written, the images are drawn each time, with a warning.
    `progress`: see `render_digits`.
    """
    if split not in SIZES:
        raise unknown_name("split", split, SIZES)
    path = (cache_dir or default_cache()) / f"rendered-digits-v{VERSION}-{split}.npz"
    if (stored := _read(path, split)) is not None:
        return stored
    images, labels, factors = render_digits(split, progress=progress)
    content: dict[str, Any] = {"images": images, "labels": labels, **factors}
    try:
        with whole_file(path, shared=True) as beside, beside.open("wb") as file:
            np.savez(file, **content)
    except OSError as error:
        if _read(path, split) is None:  # else another process was faster: Windows locks open files
            warnings.warn(f"cannot cache the rendered digits in {path.parent}: {error}", stacklevel=2)
    return images, labels, factors


def default_cache() -> Path:
    """The user's cache folder."""
    if folder := os.environ.get("SKIPNET_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "skipnet-rl"


def _read(path: Path, split: str) -> Arrays | None:
    """Content of the cache; None if it is missing, damaged or of another split."""
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
            factors = {name: file[name] for name in FACTORS}
    except Exception:  # damaged bytes make NumPy and zipfile raise anything
        return None
    count = SIZES[split]
    fits = images.shape == (count, 3, SIZE, SIZE) and images.dtype == np.uint8
    fits = fits and all(values.shape == (count,) for values in factors.values())
    return (images, labels, factors) if fits and np.array_equal(labels, _labels(split)) else None


def _draws(split: str, indices: NDArray[np.integer]) -> Draws:
    return Draws(list(SIZES).index(split) + 1, indices)


@lru_cache
def _labels(split: str) -> NDArray[np.int64]:
    """Class of each image: equally many of each, in random order."""
    order = np.argsort(_draws(split, np.arange(SIZES[split])).bits("label"), kind="stable")
    labels = np.empty(SIZES[split], np.int64)
    labels[order] = np.arange(SIZES[split]) % 10
    return labels


def _factor(draws: Draws, name: str) -> NDArray[np.float32]:
    easiest, hardest, exponent = RANGES[name]
    values = easiest + (hardest - easiest) * draws.uniform(name) ** np.float32(exponent)
    return np.round(values).astype(np.float32) if name == "distractors" else values.astype(np.float32)
