"""Accuracy against computation: over biases, over alpha, over policies with their Pareto frontier."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from skipnet_rl.plots.canvas import error_bars, palette, plain_axes
from skipnet_rl.statistics import mean_interval
from skipnet_rl.text import for_matplotlib

FLOPS_LABEL = "FLOPs (% of the plain network, gates included)"
MARKERS = "osD^vPX<>p"
PLACE_IN_FAMILY = re.compile(r",? \d+(\.\d+)?(%| of \d+)(?= |$)")  # "random 90%", "greedy, 7 of 8"


@dataclass(frozen=True)
class Series:
    """Points that look alike.

    Attributes:
        x, y: cost and accuracy of each point.
        looks: keyword arguments of `Axes.errorbar`, such as its format, colour and intervals.
        label: entry in the legend; none by default.
    """

    x: Sequence[float]
    y: Sequence[float]
    looks: Mapping[str, Any] = field(default_factory=dict)
    label: str | None = None


def trade_off(
    series: Iterable[Series],
    size: tuple[float, float] = (7.5, 3.6),
    x_label: str = FLOPS_LABEL,
    y_label: str = "accuracy (%)",
) -> Figure:
    """Draw accuracy against computation; the series that have a label are in a legend on the right."""
    figure, axes = plain_axes(*size)
    for each in series:
        label = None if each.label is None else for_matplotlib(each.label)
        axes.errorbar(each.x, each.y, label=label, **{"lw": 1, "capsize": 2, **each.looks})
    axes.set(xlabel=x_label, ylabel=y_label)
    handles, labels = axes.get_legend_handles_labels()
    if handles:  # without their intervals, which would hide them
        markers = [each[0] if isinstance(each, ErrorbarContainer) else each for each in handles]
        figure.legend(markers, labels, frameon=False, loc="outside right upper", fontsize=8)
    return figure


def percent_series(rows: Sequence[Mapping[str, Any]], label: str | None, **looks: Any) -> Series:
    """Rows with `accuracy`, `compute_flops` and their intervals, see `error_bars`, as points in percent."""
    x, y = ([100 * row[key] for row in rows] for key in ("compute_flops", "accuracy"))
    bars = {"xerr": error_bars(rows, "compute_flops"), "yerr": error_bars(rows, "accuracy")}
    return Series(x, y, {**bars, **looks}, label)


def budget_curve(policies: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw accuracy against FLOPs at several biases of one policy.

    Args:
        policies: entries of result.json; those with a `"bias"` are joined to a curve.
    """
    curve = [row for row in policies if "bias" in row]
    others = [row for row in policies if "bias" not in row]
    drawn = [percent_series(curve, "gates, by bias", fmt="o-", color="tab:blue", ms=4)]
    drawn += [percent_series([row], row["name"], fmt="s", color="0.4", ms=4) for row in others]
    figure = trade_off(drawn)
    looks: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 7, "color": "0.35"}
    for number, row in enumerate(curve):  # neighbours' labels above and below the curve in turn
        place, shift = (100 * row["compute_flops"], 100 * row["accuracy"]), 6 if number % 2 else -12
        figure.axes[0].annotate(f"{row['bias']:+g}", place, (0, shift), **looks)
    return figure


def alpha_curve(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw accuracy against FLOPs as alpha grows: one curve per policy, each point a mean over seeds.

    Args:
        results: contents of result.json; the last policy of each counts. Results of one policy and one alpha
            are its seeds: the 95 % intervals of their means (Student's t) are drawn both ways.

    Raises:
        ValueError: two results have the same policy, alpha and seed, so they differ in something else.
    """
    curves = _by_policy_and_alpha(results)
    alphas = sorted({alpha for points in curves.values() for alpha in points})
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(alphas)))
    shades = dict(zip(alphas, colours, strict=True))
    drawn = []
    for (name, points), marker in zip(curves.items(), cycle(MARKERS), strict=False):
        means = {alpha: _mean_over_seeds(rows) for alpha, rows in sorted(points.items())}
        for alpha, (flops, accuracy) in means.items():
            looks = {"xerr": flops[1], "yerr": accuracy[1], "fmt": marker, "color": shades[alpha]}
            drawn.append(Series([flops[0]], [accuracy[0]], {**looks, "zorder": 3}))
        x, y = ([mean for mean, _ in column] for column in zip(*means.values(), strict=True))
        drawn.append(Series(x, y, {"fmt": "-", "color": "0.6", "zorder": 1}))
        label = f"{name} ({_number_of_seeds(points)})"
        drawn.append(Series([], [], {"fmt": f"{marker}-", "color": "0.6"}, label))
    for alpha in alphas:
        drawn.append(Series([], [], {"fmt": "o", "color": shades[alpha]}, f"α = {alpha:g}"))
    return trade_off(drawn)


def _mean_over_seeds(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[float, float], tuple[float, float]]:
    """FLOPs and accuracy in percent, each as mean and half width."""
    flops, accuracy = ([100 * row[key] for row in rows] for key in ("compute_flops", "accuracy"))
    return mean_interval(flops), mean_interval(accuracy)


def _number_of_seeds(points: Mapping[float, Sequence[Any]]) -> str:
    fewest, most = (pick(map(len, points.values())) for pick in (min, max))
    return f"{fewest}–{most} seeds" if fewest < most else f"{most} seed{'s' * (most > 1)}"


def _by_policy_and_alpha(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[float, list[Any]]]:
    curves: dict[str, dict[float, list[Any]]] = defaultdict(lambda: defaultdict(list))
    seen = set()
    for result in results:
        row = result["policies"][-1]
        key = (row["name"], result["alpha"], result["seed"])
        if key in seen:
            raise ValueError(
                f"two results of {key[0]} with alpha {key[1]:g} and seed {key[2]}; expected one per seed: "
                "draw runs that differ in other flags separately"
            )
        seen.add(key)
        curves[row["name"]][result["alpha"]].append(row)
    return curves


def pareto_front(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The Pareto front: the entries that no other one dominates in accuracy and FLOPs, by FLOPs.

    Bounds, which are not policies, are left out.
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
    """Draw accuracy against FLOPs of all policies, with the best accuracy at each budget as a step line.

    Args:
        entries: `name`, `accuracy`, `compute_flops`; intervals `accuracy_ci95` and `compute_flops_ci95`
            if there are any, (low, high) or half widths; `bound` is true for an oracle, which is drawn as a
            hollow star. Members of a family, such as "random 90%" and "random 80%" or those with the same
            `series`, are joined to a curve.
        lowest: the accuracy at which the y axis begins, to look closer at the good ones.
    """
    families: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        families[entry.get("series") or PLACE_IN_FAMILY.sub("", entry["name"])].append(entry)
    drawn = _families(families)
    if front := pareto_front(entries):
        x, y = ([100 * entry[key] for entry in front] for key in ("compute_flops", "accuracy"))
        end = 100 * max(entry["compute_flops"] for entry in entries)
        looks = {"fmt": "-", "drawstyle": "steps-post", "color": "0.35", "zorder": 1}
        drawn.insert(0, Series([*x, end], [*y, y[-1]], looks, "Pareto frontier"))
    figure = trade_off(drawn, (8.5, 4.4))
    if lowest > 0:
        highest = max((entry["accuracy"] for entry in entries), default=1.0)
        top = 100 * (highest + 0.08 * max(highest - lowest, 0.01))
        figure.axes[0].set_ylim(100 * lowest, top)
    return figure


def _families(families: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Series]:
    """Each family's points with intervals, joined if there are several."""
    names = {
        family: members[0]["name"] if len(members) == 1 else family for family, members in families.items()
    }
    colours, drawn = palette(names.values()), []
    for (family, members), marker in zip(families.items(), cycle(MARKERS), strict=False):
        members = sorted(members, key=lambda entry: entry["compute_flops"])
        bound = members[0].get("bound")
        looks = {
            "fmt": ("*" if bound else marker) + "-" * (len(members) > 1),
            "ms": 13 if bound else 6,
            "mfc": "none" if bound else None,
            "color": colours[names[family]],
            "zorder": 2,
        }
        drawn.append(percent_series(members, names[family], **looks))
    return drawn
