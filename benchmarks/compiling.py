"""Speed of compiled training steps, and the seconds that compiling takes.

    python -m benchmarks.compiling
    python -m benchmarks.compiling --device cuda --batch-size 512

eager     uncompiled step of `agents.pretrain`, or of `agents.hybrid_reinforce` with `--step hybrid`
tuned     on a GPU: cuDNN tries its algorithms for every shape (`torch.backends.cudnn.benchmark`)
graphs    on a GPU: forward and backward pass recorded once (`torch.cuda.make_graphed_callables`)
blocks    `torch.compile` of each kind of block, for all batch sizes, as with `--compile`
network   `torch.compile` of the whole forward pass, for one batch size
overhead  on a GPU: the same with `mode="reduce-overhead"`, which records CUDA graphs

Routes differ between images, so shapes are not static and `--step hybrid` has only `eager`, `tuned` and
`blocks`. Each way takes turns with eager. The result is written after each way, since compiling a deep
network takes minutes.
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
CACHE = "TORCHINDUCTOR_CACHE_DIR"
WARM = 2  # steps before the turns; they compile, and their seconds are `first`
LABELS = {
    "eager": "uncompiled, against itself",
    "tuned": "cuDNN's algorithms tried",
    "graphs": "CUDA graphs of forward and backward pass",
    "blocks": "blocks compiled, any batch size",
    "network": "whole forward pass compiled",
    "overhead": "the same with CUDA graphs",
}


@dataclass(frozen=True)
class Options(steps.StepOptions, measure.Paged):
    """Time compiled training steps."""

    ways: tuple[Way, ...] = get_args(Way)
    """ways to take the step besides eager; those that do not apply to the device or the step are left out"""
    repeats: int = 3
    """turns of each candidate"""


def tuned(step: Step) -> Step:
    """Let cuDNN try its algorithms, during this step only."""

    def take() -> Tensor:
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            return step.take()
        finally:
            torch.backends.cudnn.benchmark = before

    return step._replace(take=take)


def graphs(step: Step, options: Options, precision: str) -> Step:
    """Record forward and backward pass as CUDA graphs."""
    net = step.mdp.net.train()
    size = (options.batch_size, 3, net.image_size, net.image_size)
    images = torch.zeros(size, device=step.mdp.device).contiguous(memory_format=torch.channels_last)
    with autocast(precision, images.device):
        torch.set_autocast_cache_enabled(False)  # replays would use the weights cached while recording
        try:
            recorded: Any = torch.cuda.make_graphed_callables(net, (images,))
        finally:
            torch.set_autocast_cache_enabled(True)
    step.mdp.net = recorded
    return step


def blocks(step: Step, options: Options, precision: str) -> Step:
    """Compile each kind of block once, as with `--compile`."""
    compile_blocks(step.mdp.net, options.batch_size, precision)
    return step


def network(step: Step, mode: str | None = None) -> Step:
    """Compile the forward pass as one function."""
    compiled: Any = torch.compile(step.mdp.net, mode=mode)
    step.mdp.net = compiled

    def take() -> Tensor:
        if mode:  # this allows overwriting the tensors of the last step
            torch.compiler.cudagraph_mark_step_begin()
        return step.take()

    return step._replace(take=take)


def ways(options: Options, device: torch.device, precision: str) -> dict[str, Callable[[Step], Step]]:
    """Return the ways to take a step besides eager, by name."""
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
    """Start with empty caches: of this process, and on disk."""
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
    """Return the seconds of a way's first steps, its loss, and its times in turns with eager."""
    begun = time.perf_counter()
    step = way(fresh())
    for _ in range(WARM):
        loss = step.take().item()
    first = time.perf_counter() - begun
    taken = measure.STEPS[device.type]
    timings = measure.take_turns({"eager": eager.take, "way": step.take}, options.repeats, device, taken)
    return {"loss": loss, "first": first, "steps": taken, "timings": measure.plain(timings)}


def main(options: Options) -> dict[str, Any]:
    """Measure; print and write the result after each way."""
    device = options.start()
    name = f"compiling-{options.step}-{device.type}"
    options.check_page(name)
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
    for label, way in {"eager": lambda step: step, **ways(options, device, precision)}.items():
        try:
            with nothing_compiled():
                found["ways"][label] = compare(eager, way, fresh, options, device)
        except Exception as error:  # no compiler, no memory, nothing recordable: go on with the others
            found["ways"][label] = {"error": f"{type(error).__name__}: {first_line(error)}"}
        measure.publish(name, found, table(found), options)
    return found


def speed(found: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    """Return images per second of a way and its speed relative to eager; None if it was not measured."""
    way = found["ways"].get(name, {})
    if "timings" not in way:
        return None
    eager, own = (way["timings"][each]["median"] for each in ("eager", "way"))
    return found["batch_size"] / own, eager / own


def table(found: Mapping[str, Any]) -> str:
    """Return the result as a Markdown table."""
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
