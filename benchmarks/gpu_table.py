"""Tables of `benchmarks.gpu`: what was measured, what was not, and the command that measures it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from agents.common.tables import markdown
from benchmarks import checks, compiling, memory, operators, scaling
from skipnet_rl.flops import network_macs
from skipnet_rl.resnet import ResNet

NOT_MEASURED = "not measured"
Show = Callable[[Mapping[str, Any]], str | None]  # a part's results as text; None if not reached
LARGE = (34, 50, 101)  # depths of ImageNet networks
IMAGES, EPOCHS = 1_281_167, (120, 40)  # images of ImageNet; epochs of SP and HRL in the authors' code
CARDS = 8
DETAILS: dict[str, tuple[str, Show]] = {
    "Tests": ("tests", checks.table),
    "Ways to take a pretraining step": ("compiling", compiling.table),
    "Ways to take an HRL step": ("compiling-hybrid", compiling.table),
    "Where a pretraining step's time goes": ("operators", operators.table),
    "Where an HRL step's time goes": ("operators-hybrid", operators.table),
    "Peak memory": ("memory", memory.table),
    "An episode of the environment": ("scaling", scaling.table),
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of the networks and batches of `benchmarks.gpu`.

    Attributes:
        depth: depth of the network in most parts.
        envs: three numbers of sub-environments.
        batch: episodes per training step.
        depths, batches: depths and batch sizes for which memory is measured.
        large, large_batch: depth of the ImageNet network, and its images per step.
        repeats: turns of each candidate.
        ways, ways_large: ways to compile a step of the two networks, see `compiling` (None: all).
        select: tests to run, see `checks` (default: all).
    """

    depth: int
    envs: tuple[int, ...]
    batch: int
    depths: tuple[int, ...]
    batches: tuple[int, ...]
    large: int
    large_batch: int
    repeats: int
    ways: tuple[str, ...] | None = None
    ways_large: tuple[str, ...] = ("graphs",)
    select: str = ""


@dataclass(frozen=True)
class Row:
    """A row of the main table: label, part, how the part's results are shown, and the aim on a GPU."""

    what: str
    part: str
    shown: Show
    aim: str = ""


def ratio(found: Mapping[str, Any], slow: str, fast: str) -> str:
    """Return the speed of candidate `fast` relative to `slow`, as text."""
    return f"{found['timings'][slow]['median'] / found['timings'][fast]['median']:.2f}"


def steps_per_second(found: Mapping[str, Any]) -> str:
    """Return the steps per second of all sub-environments, with every block executed."""
    return f"{found['num_envs'] * found['decisions'] / found['timings']['all']['median']:,.0f}"


def images_per_second(found: Mapping[str, Any]) -> str | None:
    """Return images per second of an uncompiled step, and the seconds of an epoch."""
    reached = compiling.speed(found, "eager")
    if reached is None:
        return None
    per_second, _ = reached
    return f"{per_second:,.0f} ({compiling.EPOCH / per_second:,.1f} s per {compiling.EPOCH:,} images)"


def best(found: Mapping[str, Any]) -> str:
    """Return the fastest way to take a step and its speed relative to the uncompiled step."""
    known = {name: compiling.speed(found, name) for name in found["ways"] if name != "eager"}
    ratios = {name: reached[1] for name, reached in known.items() if reached}
    if not ratios:
        return "no other way could be measured"
    name = max(ratios, key=lambda name: ratios[name])
    first = f"{found['ways'][name]['first']:,.0f} s for the first steps"
    return f"{ratios[name]:.2f} ({compiling.LABELS[name]}, {first})"


def busy(found: Mapping[str, Any]) -> str:
    """Return the share of a step in which the device computes, and the step's milliseconds."""
    median = found["timings"]["step"]["median"]
    kernels = f", {found['kernels']:,.0f} kernels" if found["device"] == "cuda" else ""
    return f"{found['seconds'] / median:.0%} of {1e3 * median:,.1f} ms{kernels}"


def hybrid_step(found: Mapping[str, Any]) -> str:
    """Return milliseconds of an HRL step; speed relative to all blocks executed and to published code."""
    best_precision = found["precision"]
    half, every = (f"{name}, {best_precision}" for name in ("half", "all"))
    milliseconds = 1e3 * found["timings"][half]["median"]
    over_all, over_published = ratio(found, every, half), ratio(found, "published, fp32", half)
    return f"{milliseconds:,.1f} ms; {over_all} × all executed, {over_published} × as published"


def rows(sizes: Sizes) -> list[Row]:
    """Return the rows of the main table."""
    network = f"ResNet-{sizes.depth}, batch {sizes.batch:,}"
    small, middle, large = (f"environment-{count}" for count in sizes.envs)
    share = {small: "", middle: "", large: "≥ 0.8"}
    rate = {small: "", middle: "≥ 2,000,000", large: ""}
    gain = {small: "", middle: "", large: "≥ 1.5"}
    aim = f"≥ 3, and ≤ 1.2 s per {compiling.EPOCH:,} images"
    found = [Row("tests of the device", "tests", checks.summary, "all passed")]
    for count, name in zip(sizes.envs, (small, middle, large), strict=True):
        many = f"{count:,} sub-environments"
        found += [
            Row(f"environment's speed relative to the network's, {many}", name, b_over_a, share[name]),
            Row(f"steps per second, {many}", name, steps_per_second, rate[name]),
            Row(f"speed, half executed relative to all, {many}", name, half_over_all, gain[name]),
        ]
    return [
        *found,
        Row(f"pretraining, {network}, images per second", "compiling", images_per_second, ""),
        Row(f"pretraining, {network}, fastest way relative to uncompiled", "compiling", best, aim),
        Row(f"pretraining, {network}, device busy", "operators", busy),
        Row(f"HRL step, {network}, half executed", "training", hybrid_step),
        Row(f"HRL step, {network}, fastest way relative to uncompiled", "compiling-hybrid", best, "≥ 2"),
        Row(f"HRL step, {network}, device busy", "operators-hybrid", busy),
    ]


def b_over_a(found: Mapping[str, Any]) -> str:
    """Return the environment's speed, every block executed, relative to the network's."""
    return ratio(found, "plain", "all")


def half_over_all(found: Mapping[str, Any]) -> str:
    """Return the speed of the environment with half of the blocks executed, relative to all."""
    return ratio(found, "all", "half")


def shown(parts: Mapping[str, Any], name: str, show: Show) -> str:
    """Return a part's results as text, or "not measured" with the reason if there is one."""
    part = parts.get(name, {"found": None, "error": None})
    text = None if part["found"] is None else show(part["found"])
    if text is not None:
        return text
    return f"{NOT_MEASURED}: {part['error']}" if part["error"] else NOT_MEASURED


@cache
def macs(depth: int) -> int:
    """Return the MACs of an ImageNet network for one image."""
    with torch.device("meta"):
        return network_macs(ResNet(depth, 1_000)).total


def imagenet(found: Mapping[str, Any], sizes: Sizes, command: str) -> str:
    """Estimate the hours of SkipNet's schedule for ImageNet on several cards.

    One network is measured; the others are scaled from it by their MACs.
    """

    def hours(depth: int) -> Show:
        def of(measured: Mapping[str, Any]) -> str | None:
            reached = [compiling.speed(measured, name) for name in measured["ways"]]
            speeds = [each[0] for each in reached if each]
            if not speeds:
                return None
            per_second = max(speeds) * macs(sizes.large) / macs(depth)
            return f"{sum(EPOCHS) * IMAGES / per_second / CARDS / 3600:,.1f}"

        return of

    on_gpu = found["device"] == "cuda"
    table = [
        [
            f"ResNet-{depth}",
            f"{sum(EPOCHS) * IMAGES * 6 * macs(depth) / 1e18:,.1f}",
            shown(found["parts"], "imagenet", hours(depth)) if on_gpu else NOT_MEASURED,
            f"`{command}`" if depth == sizes.large else f"ResNet-{sizes.large}'s, scaled by MACs",
        ]
        for depth in LARGE
    ]
    columns = ("network", "10¹⁸ FLOPs", f"hours on {CARDS} cards", "command")
    return markdown(columns, table).replace("\\`", "`")


def main_table(found: Mapping[str, Any], commands: Mapping[str, str]) -> str:
    """Return a row per figure as a Markdown table.

    Args:
        found: the results of `benchmarks.gpu`.
        commands: the command line of each part, by its name.
    """
    sizes, parts, on_gpu = Sizes(**found["sizes"]), found["parts"], found["device"] == "cuda"
    where = f"{found['card'] or found['device']}, PyTorch {found['torch']}" if parts else found["device"]
    columns = [where, "measured", *(["aim"] if on_gpu else []), "command"]
    lines = [
        [
            row.what,
            in_a_row(parts, row),
            *([row.aim] if on_gpu else []),
            f"`{commands[row.part]}`",
        ]
        for row in rows(sizes)
    ]
    return markdown(columns, lines).replace("\\`", "`")


def in_a_row(parts: Mapping[str, Any], row: Row) -> str:
    """Return a row's result, with the error of its part if that did not finish."""
    text = shown(parts, row.part, row.shown)
    error = parts[row.part]["error"] if row.part in parts else None
    return f"{text}; {error}" if error and not text.startswith(NOT_MEASURED) else text


def details(found: Mapping[str, Any], commands: Mapping[str, str]) -> str:
    """Return the tables of the parts that were run, in Markdown; arguments as in `main_table`."""
    parts, text = found["parts"], []
    for title, (name, show) in DETAILS.items():
        if name not in parts:
            continue
        detail = shown(parts, name, show)
        if detail.startswith(NOT_MEASURED):
            detail = f"{detail}; `{commands[name]}`\n"
        elif parts[name]["error"]:
            detail = f"{detail}\nThe rest is not measured: {parts[name]['error']}.\n"
        text.append(f"**{title}**\n\n{detail}")
    if "imagenet" in parts:
        epochs = f"{EPOCHS[0]} epochs of SP and {EPOCHS[1]} of HRL"
        title = f"**ImageNet on paper**: {epochs} with every block executed, on {CARDS} cards"
        text.append(f"{title}\n\n{imagenet(found, Sizes(**found['sizes']), commands['imagenet'])}")
    return "\n".join(text)
