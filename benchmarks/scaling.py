"""Cost of an episode over depth, batch size and execution rate, and the memory that it takes.

    python -m benchmarks.scaling

Milliseconds per image of one episode of the vector environment, with untrained weights. Memory is the
resident set of a new process with the environment (CIFAR-10 if `--data-dir` has it), and of one that trains.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import tyro
from matplotlib.figure import Figure

import envs  # noqa: F401  (registers the ids)
from agents.common.tables import markdown
from agents.hybrid_reinforce import Args, Learner, train_step
from benchmarks import measure
from skipnet_rl import plots
from skipnet_rl.data import load_images, resolve_dataset
from skipnet_rl.device import resolve_precision
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.resnet import CIFAR_DEPTHS, ResNet

DEPTH, BATCH = 110, 128
BATCHES = (1, 4, 16, 64, 128, 256, 512)
RATES = (0.0, 0.25, 0.5, 0.75, 1.0)
TURNS = {"depth": "depth", "batch": "batch size (depth 110)", "rate": "share executed (depth 110)"}


@dataclass(frozen=True)
class Options(measure.Options):
    """Time episodes of several sizes."""

    data_dir: Path | None = None
    """folder of CIFAR-10's official files (default: $SKIPNET_DATA, else ./data)"""
    precision: str = "auto"
    """bf16, fp32, or auto"""
    repeats: int = 3
    """turns of each candidate"""


def episode(depth: int, count: int, rate: float, options: Options) -> Callable[[], None]:
    """A call that plays one episode in which each block is executed with probability `rate`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # untrained weights are as fast
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


def cases() -> dict[str, tuple[str, float, int, int, float]]:
    """Axis, position on it, depth, batch and rate of each candidate, by name."""
    found: dict[str, tuple[str, float, int, int, float]] = {}
    for rate in (1.0, 0.5):
        for depth in CIFAR_DEPTHS:
            found[f"depth {depth}, rate {rate}"] = ("depth", depth, depth, BATCH, rate)
        for count in BATCHES:
            found[f"batch {count}, rate {rate}"] = ("batch", count, DEPTH, count, rate)
    for rate in RATES:
        found[f"rate {rate}"] = ("rate", rate, DEPTH, BATCH, rate)
    return found


def resident() -> float:
    """Peak resident set of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def memory_of(task: str, data_dir: Path | None) -> dict[str, Any]:
    """MiB after importing and at the peak; to be run in a process of its own."""
    before = resident()
    dataset, _ = resolve_dataset("auto", data_dir)
    if task == "environment":
        folder = None if data_dir is None else str(data_dir)
        env = gym.make_vec(f"SkipResNet{DEPTH}-v0", BATCH, data_dir=folder, weights=None)
        env.reset(seed=0)
        for _ in range(DEPTH // 2 - 2):
            env.step(env.action_space.sample())
    else:
        args = Args(weights="none", batch_size=BATCH)
        precision = resolve_precision(args.precision, torch.device("cpu"))
        learner = Learner(args, RoutingMDP(ResNet(DEPTH), args.alpha), precision)
        data = load_images(dataset, "train", data_dir)
        for step in range(2):
            train_step(learner, data, step, "sp", args)  # every block is executed and kept for the gradient
    return {"imports": before, "peak": resident(), "dataset": dataset}


def memory(options: Options) -> dict[str, dict[str, float]]:
    """Memory of the environment and of training."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for task in ("environment", "training"):
        with context.Pool(1) as pool:
            found[task] = pool.apply(memory_of, (task, options.data_dir))
    return found


def picture(found: Mapping[str, Any]) -> Figure:
    """Draw the time per image over depth, batch and rate."""
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
        axis.set_xlabel(label)
        if kind == "batch":
            axis.loglog()
        else:
            axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        if kind != "rate":
            axis.legend(frameon=False)
    axes[0].set_ylabel("ms per image")
    return figure


def table(found: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    timings = found["cases"]

    def cost(name: str) -> str:
        return f"{1e3 * timings[name]['median'] / timings[name]['batch']:.3f}"

    depths = dict.fromkeys(case["at"] for case in timings.values() if case["axis"] == "depth")
    both = ["all executed, ms per image", "half executed"]
    columns = {
        "depth": [f"depth (batch {BATCH})", *both],
        "batch": [f"batch (depth {DEPTH})", *both],
    }
    lines = [
        markdown(
            columns[axis],
            [[str(at), *(cost(f"{axis} {at}, rate {rate}") for rate in (1.0, 0.5))] for at in places],
            numbers=True,
        )
        for axis, places in (("depth", depths), ("batch", BATCHES))
    ]
    rates = [[f"{rate:.0%}", cost(f"rate {rate}")] for rate in RATES]
    lines.append(markdown([f"executed (depth {DEPTH}, batch {BATCH})", "ms per image"], rates, numbers=True))
    parts = [
        f"{task} {use['peak']:,.0f} MiB on {use['dataset']} ({use['imports']:,.0f} of it before)"
        for task, use in found["memory"].items()
    ]
    return "\n".join(lines) + f"\nMemory, ResNet-{DEPTH}, batch {BATCH}, peak: {'; '.join(parts)}.\n"


def main(options: Options) -> dict[str, Any]:
    """Measure and publish."""
    device = options.start()
    used = memory(options)  # first: a child's peak counts from its parent's size
    chosen = cases()
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
    measure.publish("scaling", found, table(found), options)
    folder = measure.DOCS / "benchmarks" if options.write else options.out
    plots.save_figure(picture(found), folder / "scaling.png")
    return found


if __name__ == "__main__":
    main(tyro.cli(Options))
