"""The picture of the results: accuracy against FLOPs per image, so that all depths share an axis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from agents.common.entries import wider_interval
from skipnet_rl.flops import network_macs
from skipnet_rl.gated import FIXED
from skipnet_rl.plots.canvas import plain_axes
from skipnet_rl.resnet import ResNet
from skipnet_rl.statistics import half_width, wilson_interval
from skipnet_rl.weights import AUTO, find_entry, index

PUBLISHED = {  # accuracy, depth, share of that network's computation
    "SkipNet-38": (0.9275, 38, 0.703),  # Wang et al. 2018, the authors' README; shares of blocks
    "SkipNet-74": (0.9277, 74, 0.523),
    "SkipNet-110": (0.9330, 110, 0.495),
    "BlockDrop-110": (0.936, 110, 0.36),  # Wu et al. 2018, the authors' README; share of FLOPs
    "ResNet-110": (0.936, 110, 1.0),  # He et al. 2016, table 6: the best of five runs, 93.57
}
ABOVE = {"SkipNet-38", "BlockDrop-110"}  # names above their point; on its right they would cover another one
COLOURS = {38: "tab:blue", 74: "tab:orange", 110: "tab:green", 152: "tab:red"}  # of networks that skip
FIRST = {14: "*", 38: "P", 110: "d"}  # markers of cascades, by the depth of the first network
SECOND = {38: "tab:pink", 110: "tab:purple"}  # and their colours, by that of the second one
GATES = {  # name and marker
    "rnn": ("RNNGate", "o"), "ff1": ("FFGate-I", "v"), "ff2": ("FFGate-II", "^"),
    FIXED: ("one route for all images", "X"),
}  # fmt: skip
TUNED_ON = ("-taught", "-ensemble", "-fixed")  # ends of names of networks tuned on from rows of the table


class Point(NamedTuple):
    """A network: MFLOPs per image, accuracy and half the width of its interval in percent."""

    flops: float
    accuracy: float
    half: float


class Kind(NamedTuple):
    """What looks alike: depth and gate (None of a plain network), and whether it had a teacher."""

    depth: int | None
    gate: str | None
    taught: bool


@cache
def mega_flops(depth: int) -> float:
    """Millions of FLOPs (2 × MACs) of the plain CIFAR network, for one image."""
    return 2e-6 * network_macs(ResNet(depth)).total


def picture(rows: Sequence[Mapping[str, Any]], cascades: Sequence[Mapping[str, Any]] = ()) -> Figure:
    """Accuracy against FLOPs per image, a series for each `Kind` and each cascade.

    Args:
        rows: of results.json.
        cascades: of cascade.json.
    """
    series: dict[Kind, list[Point]] = defaultdict(list)
    for kind, point in (*points_of_rows(rows), *points_of_shipped()):
        series[kind].append(point)
    figure, axes = plain_axes(8.5, 4.4)
    style = {"capsize": 2, "lw": 1, "elinewidth": 0.6}
    for kind, points in series.items():
        colour, marker = "0.3", "s:"
        if kind.gate:
            colour, (_, marker) = COLOURS.get(kind.depth, "black"), GATES[kind.gate]
        axes.errorbar(*zip(*sorted(points), strict=True), fmt=marker, color=colour,
                      mfc=colour if kind.taught else "white", **style)  # fmt: skip
    for each in cascades:
        points = [
            Point(row["mega_flops"], 100 * row["accuracy"], 100 * half_width(row["accuracy_ci95"]))
            for row in each["rows"]
        ]
        colour, marker = looks_of(each)
        axes.errorbar(*zip(*points, strict=True), fmt=f"{marker}--", color=colour, **style)
    for name, (accuracy, depth, share) in PUBLISHED.items():
        point = (share * mega_flops(depth), 100 * accuracy)
        axes.plot(*point, "D", mfc="none", color="black")
        place = {"xytext": (0, 7), "ha": "center"} if name in ABOVE else {"xytext": (6, 4)}
        axes.annotate(name, point, textcoords="offset points", fontsize=8, **place)
    axes.set_xscale("log")
    ticks = [50, 80, 130, 200, 300, 500, 700]
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.set(xlabel="MFLOPs per image (2 × MACs, gates included)", ylabel="CIFAR-10 test accuracy (%)")
    handles = list(_legend(series, cascades))
    figure.legend(handles=handles, frameon=False, loc="outside right upper", fontsize=8)
    return figure


def points_of_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Kind, Point]]:
    """HRL, and plain networks of depths of which none is shipped."""
    for row in rows:
        taught = bool(row["distillation"])
        if row["name"] == "HRL":
            kind = Kind(row["depth"], row["gate"].split(",")[0], taught)
        elif row["name"] == "all blocks" and not find_entry(row["depth"], "cifar10", "projection"):
            kind = Kind(None, None, taught)
        else:
            continue
        yield kind, Point(row["mega_flops"], 100 * row["accuracy"], 100 * half_width(wider_interval(row)))


def points_of_shipped() -> Iterator[tuple[Kind, Point]]:
    """Shipped networks that are plain, or that went on from rows of the table."""
    for entry in index():
        if entry["dataset"] != "cifar10":
            continue
        if entry["stage"] in AUTO:
            kind = Kind(None, None, "distilled" in entry["stage"])
        elif entry["name"].endswith(TUNED_ON):
            kind = Kind(entry["depth"], entry["kind"], True)
        else:
            continue
        flops = mega_flops(entry["depth"]) * entry.get("compute_flops", 1)
        accuracy, count = entry["test_accuracy"], entry["test_images"]
        half = half_width(wilson_interval(count * accuracy, count))
        yield kind, Point(flops, 100 * accuracy, 100 * half)


def looks_of(each: Mapping[str, Any]) -> tuple[str, str]:
    """Colour and marker of a cascade."""
    first, second = each["depths"]
    return SECOND.get(second, "black"), FIRST.get(first, ".")


def _legend(kinds: Mapping[Kind, Any], cascades: Sequence[Mapping[str, Any]]) -> Iterator[Line2D]:
    """What colours and markers mean."""

    def line(label: str, marker: str, colour: str = "0.3", filled: bool = True, style: str = "") -> Line2D:
        face = colour if filled else "white"
        return Line2D([], [], color=colour, marker=marker, mfc=face, ls=style, lw=1, label=label)

    yield line("published", "D", "black", filled=False)
    yield line("plain networks, ours", "s", style=":")
    for depth in sorted({kind.depth for kind in kinds if kind.depth is not None}):
        yield line(f"ResNet-{depth} with gates, ours", "o", COLOURS.get(depth, "black"))
    drawn = {kind.gate for kind in kinds}
    for gate, (name, marker) in GATES.items():
        if gate in drawn:
            yield line(name, marker)
    yield line("hollow: trained without a teacher", "o", filled=False)
    for each in cascades:
        first, second = each["depths"]
        colour, marker = looks_of(each)
        gates = " with gates" if each["gates"] else ""
        yield line(f"ResNet-{first}{gates}, then ResNet-{second}, ours", marker, colour, style="--")
