"""A training step as it is against the same step compiled, with the seconds that compiling takes.

    python -m benchmarks.compiling
    python -m benchmarks.compiling --device cuda --batch-size 512

eager     the step of `agents.pretrain`, or with `--step hybrid` of `agents.hybrid_reinforce`, as it is
tuned     on a GPU: cuDNN tries its algorithms for every shape (`torch.backends.cudnn.benchmark`)
graphs    on a GPU: forward and backward pass recorded once (`torch.cuda.make_graphed_callables`)
blocks    `torch.compile` of what each kind of block executes, for all batch sizes, as with `--compile`
network   `torch.compile` of the whole forward pass, for one batch size
overhead  on a GPU: the same with `mode="reduce-overhead"`, which records CUDA graphs

Routes that differ between images are not static, so `--step hybrid` has `eager`, `tuned` and `blocks` alone.
Each way takes turns with eager. The results so far are kept: compiling a deep network takes minutes.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from agents.common.cli import main_with_named_errors
from agents.common.tables import markdown
from benchmarks import measure, steps
from benchmarks.steps import Step
from skipnet_rl.compiling import compile_blocks
from skipnet_rl.device import autocast, resolve_precision
from skipnet_rl.errors import first_line

Way = Literal["tuned", "graphs", "blocks", "network", "overhead"]
EPOCH = 45_000  # training images of CIFAR-10
TAKEN = {"cpu": 1, "cuda": 10}  # steps in a turn: a GPU may run behind within it
CACHE = "TORCHINDUCTOR_CACHE_DIR"
WARM = 2  # steps before any is timed; the first ones compile
LABELS = {
    "eager": "as it is, against itself",
    "tuned": "cuDNN's algorithms tried",
    "graphs": "CUDA graphs of forward and backward pass",
    "blocks": "blocks compiled, any batch size",
    "network": "whole forward pass compiled",
    "overhead": "the same with CUDA graphs",
}


@dataclass(frozen=True)
class Options(steps.StepOptions):
    """Time compiled training steps."""

    ways: tuple[Way, ...] = get_args(Way)
    """ways to take the step besides eager; those that device and step have are taken"""
    repeats: int = 3
    """turns of each candidate"""


def tuned(step: Step) -> Step:
    """cuDNN tries its algorithms, for as long as this step runs."""

    def take() -> Tensor:
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            return step.take()
        finally:
            torch.backends.cudnn.benchmark = before

    return step._replace(take=take)


def graphs(step: Step, options: Options, precision: str) -> Step:
    """Forward and backward pass as CUDA graphs."""
    net = step.mdp.net.train()
    size = (options.batch_size, 3, net.image_size, net.image_size)
    images = torch.zeros(size, device=step.mdp.device).contiguous(memory_format=torch.channels_last)
    with autocast(precision, images.device):
        torch.set_autocast_cache_enabled(False)  # a cached weight would be that of the recording
        try:
            recorded: Any = torch.cuda.make_graphed_callables(net, (images,))
        finally:
            torch.set_autocast_cache_enabled(True)
    step.mdp.net = recorded
    return step


def blocks(step: Step, options: Options, precision: str) -> Step:
    """Each kind of block is compiled once, as with `--compile`."""
    compile_blocks(step.mdp.net, options.batch_size, precision)
    return step


def network(step: Step, mode: str | None = None) -> Step:
    """The forward pass is one compiled function."""
    compiled: Any = torch.compile(step.mdp.net, mode=mode)
    step.mdp.net = compiled

    def take() -> Tensor:
        if mode:  # the last step's tensors may be written over
            torch.compiler.cudagraph_mark_step_begin()
        return step.take()

    return step._replace(take=take)


def ways(options: Options, device: torch.device, precision: str) -> dict[str, Callable[[Step], Step]]:
    """The ways to take a step besides eager, by name."""
    cuda, static = device.type == "cuda", options.step == "pretraining"
    found: dict[str, tuple[bool, Callable[[Step], Step]]] = {
        "tuned": (cuda, tuned),
        "graphs": (cuda and static, lambda step: graphs(step, options, precision)),
        "blocks": (True, lambda step: blocks(step, options, precision)),
        "network": (static, network),
        "overhead": (cuda and static, lambda step: network(step, "reduce-overhead")),
    }
    return {name: way for name, (possible, way) in found.items() if possible and name in options.ways}


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """Forget what was compiled before, in this process and in earlier ones."""
    torch.compiler.reset()
    before = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[CACHE] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[CACHE]
            else:
                os.environ[CACHE] = before


def compare(
    eager: Step,
    way: Callable[[Step], Step],
    fresh: Callable[[], Step],
    options: Options,
    device: torch.device,
) -> dict[str, Any]:
    """Seconds of the first steps of a way, its loss, and the times of both in turns."""
    begun = time.perf_counter()
    step = way(fresh())
    for _ in range(WARM):
        loss = step.take().item()
    first, taken = time.perf_counter() - begun, TAKEN[device.type]

    def turn(each: Step) -> None:
        for _ in range(taken):
            each.take()

    timings = measure.take_turns(
        {"eager": lambda: turn(eager), "way": lambda: turn(step)}, options.repeats, device
    )
    return {"loss": loss, "first": first, "steps": taken, "timings": measure.plain(timings)}


def main(options: Options) -> dict[str, Any]:
    """Measure and publish, after each way anew."""
    device = options.start()
    precision = resolve_precision(options.precision, device)
    found: dict[str, Any] = {
        "device": device.type,
        "precision": precision,
        "step": options.step,
        "depth": options.depth,
        "batch_size": options.batch_size,
        "ways": {},
    }
    fresh = partial(steps.make, options.step, options.depth, options.batch_size, precision, device)
    eager = fresh()
    for name, way in {"eager": lambda step: step, **ways(options, device, precision)}.items():
        try:
            with nothing_compiled():
                found["ways"][name] = compare(eager, way, fresh, options, device)
        except Exception as error:  # no compiler, no memory, nothing that could be recorded: the others go on
            found["ways"][name] = {"error": f"{type(error).__name__}: {first_line(error)}"}
        measure.publish(f"compiling-{options.step}-{device.type}", found, table(found), options)
    return found


def speed(found: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    """Images per second of a way, and its speed relative to eager; None where it could not be measured."""
    way = found["ways"].get(name, {})
    if "timings" not in way:
        return None
    eager, own = (way["timings"][each]["median"] / way["steps"] for each in ("eager", "way"))
    return found["batch_size"] / own, eager / own


def table(found: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    rows = []
    for name, way in found["ways"].items():
        reached = speed(found, name)
        if reached is None:
            rows.append([LABELS[name], way["error"], *[""] * 5])
            continue
        per_second, ratio = reached
        own = found["batch_size"] / per_second
        compiling = max(0.0, way["first"] - WARM * own)
        gain = own * (ratio - 1)
        rows.append(
            [
                LABELS[name],
                f"{1e3 * own:,.1f}",
                f"{per_second:,.0f}",
                f"{EPOCH / per_second:,.1f}",
                f"{ratio:.2f}",
                "" if name == "eager" else f"{compiling:,.1f}",
                "" if name == "eager" else f"{compiling / gain:,.0f}" if gain > 0 else "never",
            ]
        )
    head = "{depth_}, {batch_size} episodes, {precision}, {device}".format(
        depth_=f"ResNet-{found['depth']}, {steps.LABELS[found['step']]}", **found
    )
    columns = (head, "ms per step", "images per second", f"s per {EPOCH:,}", "speed", "s of compiling")
    return markdown((*columns, "steps until it pays"), rows, numbers=True)


if __name__ == "__main__":
    main_with_named_errors(Options, main)
