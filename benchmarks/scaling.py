"""Time of an episode by depth, batch size and execution rate; peak memory.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --device cuda --batch 1024 --batches 128 1024 4096

Times are milliseconds per image of one episode of the vector environment, with untrained weights. Memory is
the peak of the environment and of training, see `benchmarks.memory` (on CIFAR-10 if it is in `--data-dir`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from matplotlib.figure import Figure

import envs  # noqa: F401  (registers the ids)
from agents.common.cli import main_with_named_errors
from agents.common.tables import markdown
from benchmarks import measure
from benchmarks.memory import Case, amount, peak
from skipnet_rl import plots
from skipnet_rl.data import resolve_dataset
from skipnet_rl.device import resolve_precision
from skipnet_rl.resnet import CIFAR_DEPTHS

RATES = (0.0, 0.25, 0.5, 0.75, 1.0)
TURNS = {"depth": "depth", "batch": "batch size (depth {depth})", "rate": "share executed (depth {depth})"}


@dataclass(frozen=True)
class Options(measure.Timed, measure.Paged):
    """Time episodes of several sizes."""

    data_dir: Path | None = None
    """folder of CIFAR-10's official files (default: $SKIPNET_DATA, else ./data)"""
    precision: str = "auto"
    """bf16, fp32, or auto"""
    depth: int = 110
    """depth of the network when batch size or rate varies"""
    depths: tuple[int, ...] = CIFAR_DEPTHS
    """depths to time with `--batch`"""
    batch: int = 128
    """number of sub-environments when depth or rate varies"""
    batches: tuple[int, ...] = (1, 4, 16, 64, 128, 256, 512)
    """numbers of sub-environments to time with `--depth`"""
    repeats: int = 3
    """turns of each candidate"""


def episode(depth: int, count: int, rate: float, options: Options) -> Callable[[], None]:
    """Return a call that plays one episode, each block executed with probability `rate`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about untrained weights, which are as fast
        env: Any = gym.make_vec(
            f"SkipResNet{depth}-v0",
            count,
            dataset="rendered-digits",
            split="test",
            weights=None,
            array="torch",
            device=options.device,
            precision=options.precision,
        )
    env.reset(seed=0)
    steps = env.unwrapped.lockstep.mdp.num_decisions
    draws = torch.rand(steps, count, generator=torch.Generator("cpu").manual_seed(0), device="cpu") < rate
    actions = draws.to(env.unwrapped.lockstep.device)

    def play() -> None:
        for action in actions:
            env.step(action)

    return play


def cases(options: Options) -> dict[str, tuple[str, float, int, int, float]]:
    """Return axis, position on it, depth, batch size and rate of each candidate, by name."""
    found: dict[str, tuple[str, float, int, int, float]] = {}
    for rate in (1.0, 0.5):
        for depth in options.depths:
            found[f"depth {depth}, rate {rate}"] = ("depth", depth, depth, options.batch, rate)
        for count in options.batches:
            found[f"batch {count}, rate {rate}"] = ("batch", count, options.depth, count, rate)
    for rate in RATES:
        found[f"rate {rate}"] = ("rate", rate, options.depth, options.batch, rate)
    return found


def memory(options: Options, device: torch.device) -> dict[str, dict[str, Any]]:
    """Return the peak memory of the environment and of training."""
    dataset, _ = resolve_dataset("auto", options.data_dir)
    precision = resolve_precision(options.precision, device)
    return {
        task: peak(
            Case(task, options.depth, options.batch, dataset, options.data_dir, str(device), precision)
        )
        for task in ("environment", "training")
    }


def picture(found: Mapping[str, Any]) -> Figure:
    """Draw the time per image against depth, batch size and rate."""
    figure = Figure(figsize=(10, 3.2), layout="constrained", dpi=120)
    axes = figure.subplots(1, 3)
    for axis, (kind, label) in zip(axes, TURNS.items(), strict=True):
        lines: dict[str, list[tuple[float, float]]] = {}
        for case in found["cases"].values():
            if case["axis"] == kind:
                name = "" if kind == "rate" else f"{case['rate']:.0%} executed"
                lines.setdefault(name, []).append((case["at"], 1e3 * case["median"] / case["batch"]))
        for name, points in lines.items():
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set_xlabel(label.format(**fixed(found)))
        if kind == "batch":
            axis.loglog()
        else:
            axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        if kind != "rate":
            axis.legend(frameon=False)
    axes[0].set_ylabel("ms per image")
    return figure


def fixed(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the candidate whose depth and batch size are the ones held fixed."""
    return found["cases"]["rate 1.0"]


def table(found: Mapping[str, Any]) -> str:
    """Return the result as a Markdown table."""
    timings, (depth, batch) = found["cases"], (fixed(found)[key] for key in ("depth", "batch"))

    def cost(name: str) -> str:
        return f"{1e3 * timings[name]['median'] / timings[name]['batch']:.3f}"

    lines = []
    for axis, head in (("depth", f"depth (batch {batch})"), ("batch", f"batch (depth {depth})")):
        places = dict.fromkeys(case["at"] for case in timings.values() if case["axis"] == axis)
        rows = [[str(at), *(cost(f"{axis} {at}, rate {rate}") for rate in (1.0, 0.5))] for at in places]
        lines.append(markdown([head, "all executed, ms per image", "half executed"], rows, numbers=True))
    rates = [[f"{rate:.0%}", cost(f"rate {rate}")] for rate in RATES]
    lines.append(markdown([f"executed (depth {depth}, batch {batch})", "ms per image"], rates, numbers=True))
    parts = [
        f"{task} {amount(use['peak'])} MiB on {use['dataset']} ({use['imports']:,.0f} of it before the run)"
        for task, use in found["memory"].items()
    ]
    return "\n".join(lines) + f"\nMemory, ResNet-{depth}, batch {batch}, peak: {'; '.join(parts)}.\n"


def main(options: Options) -> dict[str, Any]:
    """Measure, print and write the result."""
    device = options.start()
    name = f"scaling-{device.type}"
    options.check_page(name)
    used = memory(options, device)  # first, since a child's peak starts at its parent's size
    chosen = cases(options)
    runs = {name: episode(*case[2:], options) for name, case in chosen.items()}
    timings = measure.plain(measure.take_turns(runs, options.repeats, device))
    found = {
        "device": device.type,
        "precision": resolve_precision(options.precision, device),
        "repeats": options.repeats,
        "cases": {
            name: {"axis": axis, "at": at, "depth": depth, "batch": batch, "rate": rate, **timings[name]}
            for name, (axis, at, depth, batch, rate) in chosen.items()
        },
        "memory": used,
    }
    measure.publish(name, found, table(found), options)
    plots.save_figure(picture(found), options.folder() / f"{name}.png")
    return found


if __name__ == "__main__":
    main_with_named_errors(Options, main)
