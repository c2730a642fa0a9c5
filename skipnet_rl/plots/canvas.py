"""What the figures share: the canvas, colours of policies, bands of stages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from numpy.typing import NDArray

from skipnet_rl.files import whole_file

COLOURS = {"all blocks": "0.45", "random": "tab:orange", "SP": "tab:green", "HRL": "tab:blue"}
OTHERS = (
    "tab:purple", "tab:red", "tab:cyan", "tab:brown", "tab:pink", "tab:olive", "navy", "black", "teal",
    "gold", "salmon", "yellowgreen", "darkgreen",
)  # fmt: skip

FLOPS_LABEL = "FLOPs (% of the plain network, gates included)"


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG whole or not at all; makes the folder."""
    with whole_file(path) as beside:
        FigureCanvasAgg(figure).print_png(str(beside))
    return path


def palette(names: Iterable[str]) -> dict[str, str]:
    """A colour for each policy: its own in every figure where it has one, else the next free one."""
    free = cycle(OTHERS)
    return {name: COLOURS.get(name) or next(free) for name in dict.fromkeys(names)}


def plain_axes(width: float = 7, height: float = 3.6) -> tuple[Figure, Any]:
    """A figure of that many inches and its only axes, open at the top and on the right."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
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


def legend_beside(figure: Figure, axes: Any) -> None:
    """A legend on the right of the axes, of points without their intervals, which would hide them."""
    handles, labels = axes.get_legend_handles_labels()
    markers = [handle[0] if isinstance(handle, ErrorbarContainer) else handle for handle in handles]
    figure.legend(markers, labels, frameon=False, loc="outside right upper", fontsize=8)


def stage_bands(axes: Any, stages: Sequence[int]) -> None:
    """Shade and name the stages of gated blocks 1 … N along the x axis.

    Args:
        axes: where.
        stages: the stage of each gated block [N].
    """
    for stage in sorted(set(stages)):
        places = [place for place, other in enumerate(stages, start=1) if other == stage]
        axes.axvspan(places[0] - 0.5, places[-1] + 0.5, color="0.5", alpha=0.06 * (1 + stage % 2), lw=0)
        axes.text(np.mean(places), 1.03, f"stage {stage + 1}", ha="center", va="bottom", fontsize=8,
                  color="0.4", transform=axes.get_xaxis_transform())  # fmt: skip
