"""Peak memory by depth and batch size: environment, pretraining, hybrid REINFORCE.

    python -m benchmarks.memory
    python -m benchmarks.memory --device cuda --depths 20 38 110 --batches 128 1024

On a GPU it is what PyTorch has allocated for tensors, images included; the CUDA context is extra. On a CPU it
is the resident set of a new process.
"""

from __future__ import annotations

import gc
import multiprocessing
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from agents import hybrid_reinforce, pretrain
from agents.common.cli import main_with_named_errors
from agents.common.tables import markdown
from benchmarks import measure
from envs import factory  # importing it registers the ids
from skipnet_rl.data import load_images
from skipnet_rl.device import resolve_precision
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.resnet import ResNet

MIB = 2**20
LABELS = {
    "environment": "environment",
    "pretraining": "pretraining",
    "training": "hybrid REINFORCE",
}


@dataclass(frozen=True)
class Options(measure.Options):
    """Measure peak memory."""

    depths: tuple[int, ...] = (20, 110)
    """depths of the network; images have the size for which it is made"""
    batches: tuple[int, ...] = (128,)
    """batch sizes"""
    precision: str = "auto"
    """bf16, fp32, or auto"""


@dataclass(frozen=True)
class Case:
    """A run to measure: a task of `LABELS` with its depth, batch size, data set and device."""

    task: str
    depth: int
    batch: int
    dataset: str = "rendered-digits"
    data_dir: Path | None = None
    device: str = "cpu"
    precision: str = "fp32"

    def run(self) -> None:
        """Run one episode of the environment, or two training steps with every block executed."""
        if self.task == "environment":
            self._episode()
        else:
            self._training()

    def _episode(self) -> None:
        env: Any = gym.make_vec(
            f"SkipResNet{self.depth}-v0",
            self.batch,
            dataset=self.dataset,
            data_dir=None if self.data_dir is None else str(self.data_dir),
            weights=None,
            device=self.device,
            precision=self.precision,
        )
        env.reset(seed=0)
        for _ in range(env.unwrapped.lockstep.mdp.num_decisions):
            env.step(env.action_space.sample())

    def _training(self) -> None:
        net = ResNet(self.depth)
        data = load_images(self.dataset, "train", self.data_dir, size=net.image_size).to(self.device)
        placed: Any = net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.task == "pretraining":
            plain = pretrain.Args(depth=self.depth, batch_size=self.batch)
            alone = pretrain.Learner(plain, placed, self.precision)
            for step in range(2):
                pretrain.train_step(alone, data, step, plain)
        else:
            args = hybrid_reinforce.Args(batch_size=self.batch)
            learner = hybrid_reinforce.Learner(args, RoutingMDP(placed, args.alpha), self.precision)
            for step in range(2):  # in SP every block is executed and kept for the gradient
                hybrid_reinforce.train_step(learner, data, step, "sp", args)


def resident() -> float:
    """Return the peak resident set of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 2**10)


def _resident_of(case: Case) -> dict[str, Any]:
    """Return MiB after importing and at the peak; must run in a new process."""
    before = resident()
    case.run()
    return {"imports": before, "peak": resident(), "dataset": case.dataset}


def peak(case: Case) -> dict[str, Any]:
    """Return MiB before a case and at its peak; the peak is None if it does not fit on the GPU.

    On a CPU, call it before anything large is allocated: a new process's peak starts at its parent's size.
    """
    device = torch.device(case.device)
    if device.type != "cuda":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(_resident_of, (case,))
    factory.clear_cache()  # otherwise networks and images of earlier cases count, too
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    found: dict[str, Any] = {"imports": torch.cuda.memory_allocated(device) / MIB, "dataset": case.dataset}
    try:
        case.run()
        return {**found, "peak": torch.cuda.max_memory_allocated(device) / MIB}
    except torch.OutOfMemoryError:
        return {**found, "peak": None}


def amount(mib: float | None) -> str:
    """Return a peak as text."""
    return "out of memory" if mib is None else f"{mib:,.0f}"


def table(found: Mapping[str, Any]) -> str:
    """Return the result as a Markdown table."""
    rows = [
        [
            str(row["depth"]),
            f"{row['batch']:,}",
            *(amount(row[task]) for task in LABELS),
        ]
        for row in found["rows"]
    ]
    head = f"depth, {found['precision']}, {found['device']}"
    return markdown([head, "batch", *(f"{label}, MiB" for label in LABELS.values())], rows, numbers=True)


def main(options: Options) -> dict[str, Any]:
    """Measure; print and write the result after each row."""
    device = options.start()
    precision = resolve_precision(options.precision, device)
    found: dict[str, Any] = {"device": device.type, "precision": precision, "rows": []}
    for depth in options.depths:
        for batch in options.batches:
            row: dict[str, Any] = {"depth": depth, "batch": batch}
            for task in LABELS:
                case = Case(task, depth, batch, device=str(device), precision=precision)
                row[task] = peak(case)["peak"]
            found["rows"].append(row)
            measure.publish(f"memory-{device.type}", found, table(found), options)
    return found


if __name__ == "__main__":
    main_with_named_errors(Options, main)
