"""Optimizers, and the schedules of their learning rates.

They are fused: one call moves all of the few hundred small tensors of a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

MOMENTUM = 0.9  # of SGD


def adam(net: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Adam, without weight decay."""
    return torch.optim.Adam(net.parameters(), lr, fused=True)


def sgd(
    net: nn.Module, lr: float, momentum: float = MOMENTUM, weight_decay: float = 5e-4
) -> torch.optim.Optimizer:
    """Nesterov's SGD, whose weight decay spares biases and batch norm."""
    groups = _with_decay(net, weight_decay)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    if momentum:  # the fused step needs all buffers or none, and a block may be dropped in the first steps
        for weight in net.parameters():
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def adamw(net: nn.Module, lr: float, weight_decay: float = 0.05) -> torch.optim.Optimizer:
    """AdamW (Loshchilov, Hutter, ICLR 2019), whose weight decay spares biases and norms."""
    return torch.optim.AdamW(_with_decay(net, weight_decay), lr, fused=True)


def _with_decay(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay, vectors without."""
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def resume(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Continue from a checkpoint's `state_dict`.

    The tensors of a checkpoint are contiguous, and the fused optimizers read them in the order of the
    weights' memory, which may be channels-last.
    """
    optimizer.load_state_dict(state)
    for weight, moments in optimizer.state.items():
        for name, moment in moments.items():
            if isinstance(moment, torch.Tensor) and moment.shape == weight.shape:
                moments[name] = torch.empty_like(weight).copy_(moment)


def falling(schedule: str, left: float) -> float:
    """Return the factor of a learning rate that falls over training.

    Args:
        schedule: `"constant"`; `"linear"` or `"cosine"`, to zero; or `"step"`, divided by ten at half and at
            three quarters of the steps.
        left: share of the steps still to come, from 1 down to 0.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 1.0 if left > 0.5 else 0.1 if left > 0.25 else 0.01
    return left if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def warmed_up(schedule: str, warmup: float, progress: float) -> float:
    """Return the factor of a learning rate that first rises from zero.

    Args:
        schedule: see `falling`; a cosine begins after the rise.
        warmup: share of the steps over which it rises.
        progress: share of the steps that are done, from 0 to 1.
    """
    if progress < warmup:
        return progress / warmup
    left = 1 - progress
    return falling(schedule, left / (1 - warmup) if schedule == "cosine" else left)


def staged(schedule: str, plan: Sequence[str], step: int) -> float:
    """Return the factor of the learning rates of hybrid REINFORCE at a step of its plan.

    Args:
        schedule: `"constant"`; `"linear"`, to zero in HRL and again in the closing steps; `"cosine"`, to zero
            in SP, and again over HRL and closing steps together; or `"step"` (the paper), divided by ten at
            half and at three quarters of SP.
        plan: the stage of each step.
        step: from 0.
    """
    stage = plan[step]
    if stage == "warmup" or (schedule, stage) == ("linear", "sp") or (schedule == "step" and stage != "sp"):
        return 1.0
    span = ("hrl", "tune") if schedule == "cosine" and stage != "sp" else (stage,)
    begin = min(plan.index(part) for part in span if part in plan)
    length = sum(map(plan.count, span))
    return falling(schedule, (begin + length - step) / length)


OPTIMIZERS: dict[str, Callable[[nn.Module, float], torch.optim.Optimizer]] = {"adam": adam, "sgd": sgd}
