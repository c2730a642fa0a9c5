"""`rendered-digits`: house-number-like images that need no download, with known difficulty.

Ten classes, 32×32 RGB. Digits are drawn with the fonts that matplotlib ships, in random colours,
slanted and out of place, often with neighbours cut off by the edge, then darkened, washed out,
blurred and made noisy. Image k of a split depends on (split, k) alone: each random number is a hash
of (split, k, what it is for), so any part of the set can be drawn in any order. What makes an image
hard is drawn independently of all else and kept, so that a policy's behaviour can be held against it.

On another processor a value in 600,000 can be one level of 255 off, with NumPy 1.26 one in 36,000: NumPy's
float32 functions round by its version and the vector instructions that it finds.
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

from skipnet_rl.errors import unknown_name
from skipnet_rl.files import whole_file

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64], dict[str, NDArray[np.float32]]]

SIZES = {"train": 20_000, "test": 4_000}
VERSION = 1  # part of the cache file's name; raise it when a pixel changes

# factor: (easiest, hardest, exponent); value = easiest + (hardest - easiest) · u^exponent, u uniform.
# A high exponent makes most images easy and leaves a hard tail.
RANGES = {
    "brightness": (1.0, 0.25, 2.0),  # multiplies every pixel
    "contrast": (1.0, 0.2, 2.0),  # of digit against background, before brightness
    "blur": (0.0, 2.0, 2.0),  # standard deviation in pixels
    "noise": (0.0, 0.1, 3.0),  # standard deviation of a pixel, white is 1
    "rotation": (-25.0, 25.0, 1.0),  # degrees; hard at both ends
    "shear": (-0.3, 0.3, 1.0),  # sideways per unit of height; hard at both ends
    "scale": (27.0, 13.0, 1.0),  # height of the digit in pixels
    "distractors": (0.0, 2.0, 1.0),  # neighbouring digits: 0, 1 or 2
}
FACTORS = tuple(RANGES)

SIZE = 32
CHUNK = 500  # images at a time: temporaries stay in the cache
THREADS = 4
CELL, GLYPH = 56, 32  # a glyph's place in the atlas and its height there, in pixels
BLUR_RADIUS = 5
FONTS = (
    "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf", "STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf",
    "STIXGeneralBolIta.ttf", "cmr10.ttf", "cmss10.ttf", "cmtt10.ttf", "cmb10.ttf",
)  # fmt: skip


def render_digits(
    split: str,
    indices: NDArray[np.integer] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Arrays:
    """Draw some images of a split, or all of them.

    Args:
        split: `"train"` (20,000 images) or `"test"` (4,000).
        indices: which, [M]; None for all.
        progress: called after each part with the number of images drawn, and with M.

    Returns:
        images [M, 3, 32, 32] uint8, labels [M] int64, factors {name: [M] float32}.

    Raises:
        ValueError: an unknown split, or an index outside of it.
    """
    if split not in SIZES:
        raise unknown_name("split", split, SIZES)
    chosen = np.arange(SIZES[split]) if indices is None else np.asarray(indices)
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= SIZES[split]):
        raise ValueError(f"index outside of 0 … {SIZES[split] - 1} of split {split!r}")
    labels = _labels(split)[chosen]
    draws = _Draws(split, chosen)
    factors = {name: _factor(draws, name) for name in FACTORS}
    images = np.empty((len(chosen), 3, SIZE, SIZE), np.uint8)

    def draw(start: int) -> None:
        """One chunk, into its place."""
        part = slice(start, start + CHUNK)
        some = {name: values[part] for name, values in factors.items()}
        images[part] = _draw(_Draws(split, chosen[part]), labels[part], some)

    _atlas()  # before the threads, which would each make one
    with ThreadPoolExecutor(min(os.cpu_count() or 1, THREADS)) as threads:  # NumPy lets go of the interpreter
        for number, _ in enumerate(threads.map(draw, range(0, len(chosen), CHUNK)), start=1):
            if progress:
                progress(min(number * CHUNK, len(chosen)), len(chosen))
    return images, labels, factors


def load_digits(
    split: str, cache_dir: Path | None = None, progress: Callable[[int, int], object] | None = None
) -> Arrays:
    """All images of a split, drawn once and then read from the cache.

    The cache is `cache_dir`, else $SKIPNET_CACHE, else $XDG_CACHE_HOME/skipnet-rl, else
    ~/.cache/skipnet-rl; processes and users may share it. A file that is damaged, or holds other images,
    is drawn anew; a folder that cannot be written costs the drawing each time, and a warning. `progress` is
    told of the drawing, see `render_digits`.
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
        if _read(path, split) is None:  # else another process was faster, and Windows keeps what it has open
            warnings.warn(f"cannot cache the rendered digits in {path.parent}: {error}", stacklevel=2)
    return images, labels, factors


def default_cache() -> Path:
    """The user's cache folder."""
    if folder := os.environ.get("SKIPNET_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "skipnet-rl"


def _read(path: Path, split: str) -> Arrays | None:
    """What the cache holds; None where that is missing, damaged, or not this split."""
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
            factors = {name: file[name] for name in FACTORS}
    except Exception:  # NumPy and zipfile raise whatever damaged bytes bring about
        return None
    count = SIZES[split]
    fits = images.shape == (count, 3, SIZE, SIZE) and images.dtype == np.uint8
    fits = fits and all(values.shape == (count,) for values in factors.values())
    return (images, labels, factors) if fits and np.array_equal(labels, _labels(split)) else None


class _Draws:
    """Uniform random numbers of some images: pure functions of (split, index, purpose)."""

    def __init__(self, split: str, indices: NDArray[np.integer]) -> None:
        stream = np.uint64(list(SIZES).index(split) + 1)
        with np.errstate(over="ignore"):
            self.keys = _hash(indices.astype(np.uint64) + stream * np.uint64(0xD1B54A32D192ED03))

    def bits(self, purpose: str) -> NDArray[np.uint64]:
        """[M] of 64 random bits."""
        name = int.from_bytes(purpose.encode()[:8].ljust(8, b"\0"), "little")
        return _hash(self.keys ^ _hash(np.array([name], np.uint64)))

    def uniform(self, purpose: str, low: float = 0.0, high: float = 1.0) -> NDArray[np.float32]:
        """[M] in [low, high)."""
        unit = (self.bits(purpose) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
        return np.float32(low) + unit * np.float32(high - low)

    def pixels(self, purpose: str) -> NDArray[np.float32]:
        """[M, 3, 32, 32] in [0, 1): 21 bits of one hash for each channel of a pixel."""
        places = np.arange(SIZE * SIZE, dtype=np.uint64) * np.uint64(0x9FB21C651E98DF25)
        bits = _hash(self.bits(purpose)[:, None] ^ places)
        shifts = np.array([0, 21, 42], np.uint64)[:, None]
        parts = (bits[:, None, :] >> shifts) & np.uint64(2**21 - 1)
        return (parts.astype(np.float32) / np.float32(2**21)).reshape(-1, 3, SIZE, SIZE)


def _hash(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


@lru_cache
def _labels(split: str) -> NDArray[np.int64]:
    """Equally many of each class, in an order that says nothing."""
    order = np.argsort(_Draws(split, np.arange(SIZES[split])).bits("label"), kind="stable")
    labels = np.empty(SIZES[split], np.int64)
    labels[order] = np.arange(SIZES[split]) % 10
    return labels


def _factor(draws: _Draws, name: str) -> NDArray[np.float32]:
    easiest, hardest, exponent = RANGES[name]
    values = easiest + (hardest - easiest) * draws.uniform(name) ** np.float32(exponent)
    return np.round(values).astype(np.float32) if name == "distractors" else values.astype(np.float32)


def _draw(draws: _Draws, labels: NDArray[np.int64], factors: dict[str, NDArray[np.float32]]) -> NDArray:
    column = {name: values[:, None, None] for name, values in factors.items()}  # [B, 1, 1]
    ink = _blur(_ink(draws, labels, column), factors["blur"])[:, None]  # [B, 1, 32, 32]
    paper, pen = _colours(draws, factors["contrast"])
    image = paper[:, :, None, None] * (1 - ink) + pen[:, :, None, None] * ink
    image = (image + _shade(draws)[:, None]) * column["brightness"][:, None]
    image = image + (draws.pixels("noise px") - 0.5) * np.float32(12**0.5) * column["noise"][:, None]
    return (image.clip(0, 1) * 255 + np.float32(0.5)).astype(np.uint8)


def _ink(draws: _Draws, labels: NDArray[np.int64], factor: dict[str, NDArray]) -> NDArray[np.float32]:
    """Coverage of the digit and its neighbours: [B, 32, 32] in 0 … 1."""
    row, col = np.mgrid[:SIZE, :SIZE].astype(np.float32) - np.float32((SIZE - 1) / 2)
    y = row - draws.uniform("y", -2.5, 2.5)[:, None, None]
    x = col - draws.uniform("x", -2.5, 2.5)[:, None, None]
    angle = np.deg2rad(factor["rotation"])
    v = (np.cos(angle) * y - np.sin(angle) * x) / factor["scale"]  # in units of the digit's height
    u = (np.cos(angle) * x + np.sin(angle) * y) / factor["scale"] + factor["shear"] * v
    font = (draws.uniform("font") * len(FONTS)).astype(np.int64)
    ink = _sample(font, labels, u, v)
    first = np.where(draws.uniform("side") < 0.5, -1, 1)
    for number, side in enumerate((first, -first)):
        shown = np.flatnonzero(factor["distractors"][:, 0, 0] > number)
        digit = (draws.uniform(f"digit{number}") * 10).astype(np.int64)
        shift = (side * draws.uniform(f"shift{number}", 0.8, 1.0))[:, None, None].astype(np.float32)
        ink[shown] = np.maximum(ink[shown], _sample(font[shown], digit[shown], (u - shift)[shown], v[shown]))
    return ink


def _sample(font: NDArray, digit: NDArray, u: NDArray, v: NDArray) -> NDArray[np.float32]:
    """Bilinear look-up of glyphs [B] at places [B, 32, 32]; nothing outside of a glyph's cell."""
    limit = np.float32(CELL - 1.001)
    x = (u * GLYPH + CELL / 2 - 0.5).clip(0, limit)  # the atlas is empty along its cells' edges
    y = (v * GLYPH + CELL / 2 - 0.5).clip(0, limit)
    left, top = x.astype(np.int32), y.astype(np.int32)
    right_share, bottom_share = x - left, y - top
    cell = ((font * 10 + digit) * CELL * CELL).astype(np.int32)[:, None, None]
    corner = cell + top * CELL + left
    atlas = _atlas()
    upper = atlas[corner] * (1 - right_share) + atlas[corner + 1] * right_share
    lower = atlas[corner + CELL] * (1 - right_share) + atlas[corner + CELL + 1] * right_share
    return upper * (1 - bottom_share) + lower * bottom_share


@lru_cache
def _atlas() -> NDArray[np.float32]:
    """Coverage of each font's ten digits, centred and of one height: [fonts · 10 · CELL · CELL]."""
    import matplotlib
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    atlas = np.zeros((len(FONTS), 10, CELL, CELL), np.float32)
    for number, font in enumerate(FONTS):
        for digit in range(10):
            outline = TextPath((0, 0), str(digit), size=100, prop=FontProperties(fname=str(folder / font)))
            box = outline.get_extents()
            centred = Affine2D().translate(-(box.x0 + box.x1) / 2, -(box.y0 + box.y1) / 2)
            placed = centred.scale(GLYPH / box.height).translate(CELL / 2, CELL / 2)
            renderer = RendererAgg(CELL, CELL, 72)
            pen = renderer.new_gc()
            pen.set_linewidth(0)
            renderer.draw_path(pen, outline, placed, (1.0, 1.0, 1.0))
            atlas[number, digit] = np.asarray(renderer.buffer_rgba())[:, :, 3] / np.float32(255)
    return atlas.ravel()


def _blur(ink: NDArray[np.float32], sigma: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gaussian blur of each image [B, 32, 32] by its own sigma [B], in pixels."""
    offsets = np.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, dtype=np.float32)
    weights = np.exp(-0.5 * (offsets / np.maximum(sigma, np.float32(0.1))[:, None]) ** 2)
    weights = weights / weights.sum(axis=1, keepdims=True)
    for axis in (1, 2):
        pad = [(0, 0), (0, 0), (0, 0)]
        pad[axis] = (BLUR_RADIUS, BLUR_RADIUS)
        padded = np.pad(ink, pad, mode="edge")
        ink = np.zeros_like(ink)
        for place in range(len(offsets)):
            window = [slice(None)] * 3
            window[axis] = slice(place, place + SIZE)
            ink += padded[tuple(window)] * weights[:, place, None, None]
    return ink


def _colours(draws: _Draws, contrast: NDArray[np.float32]) -> tuple[NDArray, NDArray]:
    """Colours of background and digit, [B, 3] each; their distance shrinks with the contrast."""
    level = draws.uniform("level", 0.1, 0.9)
    away = np.where(level < 0.5, 1, -1) * draws.uniform("away", 0.4, 0.6)  # lightness of the digit
    tints = [draws.uniform(f"tint{i}", -0.25, 0.25) for i in range(6)]
    paper = level[:, None] + np.stack(tints[:3], axis=1) * np.float32(0.6)
    pen = (level + away)[:, None] + np.stack(tints[3:], axis=1) * np.float32(0.6)
    middle, half = (paper + pen) / 2, (pen - paper) / 2 * contrast[:, None]
    return (middle - half).astype(np.float32), (middle + half).astype(np.float32)


def _shade(draws: _Draws) -> NDArray[np.float32]:
    """A slow change of lightness across the image, [B, 32, 32]."""
    row, col = np.mgrid[:SIZE, :SIZE].astype(np.float32) / np.float32(SIZE) - np.float32(0.5)
    down, right = draws.uniform("shade y", -0.2, 0.2), draws.uniform("shade x", -0.2, 0.2)
    return row * down[:, None, None] + col * right[:, None, None]
