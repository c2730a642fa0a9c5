"""The images that a policy finds easiest and hardest, each over its route."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from skipnet_rl.data import Images
from skipnet_rl.evaluate import Record
from skipnet_rl.plots.routes import EXECUTED, PALE, RIGHT, SKIPPED, WRONG, draw_route
from skipnet_rl.text import for_matplotlib

COLUMNS = 8  # images beside one another


def pick_easy_and_hard(record: Record, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the correctly classified images that skip most, and of the images that skip least.

    Ties stay in the order of the data set.
    """
    skipped = (~record.routes).sum(axis=1)
    right = np.flatnonzero(record.correct)
    easy = right[np.argsort(-skipped[right], kind="stable")[:count]]
    return easy, np.argsort(skipped, kind="stable")[:count]


def easy_and_hard(images: Images, record: Record, stages: Sequence[int], count: int = 16) -> Figure:
    """Draw the easiest images (most blocks skipped, classified correctly) and the hardest (fewest skipped).

    Below each image is its route, one row of cells per stage, filled where the block was executed; above it
    the label, and the prediction if it differs.

    Args:
        images: the split that was evaluated, M images.
        record: stored routes [M, N] of the policy.
        stages: the stage of each gated block [N].
        count: number of images of each kind.
    """
    if len(images) != len(record.routes):
        raise ValueError(
            f"{len(images)} images for routes of {len(record.routes)}; give the split that was evaluated"
        )
    groups = pick_easy_and_hard(record, count)
    rows = [max(1, ceil(len(chosen) / COLUMNS)) for chosen in groups]
    columns = max(4, min(COLUMNS, count))  # four have room for the titles
    floor = -0.06 - 0.14 * len(set(stages))  # in sides of an image
    height = sum(rows) * (1.1 * (1 - floor) + 0.32) + 0.9  # inches: pictures over routes, their titles
    figure = Figure(figsize=(1.2 * columns, height), layout="constrained", dpi=150)
    titles = ("easiest: most blocks skipped, classified correctly", "hardest: fewest blocks skipped")
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=rows)[:, 0]
    parts[-1].supxlabel("one row of cells per stage: executed filled, skipped empty", fontsize=8)
    for part, title, chosen, lines in zip(parts, titles, groups, rows, strict=True):
        part.suptitle(title, fontsize=10, fontweight="bold")
        grid = part.subplots(lines, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
            axes.set(xlim=(-0.02, 1.02), ylim=(floor, 1.0), aspect="equal")
        for axes, index in zip(grid, chosen.tolist(), strict=False):
            axes.imshow(images.picture(index), extent=(0, 1, 0, 1), interpolation="nearest")
            axes.set(xlim=(-0.02, 1.02), ylim=(floor, 1.0))  # imshow has set them to the image's
            _draw_route(axes, record.routes[index], stages)
            _write_outcome(axes, images, record, index)
    return figure


def _draw_route(axes: Any, route: NDArray[np.bool_], stages: Sequence[int]) -> None:
    cells = [(EXECUTED, EXECUTED) if executed else (SKIPPED, PALE) for executed in route]
    width = 1 / max(map(list(stages).count, set(stages)))
    draw_route(axes, cells, stages, (0.8 * width, 0.1), (0.1 * width, -0.17), step=-0.14, lw=0.5)


def _write_outcome(axes: Any, images: Images, record: Record, index: int) -> None:
    label, prediction = int(images.labels[index]), int(record.predictions[index])
    text = for_matplotlib(images.class_name(label))
    if prediction != label:
        text += f" → {for_matplotlib(images.class_name(prediction))}"
    skipped = int((~record.routes[index]).sum())
    text += f"\n{skipped} of {record.routes.shape[1]} skipped"
    axes.set_title(text, color=RIGHT if prediction == label else WRONG, fontsize=7, pad=2)
