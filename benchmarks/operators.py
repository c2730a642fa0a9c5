"""Time of a training step by operation, and how busy the GPU is.

    python -m benchmarks.operators
    python -m benchmarks.operators --device cuda --batch-size 512
    python -m benchmarks.operators --device cuda --step hybrid --batch-size 512

`torch.profiler` measures the operations, and slows small ones; the time of a step is measured without it. A
GPU that is idle for much of a step is waiting for the CPU to launch its kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from agents.common.cli import main_with_named_errors
from agents.common.tables import markdown
from benchmarks import measure, steps
from skipnet_rl.device import resolve_precision

STEPS = 3  # steps that are profiled
SHOWN = 12  # operations in the table


@dataclass(frozen=True)
class Options(steps.StepOptions):
    """Profile training steps."""


def profiled(step: steps.Step, device: torch.device) -> dict[str, Any]:
    """Profile a step: seconds and calls of the costliest operations, seconds of all, number of kernels."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as found:
        for _ in range(STEPS):
            step.take()
        if cuda:
            torch.cuda.synchronize(device)
    spent = {
        each.key: (each.self_device_time_total if cuda else each.self_cpu_time_total, each.count)
        for each in found.key_averages()
        if each.device_type == DeviceType.CPU  # kernels are left out: their time is in their operation's
    }
    dearest = sorted(spent, key=lambda name: -spent[name][0])[:SHOWN]
    kernels = [each for each in found.events() or [] if each.device_type == DeviceType.CUDA]
    return {
        "operators": {
            name: {"seconds": 1e-6 * spent[name][0] / STEPS, "calls": spent[name][1] / STEPS}
            for name in dearest
        },
        "seconds": 1e-6 * sum(micro for micro, _ in spent.values()) / STEPS,
        "kernels": sum(not getattr(each, "is_user_annotation", False) for each in kernels) / STEPS,
    }


def table(found: Mapping[str, Any]) -> str:
    """Return the result as a Markdown table."""
    whole = found["seconds"] or math.inf  # a driver may refuse to be profiled
    rows = [
        [name, f"{1e3 * each['seconds']:,.2f}", f"{each['seconds'] / whole:.1%}", f"{each['calls']:,.0f}"]
        for name, each in found["operators"].items()
    ]
    head = "ResNet-{depth}, {batch_size} episodes, {precision}, {device}".format(**found)
    text = markdown([head, "ms per step", "share", "calls"], rows, numbers=True)
    median = found["timings"]["step"]["median"]
    label = steps.LABELS[found["step"]]
    text += f"\nA step ({label}) takes {1e3 * median:,.1f} ms"
    if found["device"] == "cuda":
        text += (
            f", of which the GPU computes {found['seconds'] / median:.0%}, in {found['kernels']:,.0f} kernels"
        )
    return f"{text}.\n"


def main(options: Options) -> dict[str, Any]:
    """Measure, print and write the result."""
    device = options.start()
    precision = resolve_precision(options.precision, device)
    step = steps.make(options.step, options.depth, options.batch_size, precision, device)
    timings = measure.take_turns({"step": step.take}, options.repeats, device, measure.STEPS[device.type])
    found = {
        "device": device.type,
        "precision": precision,
        "step": options.step,
        "depth": options.depth,
        "batch_size": options.batch_size,
        "timings": measure.plain(timings),
        **profiled(step, device),
    }
    measure.publish(f"operators-{options.step}-{device.type}", found, table(found), options)
    return found


if __name__ == "__main__":
    main_with_named_errors(Options, main)
