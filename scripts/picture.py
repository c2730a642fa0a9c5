"""Picture of the single networks: accuracy against FLOPs per image, so that all depths share an axis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from agents.common.entries import wider_interval
from skipnet_rl import plots
from skipnet_rl.catalogue import PLAIN
from skipnet_rl.flops import network_macs
from skipnet_rl.resnet import ResNet
from skipnet_rl.statistics import half_width, wilson_interval
from skipnet_rl.weights import FIXED

PUBLISHED = {  # accuracy, depth, share of that network's computation
    "cifar10": {
        "SkipNet-38": (0.9275, 38, 0.703),  # Wang et al. 2018, the authors' README; shares of blocks
        "SkipNet-74": (0.9277, 74, 0.523),
        "SkipNet-110": (0.9330, 110, 0.495),
        "BlockDrop-110": (0.936, 110, 0.36),  # Wu et al. 2018, the authors' README; share of FLOPs
        "ResNet-110": (0.936, 110, 1.0),  # He et al. 2016, table 6: the best of five runs, 93.57
    },
}
# plain ResNets by depth, 300 epochs: https://github.com/D-X-Y/AutoDL-Projects, docs/BASELINE.md
PLAIN_PUBLISHED = {
    "cifar10": {20: 0.9274, 32: 0.9381, 56: 0.9426, 110: 0.9486},
    "cifar100": {20: 0.6862, 32: 0.7044, 56: 0.7318, 110: 0.7482},
}
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "svhn": "SVHN", "imagenet": "ImageNet"}
ABOVE = {"SkipNet-38", "BlockDrop-110"}  # names above their points, to cover no other
COLOURS = {38: "tab:blue", 74: "tab:orange", 110: "tab:green", 152: "tab:red"}  # networks that skip
GATES = {  # name and marker
    "rnn": ("RNNGate", "o"),
    "ff1": ("FFGate-I", "v"),
    "ff2": ("FFGate-II", "^"),
    FIXED: ("one route for all images", "X"),
}
TUNED_ON = ("-taught", "-ensemble", "-fixed")  # ends of names: tuned further than the rows
HOLLOW = {"fmt": "D", "mfc": "none", "color": "black", "zorder": 1.9}  # published figures, below ours
TICKS = (50, 80, 130, 200, 300, 500, 700)


class Point(NamedTuple):
    """A network: MFLOPs per image; accuracy, and half the width of its interval, in percent."""

    flops: float
    accuracy: float
    half: float


class Kind(NamedTuple):
    """What a marker stands for: depth, gate (None for plain networks), and whether there was a teacher."""

    depth: int | None
    gate: str | None
    taught: bool


@cache
def mega_flops(depth: int) -> float:
    """Return the millions of FLOPs (2 × MACs) of the plain CIFAR network for one image."""
    return 2e-6 * network_macs(ResNet(depth)).total


def picture(
    rows: Sequence[Mapping[str, Any]],
    networks: Sequence[Mapping[str, Any]],
    dataset: str = "cifar10",
) -> Figure:
    """Draw accuracy against FLOPs per image, one series per `Kind`.

    Args:
        rows: rows of results.json.
        networks: entries of the index of shipped networks and of not_shipped.json.
        dataset: data set of the rows; networks for other data sets are left out.
    """
    networks = [entry for entry in networks if entry["dataset"] == dataset]
    kinds: dict[Kind, list[Point]] = defaultdict(list)
    for kind, point in (*points_of_rows(rows, networks), *points_of_networks(networks, rows)):
        kinds[kind].append(point)
    published = {
        name: (share * mega_flops(depth), 100 * accuracy)
        for name, (accuracy, depth, share) in PUBLISHED.get(dataset, {}).items()
    }
    figure = plots.trade_off(
        [
            *_series(kinds),
            *(plots.Series([x], [y], HOLLOW) for x, y in published.values()),
            *_legend(kinds, bool(published)),
        ],
        size=(8.5, 4.4),
        x_label="MFLOPs per image (2 × MACs, gates included)",
        y_label=f"{DATASETS.get(dataset, dataset)} test accuracy (%)",
    )
    axes = figure.axes[0]
    for name, at in published.items():
        place = {"xytext": (0, 7), "ha": "center"} if name in ABOVE else {"xytext": (6, 4)}
        axes.annotate(name, at, textcoords="offset points", fontsize=8, **place)
    axes.set_xscale("log")
    axes.set_xticks(TICKS, map(str, TICKS))
    axes.minorticks_off()
    return figure


def _series(kinds: Mapping[Kind, Sequence[Point]]) -> Iterator[plots.Series]:
    """Yield the points of each kind with their intervals over images or seeds."""
    for kind, points in kinds.items():
        colour, marker = "0.3", "s:"
        if kind.gate:
            colour, (_, marker) = COLOURS.get(kind.depth or 0, "black"), GATES[kind.gate]
        flops, accuracies, halves = zip(*sorted(points), strict=True)
        looks = {"fmt": marker, "color": colour, "mfc": colour if kind.taught else "white"}
        yield plots.Series(flops, accuracies, {"yerr": halves, "elinewidth": 0.6, **looks})


def points_of_rows(
    rows: Iterable[Mapping[str, Any]], networks: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[Kind, Point]]:
    """Yield the rows of HRL, and plain rows of depths for which no plain network is listed."""
    depths = {entry["depth"] for entry in networks if is_plain(entry)}
    for row in rows:
        taught = bool(row["distillation"])
        if row["name"] == "HRL":
            kind = Kind(row["depth"], row["gate"].split(",")[0], taught)
        elif row["name"] == "all blocks" and row["depth"] not in depths:
            kind = Kind(None, None, taught)
        else:
            continue
        yield kind, Point(row["mega_flops"], 100 * row["accuracy"], 100 * half_width(wider_interval(row)))


def is_plain(entry: Mapping[str, Any]) -> bool:
    """Whether a listed network has no gates and is more than a step towards another one."""
    return entry.get("stage") in PLAIN


def points_of_networks(
    networks: Iterable[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Kind, Point]]:
    """Yield the listed networks that are plain, or that the rows of the table lack.

    These are the networks that were tuned further than the rows; without rows, all networks with gates.
    """
    for entry in networks:
        if is_plain(entry):
            kind = Kind(None, None, "distilled" in entry["stage"])
        elif entry["name"].endswith(TUNED_ON) or (entry.get("stage") == "hrl" and not rows):
            kind = Kind(entry["depth"], entry["kind"], "--teacher" in entry["command"])
        else:
            continue
        flops = mega_flops(entry["depth"]) * entry.get("compute_flops", 1)
        accuracy, count = entry["test_accuracy"], entry["test_images"]
        half = half_width(wilson_interval(count * accuracy, count))
        yield kind, Point(flops, 100 * accuracy, 100 * half)


def _legend(kinds: Iterable[Kind], published: bool) -> Iterator[plots.Series]:
    """Yield series without points for the legend of colours and markers."""

    def line(label: str, fmt: str, colour: str = "0.3", **looks: Any) -> plots.Series:
        return plots.Series([], [], {"fmt": fmt, "color": colour, **looks}, label)

    if published:
        yield plots.Series([], [], HOLLOW, "published")
    yield line("plain networks, ours", "s:")
    for depth in sorted({kind.depth for kind in kinds if kind.depth is not None}):
        yield line(f"ResNet-{depth} with gates, ours", "o", COLOURS.get(depth, "black"))
    drawn = {kind.gate for kind in kinds}
    for gate, (name, marker) in GATES.items():
        if gate in drawn:
            yield line(name, marker)
    yield line("hollow: trained without a teacher", "o", mfc="white")
