"""Skipped blocks against the difficulty of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from skipnet_rl.statistics import mean_interval, rank_correlations
from skipnet_rl.text import for_matplotlib

BINS = 10  # each with equally many images
COLUMNS = 4


def difficulty(factors: Mapping[str, ArrayLike], skipped: ArrayLike, seed: int = 0) -> Figure:
    """Draw the mean number of skipped blocks over each difficulty factor, with 95 % intervals (Student's t).

    Each panel's title states Spearman's rank correlation and its 95 % bootstrap interval over images.

    Args:
        factors: difficulty factors [M] by name, on the CPU; see `statistics.magnitudes` for signed ones.
        skipped: number of skipped blocks of each image [M].
        seed: random seed of the bootstrap.
    """
    counts = np.asarray(skipped, dtype=float)
    correlations = rank_correlations(factors, counts, seed)
    columns = max(1, min(COLUMNS, len(factors)))
    rows = max(1, ceil(len(factors) / columns))
    figure = Figure(figsize=(2.5 * columns, 2.4 * rows + 0.2), layout="constrained", dpi=120)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, (name, values) in zip(grid.ravel(), factors.items(), strict=False):
        _draw_bins(axes, np.asarray(values, dtype=float), counts)
        axes.set_title(_title(correlations[name], counts), fontsize=8.5)
        axes.set_xlabel(for_matplotlib(name))
        axes.spines[["top", "right"]].set_visible(False)
    unused = grid.ravel()[len(factors) :]
    for axes in unused:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("blocks skipped")
    return figure


def _title(correlation: tuple[float, float, float], counts: NDArray[np.float64]) -> str:
    rho, low, high = correlation
    if not math.isnan(rho):
        shown = [f"{round(value, 2) + 0.0:+.2f}" for value in (rho, low, high)]  # + 0.0: no "-0.00"
        return f"ρ = {shown[0]} [{shown[1]}, {shown[2]}]".replace("-", "−")
    constant = "all images skip alike" if np.ptp(counts) == 0 else "all images alike"
    return f"no ρ: {constant}"


def _draw_bins(axes: Any, values: NDArray[np.float64], counts: NDArray[np.float64]) -> None:
    """Draw mean skips in bins of equally many images, or at each value if there are few values."""
    distinct = np.unique(values)
    if len(distinct) <= BINS:
        bins = [np.flatnonzero(values == value) for value in distinct]
    else:
        bins = np.array_split(np.argsort(values, kind="stable"), BINS)
    intervals = [mean_interval(counts[members]) for members in bins]
    centres = [values[members].mean() for members in bins]
    means, halves = zip(*intervals, strict=True)
    axes.errorbar(centres, means, yerr=halves, fmt="o-", ms=4, lw=1, capsize=2, color="tab:blue")
    if not (values % 1).any():
        axes.xaxis.get_major_locator().set_params(integer=True)
