"""Routes: one drawn as cells, layers skipped per image, rates of skipping by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from skipnet_rl.evaluate import Record
from skipnet_rl.plots.canvas import palette, plain_axes
from skipnet_rl.text import for_matplotlib

EXECUTED, SKIPPED, PALE = "#2b6cb0", "white", "#a0aec0"  # cells of blocks, and the edge of a skipped one
RIGHT, WRONG = "#2f855a", "#c53030"  # predictions
MOST_NAMES = 40  # class names along an axis; more are not legible


def draw_route(
    axes: Any,
    cells: Sequence[tuple[str, str]],
    stages: Sequence[int],
    size: tuple[float, float],
    corner: tuple[float, float],
    step: float,
    lw: float,
) -> None:
    """Draw one cell per block, one row per stage.

    Args:
        axes: the axes to draw on.
        cells: colours of each block's face and edge.
        stages: the stage of each block, as many.
        size: width and height of a cell.
        corner: the corner of the first one with the smallest x and y.
        step: y of a row minus y of the row before.
        lw: line width of the edges.
    """
    width, height = size
    column: dict[int, int] = dict.fromkeys(sorted(set(stages)), 0)
    rows = list(column)
    for (face, edge), stage in zip(cells, stages, strict=True):
        x = corner[0] + column[stage] * width / 0.8  # a fifth of it is the gap
        y = corner[1] + rows.index(stage) * step
        axes.add_patch(Rectangle((x, y), width, height, facecolor=face, edgecolor=edge, lw=lw))
        column[stage] += 1


def skipped_layers(records: Mapping[str, Record]) -> Figure:
    """Draw how many blocks the images skip: share of each number, median, quartiles.

    A violin of exact shares rather than a smoothed one: the numbers are whole and often few.

    Args:
        records: stored routes [M, N] of each policy by name.
    """
    figure, axes = plain_axes(height=1.2 + 0.5 * len(records))
    colours, medians = palette(records), []
    for place, (name, record) in enumerate(records.items()):
        skipped = (~record.routes).sum(axis=1)
        share = np.bincount(skipped, minlength=record.routes.shape[1] + 1) / len(skipped)
        height = 0.8 * share / share.max()
        below = place - height / 2
        axes.bar(np.arange(len(share)), height, 0.9, bottom=below, color=colours[name], alpha=0.45)
        low, median, high = np.percentile(skipped, [25, 50, 75])
        axes.plot([low, high], [place, place], color="0.15", lw=2.5, solid_capstyle="butt")
        axes.plot([median], [place], "o", color="white", mec="0.15", ms=6)
        medians.append(f"{median:g}")
    axes.set_yticks(range(len(records)), list(map(for_matplotlib, records)))
    axes.set(xlabel="gated blocks skipped per image", ylim=(len(records) - 0.5, -0.5))
    axes.set_xlim(-0.7, max((record.routes.shape[1] for record in records.values()), default=1) + 0.7)
    axes.xaxis.get_major_locator().set_params(integer=True)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(records)), medians)
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)
    right.set_ylabel("median")
    return figure


def class_skip_rates(record: Record, labels: ArrayLike, num_classes: int) -> NDArray[np.float64]:
    """Share of each class's images that skip each block: [K, N]; nan for a class without images.

    Args:
        record: stored routes [M, N].
        labels: labels of the same images [M], on the CPU.
        num_classes: number of classes K.
    """
    of_image = np.asarray(labels)
    if len(of_image) != len(record.routes):
        raise ValueError(
            f"{len(of_image)} labels for routes of {len(record.routes)} images; give the labels of the split "
            "that was evaluated"
        )
    rates = np.full((num_classes, record.routes.shape[1]), np.nan)
    for number in np.unique(of_image):
        rates[number] = 1 - record.routes[of_image == number].mean(axis=0)
    return rates


def skip_rate_by_class(record: Record, labels: ArrayLike, classes: Sequence[str]) -> Figure:
    """Draw how often each block is skipped, by all images and by each class, and where classes differ.

    The upper map has the rates, the lower one their distance from the block's rate over all images.

    Args:
        record: stored routes [M, N].
        labels: labels of the same images [M], on the CPU.
        classes: K class names.
    """
    rates = class_skip_rates(record, labels, len(classes))
    rate = 1 - record.routes.mean(axis=0)
    shown = min(len(classes), MOST_NAMES)
    figure = Figure(figsize=(7.5, 2.2 + 0.4 * shown), layout="constrained", dpi=120)
    top, upper, lower = figure.subplots(3, 1, sharex=True, height_ratios=[2.2 + 0.04 * shown, shown, shown])
    blocks = np.arange(1, len(rate) + 1)
    top.bar(blocks, rate, width=0.85, color="tab:blue")
    top.set(ylim=(0, 1.02), yticks=[0, 0.5, 1])
    top.set_ylabel("all images", fontsize=8)
    top.spines[["top", "right"]].set_visible(False)
    away = rates - rate
    limit = max(float(np.nanmax(np.abs(away))), 0.01)  # a flat map stays white
    extent = (0.5, len(rate) + 0.5, len(classes) - 0.5, -0.5)
    as_cells: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
    for axes, values, limits, colours, label in (
        (upper, rates, (0, 1), "viridis", "skip rate"),
        (lower, away, (-limit, limit), "RdBu_r", "skip rate − block's rate"),
    ):
        image = axes.imshow(values, colours, vmin=limits[0], vmax=limits[1], extent=extent, **as_cells)
        axes.set_facecolor("0.85")  # classes without images
        figure.colorbar(image, ax=axes, label=label, pad=0.01)
        if len(classes) <= MOST_NAMES:
            axes.set_yticks(range(len(classes)), list(map(for_matplotlib, classes)), fontsize=8)
        axes.set_ylabel("class")
    lower.set_xlabel("gated block")
    lower.xaxis.get_major_locator().set_params(integer=True)
    return figure
