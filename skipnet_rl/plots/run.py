"""Figures of one run: blocks per image, rate per block, training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from skipnet_rl.evaluate import load_records
from skipnet_rl.plots.canvas import palette, plain_axes, save_figure
from skipnet_rl.plots.routes import skipped_layers
from skipnet_rl.runs import Run
from skipnet_rl.text import for_matplotlib


def write_plots(run: Run, result: Mapping[str, Any], stages: Sequence[int]) -> None:
    """Draw a finished run into its folder: its last policy beside random skipping and the supervised one.

    Args:
        run: the folder, whose metrics and routes are read.
        result: content of result.json.
        stages: the stage of each gated block [N].
    """
    *others, last = result["policies"]
    shown = [row for row in others if row["name"] in ("random", "SP")] + [last]
    figures = {
        "executed_blocks": executed_blocks(shown),
        "execution_rate": execution_rate(shown, stages),
    }
    metrics = run.metrics()
    if any("val/accuracy" in line for line in metrics):  # a bound or a static policy is not trained
        figures["training"] = training_curves(metrics)
    if (run.folder / "routes.npz").is_file():
        records = load_records(run.folder / "routes.npz")
        figures["skipped_layers"] = skipped_layers({row["name"]: records[row["name"]] for row in shown})
    for name, figure in figures.items():
        save_figure(figure, run.folder / "plots" / f"{name}.png")


def executed_blocks(policies: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw how many of the N gated blocks the images execute.

    Args:
        policies: entries of result.json.
    """
    figure, axes = plain_axes()
    colours = palette(policy["name"] for policy in policies)
    for policy in policies:
        counts = np.asarray(policy["executed_blocks_histogram"])
        name = for_matplotlib(policy["name"])
        label = f"{name}, mean {policy['executed_blocks_mean']:.1f}"
        looks = {"width": 1, "alpha": 0.6, "color": colours[policy["name"]]}
        axes.bar(np.arange(len(counts)), counts / counts.sum(), **looks, label=label)
    axes.set(xlabel="gated blocks executed per image", ylabel="share of images")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return figure


def execution_rate(policies: Sequence[Mapping[str, Any]], stages: Sequence[int]) -> Figure:
    """Draw the share of images that execute each gated block.

    Args:
        policies: entries of result.json.
        stages: the stage of each gated block [N], drawn as bands.
    """
    figure, axes = plain_axes()
    colours = palette(policy["name"] for policy in policies)
    for policy in policies:
        edges = np.arange(len(stages) + 1) + 0.5
        looks = {"baseline": None, "color": colours[policy["name"]], "lw": 1.5}
        axes.stairs(policy["execution_rate"], edges, **looks, label=for_matplotlib(policy["name"]))
    _shade_stages(axes, stages)
    axes.set(xlabel="gated block", ylabel="share of images that execute it", ylim=(-0.02, 1.02))
    axes.set_xlim(0.5, len(stages) + 0.5)
    figure.legend(frameon=False, loc="outside lower center", ncols=4)  # lines run everywhere in the axes
    return figure


def _shade_stages(axes: Any, stages: Sequence[int]) -> None:
    """Shade and name the stages of gated blocks 1 … N along the x axis."""
    above = {"ha": "center", "va": "bottom", "transform": axes.get_xaxis_transform()}
    for stage in sorted(set(stages)):
        places = [place for place, other in enumerate(stages, start=1) if other == stage]
        axes.axvspan(places[0] - 0.5, places[-1] + 0.5, color="0.5", alpha=0.06 * (1 + stage % 2), lw=0)
        axes.text(np.mean(places), 1.03, f"stage {stage + 1}", **above, fontsize=8, color="0.4")


def training_curves(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw validation accuracy and executed blocks over the steps of metrics.jsonl."""
    lines = [line for line in metrics if "val/accuracy" in line]
    figure = Figure(figsize=(7, 3.6), layout="constrained", dpi=120)
    left = figure.add_subplot()
    right = left.twinx()
    steps = [line["step"] for line in lines]
    left.plot(steps, [line["val/accuracy"] for line in lines], "o-", color="tab:blue")
    right.plot(steps, [line["val/compute_blocks"] for line in lines], "s--", color="tab:red")
    boundary = max((line["step"] for line in lines if line["stage"] == "sp"), default=0)
    if 0 < boundary < max(steps):
        left.axvline(boundary, color="0.6", lw=1)
        place = left.get_xaxis_transform()  # 1.02: above the axes, where no point is
        left.text(boundary, 1.02, "HRL from here", transform=place, ha="center", color="0.4")
    left.set(xlabel="training step")
    left.set_ylabel("validation accuracy", color="tab:blue")
    right.set_ylabel("share of blocks executed", color="tab:red")
    right.set_ylim(0, 1.03)
    return figure
