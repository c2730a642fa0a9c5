"""The canvas of the figures, colours of policies, lengths of error bars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from skipnet_rl.files import whole_file

COLOURS = {"all blocks": "0.45", "random": "tab:orange", "SP": "tab:green", "HRL": "tab:blue"}
OTHERS = (
    *("tab:purple", "tab:red", "tab:cyan", "tab:brown", "tab:pink", "tab:olive", "navy", "black", "teal"),
    *("gold", "salmon", "yellowgreen", "darkgreen"),
)
INK, GREY, GREEN, BLUE = "#1a202c", "#718096", "#2f855a", "#2b6cb0"  # for figures with a message


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG file atomically; the folder is created if missing."""
    with whole_file(path) as beside:
        FigureCanvasAgg(figure).print_png(str(beside))
    return path


def palette(names: Iterable[str]) -> dict[str, str]:
    """A colour for each policy; those of `COLOURS` look the same in every figure."""
    free = cycle(OTHERS)
    return {name: COLOURS.get(name) or next(free) for name in dict.fromkeys(names)}


def plain_axes(width: float = 7, height: float = 3.6) -> tuple[Figure, Any]:
    """A figure of this size in inches and its only axes, without a frame at the top and on the right."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def titled_axes(title: str, subtitle: str) -> tuple[Figure, Any]:
    """A figure that says its message: a title, two lines below it, and its only axes."""
    figure, (axes,) = titled_panels(title, subtitle, 1)
    return figure, axes


def titled_panels(title: str, subtitle: str, count: int) -> tuple[Figure, list[Any]]:
    """A figure that says its message: a title, two lines below it, and its axes side by side."""
    width = 8.4 if count == 1 else 5.2 * count
    height = 4.5 if count == 1 else 5.2
    figure = Figure(figsize=(width, height), dpi=150)
    sides = {"left": 0.63 / width, "right": 1 - 0.17 / width, "bottom": 0.54 / height}
    top = 1 - (1.03 if count == 1 else 1.25) / height
    grid = figure.add_gridspec(1, count, **sides, top=top, wspace=0.12)
    axes = [figure.add_subplot(grid[0, number]) for number in range(count)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    figure.text(0.143 / width, 1 - 0.32 / height, title, fontsize=14, weight="bold", color=INK)
    figure.text(0.143 / width, 1 - 0.79 / height, subtitle, fontsize=9.5, color=GREY, linespacing=1.4)
    return figure, axes


def error_bars(rows: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    """How far each row's interval reaches below and above its value, [2, rows] in percent.

    Args:
        rows: with shares under `key`, and under `"<key>_ci95"` the ends (low, high) of the interval, or its
            half width. Without either it is nan, which is drawn as no bar.
        key: such as `"accuracy"`.
    """
    reaches = np.empty((2, len(rows)))
    for number, row in enumerate(rows):
        interval, value = row.get(f"{key}_ci95", math.nan), row[key]
        low, high = interval if isinstance(interval, Sequence) else (value - interval, value + interval)
        reaches[:, number] = 100 * (value - low), 100 * (high - value)
    return reaches
