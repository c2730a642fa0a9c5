"""Figures from a run folder's files, drawn without pyplot so that no global state is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {"all blocks": "0.45", "random": "tab:orange", "SP": "tab:green", "HRL": "tab:blue"}


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))
    return path


def executed_blocks(policies: Sequence[Mapping[str, Any]]) -> Figure:
    """How many of the N gated blocks each image runs.

    Args:
        policies: entries of result.json.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    for policy in policies:
        counts = np.asarray(policy["executed_blocks_histogram"])
        axes.bar(np.arange(len(counts)), counts / counts.sum(), width=1, alpha=0.6,
                 color=COLOURS.get(policy["name"]),
                 label=f"{policy['name']}, mean {policy['executed_blocks_mean']:.1f}")  # fmt: skip
    axes.set(xlabel="gated blocks executed per image", ylabel="share of images")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def execution_rate(policies: Sequence[Mapping[str, Any]], stages: Sequence[int]) -> Figure:
    """Share of images that execute each gated block.

    Args:
        policies: entries of result.json.
        stages: the stage of each gated block [N], drawn as bands.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    for policy in policies:
        rate = policy["execution_rate"]
        axes.step(np.arange(1, len(rate) + 1), rate, where="mid", color=COLOURS.get(policy["name"]),
                  label=policy["name"])  # fmt: skip
    _stage_bands(axes, stages)
    axes.set(xlabel="gated block", ylabel="share of images that execute it", ylim=(-0.02, 1.02))
    axes.set_xlim(0.5, len(stages) + 0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    return figure


def _stage_bands(axes: Any, stages: Sequence[int]) -> None:
    for stage in sorted(set(stages)):
        places = [place for place, other in enumerate(stages, start=1) if other == stage]
        axes.axvspan(places[0] - 0.5, places[-1] + 0.5, color="0.5", alpha=0.06 * (1 + stage % 2), lw=0)
        axes.text(np.mean(places), 1.03, f"stage {stage + 1}", ha="center", va="bottom", fontsize=8,
                  color="0.4", transform=axes.get_xaxis_transform())  # fmt: skip


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
        left.text(boundary, 0.02, " HRL from here", transform=left.get_xaxis_transform(), color="0.4")
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
    figure = Figure(figsize=(7, 3.6), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    curve = [row for row in policies if "bias" in row]
    others = [row for row in policies if "bias" not in row]
    for rows, style, colour, label in ((curve, "o-", "tab:blue", "gates, by bias"),
                                       *(([row], "s", "0.4", row["name"]) for row in others)):  # fmt: skip
        axes.errorbar(
            [100 * row["compute_flops"] for row in rows], [100 * row["accuracy"] for row in rows],
            yerr=[100 * row["accuracy_ci95"] for row in rows],
            fmt=style, capsize=2, lw=1.2, ms=4, color=colour, label=label,
        )  # fmt: skip
    for number, row in enumerate(curve):  # neighbours' labels above and below the curve in turn
        axes.annotate(f"{row['bias']:+g}", (100 * row["compute_flops"], 100 * row["accuracy"]), fontsize=7,
                      ha="center", textcoords="offset points", xytext=(0, 6 if number % 2 else -12),
                      color="0.35")  # fmt: skip
    axes.legend(frameon=False, loc="lower right")
    axes.set(xlabel="FLOPs (% of the plain network, gates included)", ylabel="accuracy (%)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
