"""Picture in the README: what choosing by the image is worth, after an answer and inside a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from scripts.picture import (
    DATASETS,
    PLAIN_PUBLISHED,
    PUBLISHED,
    Kind,
    Point,
    mega_flops,
    points_of_networks,
    points_of_rows,
)
from skipnet_rl.plots import BLUE, GREEN, GREY, INK, titled_panels
from skipnet_rl.statistics import half_width
from skipnet_rl.weights import FIXED

Place = tuple[float, float]
Beside = tuple[float, float, str]  # offset of a label from its point, in typographic points: x, y, alignment
TITLE = "Choosing by the image pays once there is an answer"
SUBTITLE = (
    "Test images; thin bars are 95 % intervals. Chains: at each budget the best on validation images.\n"
    "Numbers are depths. Hollow: published by others; those plain networks were trained for 300 epochs."
)
TICKS = (50, 100, 200, 500)
ABOVE: Beside = (-4, 5, "right")
BELOW: Beside = (5, -12, "left")
RIGHT: Beside = (8, -4, "left")
CROWDED = {("cifar10", 38), ("cifar100", 32)}  # plain networks with points below: their labels go above
CHAINS = "chains of networks"
MARKERS = {"SkipNet": "D", "BlockDrop": "^"}  # of published figures


class Panel(NamedTuple):
    """The contents of one panel.

    Attributes:
        dataset: name of the data set.
        rows: rows of results.json.
        networks: entries of the index of shipped networks and of not_shipped.json; those for other data sets
            are left out.
        chains: rows of chains.json.
    """

    dataset: str
    rows: Sequence[Mapping[str, Any]]
    networks: Sequence[Mapping[str, Any]]
    chains: Sequence[Mapping[str, Any]]


def picture(panels: Sequence[Panel]) -> Figure:
    """Draw chains, plain networks, networks with gates, and published figures, one panel per data set."""
    figure, axes = titled_panels(TITLE, SUBTITLE, len(panels))
    for each, panel in zip(axes, panels, strict=True):
        _draw(each, panel)
    axes[0].set_ylabel("accuracy (%)")
    handles = {
        label: handle
        for each in axes
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True)
    }
    labels = sorted(handles, key=lambda label: label != CHAINS)  # chains first, others as drawn
    axes[-1].legend(map(handles.get, labels), labels, loc="lower right", frameon=False, fontsize=9)
    return figure


def _draw(axes: Any, panel: Panel) -> None:
    networks = [entry for entry in panel.networks if entry["dataset"] == panel.dataset]
    listed = [*points_of_rows(panel.rows, networks), *points_of_networks(networks, panel.rows)]
    axes.set_title(DATASETS.get(panel.dataset, panel.dataset), loc="left", fontsize=11, color=INK)
    axes.set(xscale="log", xlim=(44, 800), xlabel="MFLOPs per image")
    axes.set_xticks(TICKS, map(str, TICKS))
    axes.minorticks_off()
    if panel.chains:
        _draw_chains(axes, best_chains(panel.chains))
    _draw_gated(axes, gated_networks(listed))
    _draw_plain(axes, panel.dataset, plain_networks(listed))
    _draw_published(axes, panel.dataset)
    axes.margins(y=0.06)


def plain_networks(listed: Iterable[tuple[Kind, Point]]) -> list[Place]:
    """Return cost and accuracy of one plain network per cost, preferring those that had teachers."""
    best: dict[float, tuple[bool, float]] = {}
    for kind, point in listed:
        if kind.gate is None:
            best[point.flops] = max(best.get(point.flops, (False, 0.0)), (kind.taught, point.accuracy))
    return sorted((flops, accuracy) for flops, (_, accuracy) in best.items())


def gated_networks(listed: Iterable[tuple[Kind, Point]]) -> list[Place]:
    """Return cost and accuracy of the networks with gates: those that had teachers, or all if none had."""
    gated = [(kind, point) for kind, point in listed if kind.gate not in (None, FIXED)]
    taught = any(kind.taught for kind, _ in gated)
    return sorted((point.flops, point.accuracy) for kind, point in gated if kind.taught == taught)


def best_chains(rows: Iterable[Mapping[str, Any]]) -> list[Point]:
    """Return the chain that is most accurate on validation images at each budget, in the order of cost."""
    best: dict[tuple[str, float], Mapping[str, Any]] = {}
    for row in rows:
        budget = (row["networks"][-1], row["budget"])
        if budget not in best or row["val_accuracy"] > best[budget]["val_accuracy"]:
            best[budget] = row
    return sorted(
        Point(row["mega_flops"], 100 * row["accuracy"], 100 * half_width(row["accuracy_ci95"]))
        for row in best.values()
    )


def _draw_gated(axes: Any, gated: Sequence[Place]) -> None:
    """Draw networks with gates as points."""
    if gated:
        looks = {"ls": "", "marker": "o", "ms": 5.5, "color": BLUE, "alpha": 0.45, "mew": 0}
        axes.plot(*zip(*gated, strict=True), **looks, label="one network with gates")


def _draw_plain(axes: Any, dataset: str, plain: Sequence[Place]) -> None:
    """Draw plain networks on a line, labelled with their depths."""
    if plain:
        axes.plot(*zip(*plain, strict=True), color=INK, lw=1.8, marker="s", ms=5, label="plain ResNets")
    for place in plain:
        depth = depth_of(place)
        _name(axes, str(depth), place, _beside(dataset, depth), INK)


def _beside(dataset: str, depth: int) -> Beside:
    return ABOVE if (dataset, depth) in CROWDED else BELOW


def depth_of(place: Place) -> int:
    """Return the depth of the plain network with this cost."""
    return min(range(8, 212, 6), key=lambda depth: abs(mega_flops(depth) - place[0]))


def _draw_published(axes: Any, dataset: str) -> None:
    """Draw published figures with their depths: plain networks on a dashed curve, others as hollow points."""
    looks = {"mfc": "white", "color": GREY, "zorder": 6}
    if plain := PLAIN_PUBLISHED.get(dataset):
        places = [(mega_flops(depth), 100 * accuracy) for depth, accuracy in plain.items()]
        label = "plain ResNets, published"
        axes.plot(*zip(*places, strict=True), ls="--", lw=1.2, marker="s", ms=5, **looks, label=label)
        for depth, place in zip(plain, places, strict=True):
            _name(axes, str(depth), place, _beside(dataset, depth), GREY)
    for name, (accuracy, depth, share) in PUBLISHED.get(dataset, {}).items():
        method, _ = name.split("-")
        if method in MARKERS:
            point = share * mega_flops(depth), 100 * accuracy
            axes.plot(*point, MARKERS[method], ms=6.5, **looks, label=f"{method}, published")
            _name(axes, str(depth), point, RIGHT, GREY)


def _draw_chains(axes: Any, points: Sequence[Point]) -> None:
    """Draw the chains on a line with their intervals."""
    looks = {"fmt": "o-", "color": GREEN, "lw": 2.5, "ms": 7, "elinewidth": 0.7, "zorder": 5}
    axes.errorbar(*zip(*points, strict=True), **looks, label=CHAINS)


def _name(axes: Any, text: str, place: Place, beside: Beside, colour: str) -> None:
    """Write a label beside its point."""
    x, y, side = beside
    axes.annotate(text, place, (x, y), textcoords="offset points", ha=side, color=colour, fontsize=9)
