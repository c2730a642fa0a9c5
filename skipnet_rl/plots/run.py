"""Figures of one run: blocks per image, rate per block, training curves, accuracy against FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from skipnet_rl.plots.canvas import FLOPS_LABEL, error_bars, palette, plain_axes, stage_bands
from skipnet_rl.text import for_matplotlib


def executed_blocks(policies: Sequence[Mapping[str, Any]]) -> Figure:
    """How many of the N gated blocks each image runs.

    Args:
        policies: entries of result.json.
    """
    figure, axes = plain_axes()
    colours = palette(policy["name"] for policy in policies)
    for policy in policies:
        counts = np.asarray(policy["executed_blocks_histogram"])
        name = for_matplotlib(policy["name"])
        axes.bar(np.arange(len(counts)), counts / counts.sum(), width=1, alpha=0.6,
                 color=colours[policy["name"]],
                 label=f"{name}, mean {policy['executed_blocks_mean']:.1f}")  # fmt: skip
    axes.set(xlabel="gated blocks executed per image", ylabel="share of images")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return figure


def execution_rate(policies: Sequence[Mapping[str, Any]], stages: Sequence[int]) -> Figure:
    """Share of images that execute each gated block.

    Args:
        policies: entries of result.json.
        stages: the stage of each gated block [N], drawn as bands.
    """
    figure, axes = plain_axes()
    colours = palette(policy["name"] for policy in policies)
    for policy in policies:
        edges = np.arange(len(stages) + 1) + 0.5
        axes.stairs(policy["execution_rate"], edges, baseline=None, color=colours[policy["name"]], lw=1.5,
                    label=for_matplotlib(policy["name"]))  # fmt: skip
    stage_bands(axes, stages)
    axes.set(xlabel="gated block", ylabel="share of images that execute it", ylim=(-0.02, 1.02))
    axes.set_xlim(0.5, len(stages) + 0.5)
    figure.legend(frameon=False, loc="outside lower center", ncols=4)  # lines run everywhere in the axes
    return figure


def training_curves(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Validation accuracy and executed blocks over the steps of metrics.jsonl."""
    lines = [line for line in metrics if "val/accuracy" in line]
    figure = Figure(figsize=(7, 3.6), layout="constrained", dpi=120)
    left = figure.add_subplot()
    right = left.twinx()
    steps = [line["step"] for line in lines]
    left.plot(steps, [line["val/accuracy"] for line in lines], "o-", color="tab:blue")
    right.plot(steps, [line["val/compute_blocks"] for line in lines], "s--", color="tab:red")
    boundary = sum(line["stage"] == "sp" for line in lines) and max(
        (line["step"] for line in lines if line["stage"] == "sp"), default=0
    )
    if 0 < boundary < max(steps):
        left.axvline(boundary, color="0.6", lw=1)
        place = left.get_xaxis_transform()  # 1.02: above the axes, where no point is
        left.text(boundary, 1.02, "HRL from here", transform=place, ha="center", color="0.4")
    left.set(xlabel="training step")
    left.set_ylabel("validation accuracy", color="tab:blue")
    right.set_ylabel("share of blocks executed", color="tab:red")
    right.set_ylim(0, 1.03)
    return figure


def trade_off(policies: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against FLOPs, with the 95 % interval over images.

    Args:
        policies: entries of result.json; those with a `"bias"` are joined to a curve.
    """
    figure, axes = plain_axes()
    curve = [row for row in policies if "bias" in row]
    others = [row for row in policies if "bias" not in row]
    for rows, style, colour, label in ((curve, "o-", "tab:blue", "gates, by bias"),
                                       *(([row], "s", "0.4", row["name"]) for row in others)):  # fmt: skip
        axes.errorbar(
            [100 * row["compute_flops"] for row in rows], [100 * row["accuracy"] for row in rows],
            yerr=error_bars(rows, "accuracy"),
            fmt=style, capsize=2, lw=1.2, ms=4, color=colour, label=for_matplotlib(label),
        )  # fmt: skip
    for number, row in enumerate(curve):  # neighbours' labels above and below the curve in turn
        axes.annotate(f"{row['bias']:+g}", (100 * row["compute_flops"], 100 * row["accuracy"]), fontsize=7,
                      ha="center", textcoords="offset points", xytext=(0, 6 if number % 2 else -12),
                      color="0.35")  # fmt: skip
    axes.legend(frameon=False, loc="lower right")
    axes.set(xlabel=FLOPS_LABEL, ylabel="accuracy (%)")
    return figure
