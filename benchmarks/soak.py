"""Soak test: memory, open files and threads over two million environment steps and 500 training iterations.

    python -m benchmarks.soak

After a warm-up the resident memory is read a hundred times. Its growth is the mean of the last tenth of the
readings relative to that of the first tenth. The benchmark fails if memory grows by more than 2 %, or if a
file or a thread is left open. The warm-up is needed because oneDNN caches kernels for up to 1,024 batch sizes
(some 100 MiB). A block's batch is the number of images that execute it, so the environment is warmed up with
every such number, and training with as many iterations as are then watched.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import torch
from tqdm import tqdm

import envs  # noqa: F401  (registers the ids)
from agents.common.cli import main_with_named_errors
from agents.common.tables import markdown
from agents.hybrid_reinforce import Args, Learner, train_step
from benchmarks import measure
from skipnet_rl.data import load_images
from skipnet_rl.device import resolve_precision
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.problem import load_network

READINGS, GROWTH = 100, 0.02
DATASET = "rendered-digits"


@dataclass(frozen=True)
class Options(measure.Threaded, measure.Paged):
    """Watch resources in a long run."""

    steps: int = 2_000_000
    """environment steps, summed over the sub-environments"""
    iterations: int = 500
    """training iterations"""
    num_envs: int = 128
    """number of sub-environments"""


def watch(unit: Callable[[], Any], units: int) -> dict[str, float]:
    """Repeat a unit of work after its warm-up, and read the resources of this process along the way."""
    process, readings = psutil.Process(), []
    every = max(units // READINGS, 1)
    for number in tqdm(range(units), disable=None, leave=False):
        unit()
        if number % every == 0:
            gc.collect()
            readings.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
    memory, files, threads = (np.array(column, dtype=float) for column in zip(*readings, strict=True))
    tenth = max(len(memory) // 10, 1)
    return {
        "units": units,
        "mib": memory[-1] / 2**20,
        "growth": memory[-tenth:].mean() / memory[:tenth].mean() - 1,
        "files": files[-1] - files[0],
        "threads": threads[-1] - threads[0],
    }


def environment(options: Options) -> dict[str, float]:
    """Watch random episodes of SkipResNet20-v0."""
    env: Any = gym.make_vec("SkipResNet20-v0", options.num_envs, dataset=DATASET, device=options.device)
    env.reset(seed=0)
    decisions = env.unwrapped.lockstep.mdp.num_decisions

    def episode() -> None:
        for _ in range(decisions):
            env.step(env.action_space.sample())

    for executed in range(options.num_envs + 1):
        env.reset()
        for _ in range(decisions):
            env.step(np.arange(options.num_envs) < executed)
    return watch(episode, options.steps // (decisions * options.num_envs))


def training(options: Options) -> dict[str, float]:
    """Watch training steps of hybrid REINFORCE on SkipResNet20-v0."""
    device = options.start()
    args = Args(env="SkipResNet20-v0", schedule="constant", batch_size=128, iterations=2 * options.iterations)
    mdp = RoutingMDP(load_network("auto", 20, 10, DATASET).to(device), args.alpha)
    learner = Learner(args, mdp, resolve_precision(args.precision, device))
    data, steps = load_images(DATASET, "train").to(device), iter(range(sys.maxsize))

    def step() -> None:
        train_step(learner, data, next(steps), "hrl", args)

    for _ in range(options.iterations):
        step()
    return watch(step, options.iterations)


def table(found: Mapping[str, Any]) -> str:
    """Return the result as a Markdown table."""
    line = "{units:,.0f}|{mib:,.0f} MiB|{growth:+.2%}|{files:+.0f}|{threads:+.0f}"
    rows = [[name, *line.format(**use).split("|")] for name, use in found["soaked"].items()]
    return markdown(["", "number", "memory", "its growth", "open files", "threads"], rows, numbers=True)


def main(options: Options) -> None:
    """Watch both, print and write the result.

    Raises:
        SystemExit: memory, open files or threads have grown.
    """
    name = f"soak-{options.start().type}"
    options.check_page(name)
    torch.manual_seed(0)
    soaked = {"episodes of the batch": environment(options), "training iterations": training(options)}
    found = {"steps": options.steps, "num_envs": options.num_envs, "soaked": soaked}
    measure.publish(name, found, table(found), options)
    if any(use["growth"] > GROWTH or use["files"] > 0 or use["threads"] > 0 for use in soaked.values()):
        sys.exit(f"error: memory grew by more than {GROWTH:.0%}, or a file or a thread was left open")


if __name__ == "__main__":
    main_with_named_errors(Options, main)
