"""Notices training that goes wrong: numbers that are none, gates that collapse, blocks nobody runs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from skipnet_rl.rollout import Trajectory
from skipnet_rl.terminal import say

GREEDY_STAGES = ("pretrain", "sp", "warmup", "tune")  # whose routes do not come from drawing by the gates


class DivergenceError(ValueError):
    """Training brought forth a NaN or an infinity; the checkpoint before it is kept."""


class Watch:
    """Looks at each training step.

    A loss or a log-odds that is NaN, or an infinite loss, ends the run. Gates that draw the same action for
    every image and block, and a block that no image executes, over `window` steps on end, are reported
    once each, and training goes on: both may be what the reward asks for, but the first explores no more,
    and the second's weights and batch norm no longer train.

    Args:
        window: number of steps.
    """

    def __init__(self, window: int = 25) -> None:
        self.window = window
        self.alike = 0  # steps on end in which all actions were the same
        self.unvisited: list[int] = []  # of each block, steps on end without an execution
        self.reported: set[str] = set()

    def step(self, done: int, stage: str, episode: Trajectory) -> None:
        """Look at step number `done`, counted from one.

        Raises:
            DivergenceError: a number that is none.
        """
        seen = torch.stack([episode.loss.detach().mean(), episode.gate_logits.isnan().any()])
        loss, undefined = seen.tolist()  # the device is waited for once
        check_loss(loss, done, stage)
        if undefined:
            raise DivergenceError(_diverged("a gate's log-odds are nan", done, stage))
        if stage in GREEDY_STAGES:
            self.alike, self.unvisited = 0, []
            return
        rates = episode.actions.detach().float().mean(dim=0).tolist()
        self._collapse(done, stage, sum(rates) / len(rates))
        self._unvisited(done, stage, rates)

    def _collapse(self, done: int, stage: str, rate: float) -> None:
        self.alike = self.alike + 1 if rate in (0.0, 1.0) else 0
        if self.alike == self.window:
            what = "execute every block" if rate == 1 else "skip every block"
            self._report(
                "collapse", done, stage, f"for {self.window} steps the gates {what} of every image: nothing "
                "else is explored. A lower learning rate of the gates or another --alpha may help",
            )  # fmt: skip

    def _unvisited(self, done: int, stage: str, rates: list[float]) -> None:
        before = self.unvisited or [0] * len(rates)
        self.unvisited = [0 if rate else count + 1 for rate, count in zip(rates, before, strict=True)]
        if idle := [block + 2 for block, count in enumerate(self.unvisited) if count >= self.window]:
            names = f"block {idle[0]} is" if len(idle) == 1 else f"blocks {', '.join(map(str, idle))} are"
            self._report(
                "unvisited", done, stage, f"{names} executed by no image for {self.window} steps: "
                "weights and batch norms of such blocks stay as they are",
            )  # fmt: skip

    def _report(self, kind: str, done: int, stage: str, message: str) -> None:
        if kind not in self.reported:
            self.reported.add(kind)
            say(f"step {done} ({stage.upper()}): {message}; training goes on")


def check_loss(loss: float, done: int, stage: str) -> None:
    """Raise a DivergenceError for a loss that is NaN or infinite."""
    if not math.isfinite(loss):
        raise DivergenceError(_diverged(f"the loss is {loss}", done, stage))


def check_finite(state: Any, done: int, stage: str, name: str = "") -> None:
    """Refuse a state to be saved that holds a NaN or an infinity.

    Raises:
        DivergenceError: it names the tensor.
    """
    if isinstance(state, Tensor):
        if state.is_floating_point() and not state.isfinite().all():
            raise DivergenceError(_diverged(f"{name} holds a number that is none", done, stage))
    elif isinstance(state, (dict, list, tuple)):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        for key, value in items:
            check_finite(value, done, stage, f"{name}.{key}".lstrip("."))


def _diverged(what: str, done: int, stage: str) -> str:
    return (
        f"{what} at step {done} ({stage.upper()}); the run stops, its last checkpoint is kept. Try a lower "
        "learning rate, or --precision fp32"
    )
