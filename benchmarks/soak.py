"""Two million environment steps and 500 training iterations: memory, file handles and threads stay flat.

    python -m benchmarks.soak

After a warm-up the resident memory is read a hundred times; its growth is the mean of the last tenth of the
readings over that of the first. It fails where that is more than 2 %, or where a file or a thread is left
open. The warm-up is there for oneDNN, which keeps what it prepared for each size of batch that it met (up to
1,024 of them, some 100 MiB), and a block meets as many images as its policy executes: the environment is
warmed up with each number of executed images, training with as many iterations as are then watched.
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
import tyro
from tqdm import tqdm

import envs  # noqa: F401  (registers the ids)
from agents.hybrid_reinforce import Args, Learner, train_step
from benchmarks import measure
from skipnet_rl.data import load_images
from skipnet_rl.problem import load_network

READINGS, GROWTH = 100, 0.02
DATASET = "rendered-digits"


@dataclass(frozen=True)
class Options(measure.Options):
    """Run for long."""

    steps: int = 2_000_000
    """of the environment, over all sub-environments"""
    iterations: int = 500
    """of training"""
    num_envs: int = 128
    """sub-environments"""


def watch(unit: Callable[[], Any], units: int) -> dict[str, float]:
    """Do a warm unit of work many times, and read this process's resources along the way."""
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
        "units": units, "mib": memory[-1] / 2**20,
        "growth": memory[-tenth:].mean() / memory[:tenth].mean() - 1,
        "files": files[-1] - files[0], "threads": threads[-1] - threads[0],
    }  # fmt: skip


def environment(options: Options) -> dict[str, float]:
    """Episodes of SkipResNet20-v0 at random."""
    env = gym.make_vec("SkipResNet20-v0", options.num_envs, dataset=DATASET, device=options.device)
    env.reset(seed=0)
    decisions = env.unwrapped.lockstep.mdp.num_decisions  # type: ignore[attr-defined]

    def episode() -> None:
        for _ in range(decisions):
            env.step(env.action_space.sample())

    for executed in range(options.num_envs + 1):
        env.reset()
        for _ in range(decisions):
            env.step(np.arange(options.num_envs) < executed)
    return watch(episode, options.steps // (decisions * options.num_envs))


def training(options: Options) -> dict[str, float]:
    """Steps of hybrid REINFORCE on SkipResNet20-v0."""
    device = options.start()
    args = Args(env="SkipResNet20-v0", schedule="constant", batch_size=128, iterations=2 * options.iterations)
    learner = Learner(args, load_network("auto", 20, 10, DATASET).to(device), device)
    data, steps = load_images(DATASET, "train").to(device), iter(range(sys.maxsize))

    def step() -> None:
        train_step(learner, data, next(steps), "hrl", args)

    for _ in range(options.iterations):
        step()
    return watch(step, options.iterations)


def table(found: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        [name, f"{use['units']:,.0f}", f"{use['mib']:,.0f} MiB", f"{use['growth']:+.2%}",
         f"{use['files']:+.0f}", f"{use['threads']:+.0f}"]
        for name, use in found["soaked"].items()
    ]  # fmt: skip
    return measure.markdown(["", "number", "memory", "its growth", "open files", "threads"], rows)


def main(options: Options) -> None:
    """Soak, publish, fail where something grew."""
    options.start()
    torch.manual_seed(0)
    soaked = {"episodes of the batch": environment(options), "training iterations": training(options)}
    found = {"steps": options.steps, "num_envs": options.num_envs, "soaked": soaked}
    measure.publish("soak", found, table(found), options)
    if any(use["growth"] > GROWTH or use["files"] > 0 or use["threads"] > 0 for use in soaked.values()):
        sys.exit("something grew")


if __name__ == "__main__":
    main(tyro.cli(Options))
