"""Picture of `benchmarks.information`: what can be known at each block, and from the finished answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from skipnet_rl.plots import BLUE, GREEN, GREY, INK, titled_axes

TITLE = "A gate has to decide before there is anything to decide by"
CURVES = {"hidden": ("predictor with a hidden layer", BLUE), "linear": ("linear predictor", "#63a4d8")}


def picture(pair: Mapping[str, Any]) -> Figure:
    """Draw for a pair what the features after each block tell, and what the finished answer tells."""
    blocks, count = pair["blocks"], len(pair["blocks"])
    figure, axes = titled_axes(TITLE, _subtitle(pair))
    axes.set(xlim=(0.5, 1.35 * count + 1), ylim=(0.45, 1), ylabel="area under the ROC curve")
    axes.axhline(0.5, color=GREY, lw=1, ls=(0, (1, 2)))
    beside = {"color": GREY, "va": "center", "fontsize": 9.5}
    axes.text(count + 0.8, 0.5, "a coin toss", **beside, backgroundcolor="white")
    _draw_stages(axes, pair["stages"])
    for name, (label, colour) in CURVES.items():
        low, high = zip(*(block[name]["auc_ci95"] for block in blocks), strict=True)
        areas, places = [block[name]["auc"] for block in blocks], range(1, count + 1)
        axes.fill_between(places, low, high, color=colour, alpha=0.13, lw=0)
        axes.plot(places, areas, color=colour, lw=2, marker="o", ms=4.5)
        axes.text(count + 0.8, areas[-1], label, **beside | {"color": colour})
    _draw_answer(axes, pair["margin"], 1.25 * count + 1)
    return figure


def _draw_stages(axes: Any, stages: Sequence[int]) -> None:
    """Draw the blocks on the x axis, stages as bands, and the number of decisions before the last stage."""
    for stage in sorted(set(stages)):
        places = [place for place, other in enumerate(stages, start=1) if other == stage]
        axes.axvspan(places[0] - 0.5, places[-1] + 0.5, color=GREY, alpha=0.05 + 0.06 * (stage % 2), lw=0)
        axes.text(sum(places) / len(places), 0.462, f"stage {stage + 1}", ha="center", color=GREY, fontsize=9)
    early, count = sum(stage < max(stages) for stage in stages), len(stages)
    ends = {"arrowstyle": "|-|, widthA=0.3, widthB=0.3", "color": INK, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (0.6, 0.68), (early + 0.4, 0.68), arrowprops=ends)
    text = f"{early} of the {count - 1} decisions are taken here,\non next to nothing"
    axes.text((early + 1) / 2, 0.70, text, ha="center", color=INK, fontsize=10)
    axes.set_xlabel("pooled feature after block", x=count / 2 / axes.get_xlim()[1])
    step = max(1, count // 6)
    axes.set_xticks([*range(1, count, step), count] if step == 1 else [1, *range(step, count + 1, step)])


def _draw_answer(axes: Any, margin: Mapping[str, Any], place: float) -> None:
    """Draw the area of the margin: a line across the figure, and a point with its interval at the end."""
    value, (low, high) = margin["auc"], margin["auc_ci95"]
    axes.plot([0.5, place], [value, value], color=GREEN, lw=1)
    axes.errorbar([place], [value], [[value - low], [high - value]], color=GREEN, fmt="o", ms=9, lw=2.5)
    above = {"xytext": (0, 10), "textcoords": "offset points", "ha": "center", "color": GREEN}
    axes.annotate(f"{value:.2f}", (place, value), **above, weight="bold", fontsize=12)
    axes.text(0.7, value + 0.012, "margin of the finished answer, log p₁ − log p₂", color=GREEN, fontsize=10)
    axes.text(place, 0.462, "answer", ha="center", color=GREEN, fontsize=9)


def _subtitle(pair: Mapping[str, Any]) -> str:
    """Say what is predicted and for which networks."""
    first, second = (network["label"] for network in pair["networks"])
    share = f"{100 * pair['mended'][1]:.1f} %"
    return (
        f"How well can one tell the {share} of the test images that more compute mends:\n"
        f"wrong in {first}, right in {second}?"
    )
