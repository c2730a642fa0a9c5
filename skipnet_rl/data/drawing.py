"""Draw the images of `rendered-digits`, see `skipnet_rl.data.digits`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skipnet_rl.data.hashing import Draws

SIZE = 32  # side of an image in pixels
CELL, GLYPH = 56, 32  # side of a glyph's cell in the atlas and height of the glyph, in pixels
BLUR_RADIUS = 5
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
    "STIXGeneralBolIta.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
    "cmb10.ttf",
)


def draw(
    draws: Draws, labels: NDArray[np.int64], factors: dict[str, NDArray[np.float32]]
) -> NDArray[np.uint8]:
    """Draw a batch of images.

    Args:
        draws: random numbers of the B images.
        labels: digits [B].
        factors: difficulty factors by name, [B] each.

    Returns:
        [B, 3, 32, 32] uint8.
    """
    column = {name: values[:, None, None] for name, values in factors.items()}  # [B, 1, 1]
    ink = _blur(ink_of(draws, labels, column), factors["blur"])[:, None]  # [B, 1, 32, 32]
    paper, pen = _colours(draws, factors["contrast"])
    image = paper[:, :, None, None] * (1 - ink) + pen[:, :, None, None] * ink
    image = (image + _shade(draws)[:, None]) * column["brightness"][:, None]
    image = image + (draws.pixels("noise px", SIZE) - 0.5) * np.float32(12**0.5) * column["noise"][:, None]
    return (image.clip(0, 1) * 255 + np.float32(0.5)).astype(np.uint8)


def ink_of(draws: Draws, labels: NDArray[np.int64], factor: dict[str, NDArray]) -> NDArray[np.float32]:
    """Coverage of the digit and its neighbours: [B, 32, 32] in 0 … 1; factors are [B, 1, 1]."""
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
    """Bilinear look-up of glyphs [B] at positions [B, 32, 32]; zero outside a glyph's cell."""
    limit = np.float32(CELL - 1.001)
    x = (u * GLYPH + CELL / 2 - 0.5).clip(0, limit)  # the atlas is empty along its cells' edges
    y = (v * GLYPH + CELL / 2 - 0.5).clip(0, limit)
    left, top = x.astype(np.int32), y.astype(np.int32)
    right_share, bottom_share = x - left, y - top
    cell = ((font * 10 + digit) * CELL * CELL).astype(np.int32)[:, None, None]
    corner = cell + top * CELL + left
    glyphs = atlas()
    upper = glyphs[corner] * (1 - right_share) + glyphs[corner + 1] * right_share
    lower = glyphs[corner + CELL] * (1 - right_share) + glyphs[corner + CELL + 1] * right_share
    return upper * (1 - bottom_share) + lower * bottom_share


@lru_cache
def atlas() -> NDArray[np.float32]:
    """Coverage of each font's ten digits, centred and scaled to one height: [fonts · 10 · CELL · CELL]."""
    import matplotlib
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    glyphs = np.zeros((len(FONTS), 10, CELL, CELL), np.float32)
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
            glyphs[number, digit] = np.asarray(renderer.buffer_rgba())[:, :, 3] / np.float32(255)
    return glyphs.ravel()


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


def _colours(draws: Draws, contrast: NDArray[np.float32]) -> tuple[NDArray, NDArray]:
    """Colours of background and digit, [B, 3] each; their distance shrinks with the contrast."""
    level = draws.uniform("level", 0.1, 0.9)
    away = np.where(level < 0.5, 1, -1) * draws.uniform("away", 0.4, 0.6)  # lightness of the digit
    tints = [draws.uniform(f"tint{i}", -0.25, 0.25) for i in range(6)]
    paper = level[:, None] + np.stack(tints[:3], axis=1) * np.float32(0.6)
    pen = (level + away)[:, None] + np.stack(tints[3:], axis=1) * np.float32(0.6)
    middle, half = (paper + pen) / 2, (pen - paper) / 2 * contrast[:, None]
    return (middle - half).astype(np.float32), (middle + half).astype(np.float32)


def _shade(draws: Draws) -> NDArray[np.float32]:
    """A gradient of lightness across the image, [B, 32, 32]."""
    row, col = np.mgrid[:SIZE, :SIZE].astype(np.float32) / np.float32(SIZE) - np.float32(0.5)
    down, right = draws.uniform("shade y", -0.2, 0.2), draws.uniform("shade x", -0.2, 0.2)
    return row * down[:, None, None] + col * right[:, None, None]
