"""Figures over several policies: computation saved, accuracy over alpha, the Pareto frontier."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from skipnet_rl.plots.canvas import FLOPS_LABEL, error_bars, legend_beside, palette, plain_axes
from skipnet_rl.statistics import mean_interval
from skipnet_rl.text import for_matplotlib

MARKERS = "osD^vPX<>p"
PLACE_IN_FAMILY = re.compile(r",? \d+(\.\d+)?(%| of \d+)(?= |$)")  # "random 90%", "greedy, 7 of 8"


def computation_reduction(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """FLOPs and blocks saved by each model, its accuracy beside the bars.

    Args:
        rows: entries of result.json, each under the model's `name`; a `plain_accuracy`, of the network
            that nothing is skipped in, is written under the accuracy where a row has one.
    """
    figure, axes = plain_axes(7.5, 1.3 + 0.5 * len(rows))
    for key, label, shift, colour in (("compute_flops", "FLOPs, gates included", -0.19, "tab:blue"),
                                      ("compute_blocks", "blocks", 0.19, "#a9c9e8")):  # fmt: skip
        saved = [100 * (1 - row[key]) for row in rows]
        axes.barh(
            [place + shift for place in range(len(rows))], saved, height=0.38, color=colour, label=label
        )
    for place, row in enumerate(rows):
        right = 100 * max(0.0, 1 - row["compute_flops"], 1 - row["compute_blocks"])
        axes.annotate(_accuracy_text(row), (right, place), xytext=(6, 0), textcoords="offset points",
                      va="center", fontsize=8.5)  # fmt: skip
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


def alpha_curve(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against FLOPs as alpha grows: one curve per policy, each point a mean over seeds.

    Args:
        results: contents of result.json; the last policy of each is the one that counts. Those of one
            policy and one alpha are seeds: their 95 % intervals (Student's t) are drawn both ways.

    Raises:
        ValueError: one policy, alpha and seed came twice, so that they differ in something else.
    """
    curves = _by_policy_and_alpha(results)
    figure, axes = plain_axes(7.5)
    alphas = sorted({alpha for points in curves.values() for alpha in points})
    shades = dict(
        zip(alphas, matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(alphas))), strict=True)
    )
    for (name, points), marker in zip(curves.items(), cycle(MARKERS), strict=False):
        means = []
        for alpha in sorted(points):
            flops, accuracy = (
                mean_interval([100 * row[key] for row in points[alpha]])
                for key in ("compute_flops", "accuracy")
            )
            means.append((flops[0], accuracy[0]))
            axes.errorbar(*means[-1], xerr=flops[1], yerr=accuracy[1], fmt=marker, capsize=2, ms=6, lw=1,
                          color=shades[alpha], zorder=3)  # fmt: skip
        fewest, most = (pick(map(len, points.values())) for pick in (min, max))
        seeds = f"{fewest}–{most} seeds" if fewest < most else f"{most} seed{'s' * (most > 1)}"
        axes.plot(*zip(*means, strict=True), "-", color="0.6", lw=1, zorder=1)
        axes.plot([], [], f"{marker}-", color="0.6", lw=1, label=f"{for_matplotlib(name)} ({seeds})")
    for alpha in alphas:
        axes.plot([], [], "o", color=shades[alpha], label=f"α = {alpha:g}")
    axes.set(xlabel=FLOPS_LABEL, ylabel="accuracy (%)")
    legend_beside(figure, axes)
    return figure


def _by_policy_and_alpha(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[float, list[Any]]]:
    curves: dict[str, dict[float, list[Any]]] = defaultdict(lambda: defaultdict(list))
    seen = set()
    for result in results:
        row = result["policies"][-1]
        key = (row["name"], result["alpha"], result["seed"])
        if key in seen:
            raise ValueError(
                f"two results of {key[0]} with alpha {key[1]:g} and seed {key[2]}; seeds of one setting are "
                "expected, so draw runs that differ in other flags apart"
            )
        seen.add(key)
        curves[row["name"]][result["alpha"]].append(row)
    return curves


def pareto_front(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries that no other one matches in both accuracy and FLOPs and beats in one, by FLOPs.

    Bounds, which are no policies, neither belong to it nor push others off it.
    """
    front: list[Mapping[str, Any]] = []
    policies = [entry for entry in entries if not entry.get("bound")]
    for entry in sorted(policies, key=lambda entry: (entry["compute_flops"], -entry["accuracy"])):
        better = not front or entry["accuracy"] > front[-1]["accuracy"]
        equal = bool(front) and all(entry[key] == front[-1][key] for key in ("accuracy", "compute_flops"))
        if better or equal:
            front.append(entry)
    return front


def frontier(entries: Sequence[Mapping[str, Any]], lowest: float = 0.0) -> Figure:
    """Accuracy against FLOPs of all policies, with the best accuracy at each budget as a step line.

    Args:
        entries: `name`, `accuracy`, `compute_flops`; intervals `accuracy_ci95` and `compute_flops_ci95`
            where there are any, (low, high) or half widths; `bound` is true for an oracle, which is a
            hollow star. Members of a family, such as "random 90%" and "random 80%" or those with the same
            `series`, are joined to a curve.
        lowest: the accuracy at which the y axis begins, to look closer at the good ones.
    """
    figure, axes = plain_axes(8.5, 4.4)
    families: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        families[entry.get("series") or PLACE_IN_FAMILY.sub("", entry["name"])].append(entry)
    front = [(100 * entry["compute_flops"], 100 * entry["accuracy"]) for entry in pareto_front(entries)]
    if front:
        end = 100 * max(entry["compute_flops"] for entry in entries)
        axes.step(*zip(*front, (end, front[-1][1]), strict=True), where="post", color="0.35", lw=1,
                  zorder=1, label="Pareto frontier")  # fmt: skip
    for style in _styles(families):
        axes.errorbar(**style)
    axes.set(xlabel=FLOPS_LABEL, ylabel="accuracy (%)")
    if lowest > 0:
        highest = max((entry["accuracy"] for entry in entries), default=1.0)
        axes.set_ylim(100 * lowest, 100 * (highest + 0.08 * max(highest - lowest, 0.01)))
    legend_beside(figure, axes)
    return figure


def _styles(families: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """How each family is drawn: points with intervals, joined where there are several."""
    names = {family: members[0]["name"] if len(members) == 1 else family
             for family, members in families.items()}  # fmt: skip
    colours = palette(names.values())
    for (family, members), marker in zip(families.items(), cycle(MARKERS), strict=False):
        members = sorted(members, key=lambda entry: entry["compute_flops"])
        bound = members[0].get("bound")
        yield {
            "x": [100 * entry["compute_flops"] for entry in members],
            "y": [100 * entry["accuracy"] for entry in members],
            "xerr": error_bars(members, "compute_flops"),
            "yerr": error_bars(members, "accuracy"),
            "fmt": ("*" if bound else marker) + "-" * (len(members) > 1),
            "ms": 13 if bound else 6, "mfc": "none" if bound else None,
            "color": colours[names[family]], "lw": 1, "capsize": 2, "zorder": 2,
            "label": for_matplotlib(names[family]),
        }  # fmt: skip
