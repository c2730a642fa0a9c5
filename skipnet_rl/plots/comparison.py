"""Computation saved by several policies, with their accuracies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from skipnet_rl.plots.canvas import error_bars, plain_axes
from skipnet_rl.text import for_matplotlib


def computation_reduction(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the FLOPs and blocks that each model saves, with its accuracy beside the bars.

    Args:
        rows: entries of result.json, each under the model's `name`; where a row has a `plain_accuracy`,
            of the network with every block executed, it is written under the accuracy.
    """
    figure, axes = plain_axes(7.5, 1.3 + 0.5 * len(rows))
    bars = (
        ("compute_flops", "FLOPs, gates included", -0.19, "tab:blue"),
        ("compute_blocks", "blocks", 0.19, "#a9c9e8"),
    )
    for key, label, shift, colour in bars:
        saved = [100 * (1 - row[key]) for row in rows]
        places = [place + shift for place in range(len(rows))]
        axes.barh(places, saved, height=0.38, color=colour, label=label)
    for place, row in enumerate(rows):
        right = 100 * max(0.0, 1 - row["compute_flops"], 1 - row["compute_blocks"])
        beside = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(_accuracy_text(row), (right, place), **beside, fontsize=8.5)
    axes.set_yticks(range(len(rows)), [for_matplotlib(row["name"]) for row in rows])
    axes.set_xlabel("saved (% of the plain network); beside the bars: accuracy")
    axes.invert_yaxis()  # the first row on top
    low, high = min(0.0, axes.get_xlim()[0]), max(axes.get_xlim()[1], 5.0)
    axes.set_xlim(low, high + 0.4 * (high - low))  # room for the text
    axes.axvline(0, color="0.3", lw=0.8)
    figure.legend(frameon=False, loc="outside upper center", ncols=2)
    return figure


def _accuracy_text(row: Mapping[str, Any]) -> str:
    half = error_bars([row], "accuracy").mean()
    interval = "" if math.isnan(half) else f" ± {half:.2f}"
    plain = f"\nplain {100 * row['plain_accuracy']:.2f} %" if "plain_accuracy" in row else ""
    return f"{100 * row['accuracy']:.2f}{interval} %{plain}"
