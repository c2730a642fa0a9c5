"""The picture in the README: what choosing by the image is worth, after an answer and inside a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from scripts.picture import PUBLISHED, Point, mega_flops, points_of_networks, points_of_rows
from skipnet_rl.plots import BLUE, GREEN, GREY, INK, titled_axes
from skipnet_rl.statistics import half_width
from skipnet_rl.weights import FIXED

Place = tuple[float, float]
TITLE = "Choosing by the image pays once there is an answer"
SUBTITLE = (
    "CIFAR-10, 10,000 test images, ours with teachers. Thin bars: 95 % intervals over the images.\n"
    "Chains: at each budget the best on validation images. Hollow: published by the authors."
)
TICKS = (50, 75, 100, 150, 200, 300, 500, 700)
# where a name stands, in points from what it names: x, y, alignment
PLACES = {
    "SkipNet-38": (4, 7, "center"),
    "SkipNet-74": (8, -7, "left"),
    "SkipNet-110": (8, -3, "left"),
    "BlockDrop-110": (5, -15, "right"),
}
BESIDE = (8, -10, "left")
DEPTHS = {
    14: (-8, -4, "right"),
    20: BESIDE,
    38: (-6, 5, "right"),
    74: BESIDE,
    110: BESIDE,
    152: (0, -15, "center"),
}


def picture(
    rows: Iterable[Mapping[str, Any]],
    networks: Sequence[Mapping[str, Any]],
    chains: Sequence[Mapping[str, Any]],
) -> Figure:
    """Draw chains, plain networks, networks with gates, and published figures.

    Args:
        rows: rows of results.json.
        networks: entries of the index of shipped networks, and of not_shipped.json.
        chains: rows of chains.json.
    """
    figure, axes = titled_axes(TITLE, SUBTITLE)
    axes.set(xscale="log", xlim=(47, 780), ylim=(90.75, 94.55), ylabel="accuracy (%)")
    axes.set_xlabel("MFLOPs per image (2 × MACs, gates included)")
    axes.set_xticks(TICKS, map(str, TICKS))
    axes.minorticks_off()
    networks = [entry for entry in networks if entry["dataset"] == "cifar10"]
    listed = [*points_of_rows(rows, networks), *points_of_networks(networks)]
    taught = [(kind.gate, point) for kind, point in listed if kind.taught]
    plain = sorted({(point.flops, point.accuracy) for gate, point in taught if gate is None})
    gated = [(point.flops, point.accuracy) for gate, point in taught if gate not in (None, FIXED)]
    _draw_networks(axes, plain, gated)
    _draw_published(axes)
    _draw_chains(axes, best_chains(chains))
    return figure


def best_chains(rows: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The chain of each budget that is the most accurate on the validation images, in the order of cost."""
    best: dict[tuple[str, float], Mapping[str, Any]] = {}
    for row in rows:
        budget = (row["networks"][-1], row["budget"])
        if budget not in best or row["val_accuracy"] > best[budget]["val_accuracy"]:
            best[budget] = row
    return sorted(
        Point(row["mega_flops"], 100 * row["accuracy"], 100 * half_width(row["accuracy_ci95"]))
        for row in best.values()
    )


def _draw_networks(axes: Any, plain: Sequence[Place], gated: Sequence[Place]) -> None:
    """Plain networks on a line with their names, networks with gates as points."""
    axes.plot(*zip(*gated, strict=True), ls="", marker="o", ms=5.5, color=BLUE, alpha=0.45, mew=0)
    axes.plot(*zip(*plain, strict=True), color=INK, lw=1.8, marker="s", ms=5)
    for place in plain:
        depth = min(DEPTHS, key=lambda each: abs(mega_flops(each) - place[0]))
        _name(axes, str(depth), place, DEPTHS[depth], INK)
    axes.text(390, 92.95, "plain ResNets, by depth", color=INK, fontsize=10.5, va="top")
    axes.text(232, 92.37, "one network with gates", color=BLUE, fontsize=10.5)


def _draw_published(axes: Any) -> None:
    """Published figures as hollow points, each with its name."""
    for name, beside in PLACES.items():
        accuracy, depth, share = PUBLISHED[name]
        point = share * mega_flops(depth), 100 * accuracy
        axes.plot(*point, "D", mfc="white", color=GREY, ms=6.5, zorder=4)
        _name(axes, name, point, beside, GREY, fontsize=8)


def _draw_chains(axes: Any, points: Sequence[Point]) -> None:
    """The chains on a line with their intervals and accuracies."""
    flops, accuracies, halves = zip(*points, strict=True)
    axes.errorbar(flops, accuracies, halves, fmt="o-", color=GREEN, lw=2.5, ms=8, elinewidth=0.7, zorder=5)
    for point in points:
        _name(axes, f"{point.accuracy:.2f}", point[:2], (-6, 5, "right"), GREEN, weight="bold")
    text = "chains: the next network is asked where the answer is not sure"
    axes.text(49, 94.38, text, color=GREEN, fontsize=10.5, weight="bold", va="center")


def _name(
    axes: Any, text: str, place: Place, beside: tuple[float, float, str], colour: str, **looks: Any
) -> None:
    """Write a name beside what it names."""
    x, y, side = beside
    looks = {"textcoords": "offset points", "ha": side, "color": colour, "fontsize": 9, **looks}
    axes.annotate(text, place, (x, y), **looks)
