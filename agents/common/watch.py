"""Detects training that goes wrong: NaN and infinities, gates that collapse, blocks that no image runs."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skipnet_rl.rollout import Trajectory
from skipnet_rl.terminal import say

GREEDY_STAGES = ("pretrain", "sp", "warmup", "ponder", "tune")  # their routes are not sampled from the gates
LATE = 8  # steps whose numbers may still be on their way from the GPU


class DivergenceError(ValueError):
    """Training produced a NaN or an infinity; the checkpoint before it is kept."""


class Reading(NamedTuple):
    """The numbers read from a training step: mean loss, whether a log-odds is NaN, execution rates if any.

    Attributes:
        done, stage: number of the step, counted from one, and its stage.
        values: the numbers on the CPU, possibly still being copied from a GPU.
        copied: the event of their arrival; None if they are there.
    """

    done: int
    stage: str
    values: Tensor
    copied: torch.cuda.Event | None

    @classmethod
    def of(cls, done: int, stage: str, episode: Trajectory) -> Reading:
        """Begin to read a step, without waiting for the GPU."""
        parts = [episode.loss.detach().mean()[None], episode.gate_logits.isnan().any()[None]]
        if stage not in GREEDY_STAGES:
            parts.append(episode.actions.detach().float().mean(dim=0))
        seen = torch.cat(parts)
        values = seen.to("cpu", non_blocking=True)
        copied = torch.cuda.current_stream(seen.device).record_event() if seen.is_cuda else None
        return cls(done, stage, values, copied)

    def is_here(self) -> bool:
        """Return whether the numbers have arrived."""
        return self.copied is None or self.copied.query()


class Watch:
    """Checks each training step, on a GPU a step or two later, as soon as its numbers have arrived.

    A NaN among losses or log-odds, or an infinite loss, ends the run. Two things are reported once each when
    they last for `window` consecutive steps: gates that sample the same action for every image and block, and
    a block that no image executes. Training continues, because the reward may ask for either; but such gates
    no longer explore, and the weights and batch norms of such a block no longer train.

    Args:
        window: number of steps.
    """

    def __init__(self, window: int = 25) -> None:
        self.window = window
        self.alike = 0  # consecutive steps in which all actions were the same
        self.unvisited: list[int] = []  # for each block, consecutive steps without an execution
        self.reported: set[str] = set()
        self.coming: deque[Reading] = deque()

    def step(self, done: int, stage: str, episode: Trajectory) -> None:
        """Read step number `done`, counted from one, and check all steps that have been read.

        Raises:
            DivergenceError: a NaN, or an infinite loss.
        """
        self.coming.append(Reading.of(done, stage, episode))
        while self.coming and (len(self.coming) > LATE or self.coming[0].is_here()):
            self._check(self.coming.popleft())

    def settle(self) -> None:
        """Check the remaining steps, waiting for the GPU.

        Raises:
            DivergenceError: a NaN, or an infinite loss.
        """
        while self.coming:
            self._check(self.coming.popleft())

    def _check(self, reading: Reading) -> None:
        done, stage, values, copied = reading
        if copied is not None:
            copied.synchronize()
        loss, undefined, *rates = values.tolist()
        if not math.isfinite(loss):
            raise diverged(f"the loss is {loss}", done, stage)
        if undefined:
            raise diverged("a gate's log-odds are nan", done, stage)
        if stage in GREEDY_STAGES:
            self.alike, self.unvisited = 0, []
            return
        self._collapse(done, stage, sum(rates) / len(rates))
        self._unvisited(done, stage, rates)

    def _collapse(self, done: int, stage: str, rate: float) -> None:
        self.alike = self.alike + 1 if rate in (0.0, 1.0) else 0
        if self.alike == self.window:
            what = "execute every block" if rate == 1 else "skip every block"
            message = (
                f"for {self.window} steps the gates {what} of every image: nothing else is explored. A lower "
                "learning rate of the gates may help, or another weight of what skips save"
            )
            self._report("collapse", done, stage, message)

    def _unvisited(self, done: int, stage: str, rates: list[float]) -> None:
        before = self.unvisited or [0] * len(rates)
        self.unvisited = [0 if rate else count + 1 for rate, count in zip(rates, before, strict=True)]
        if idle := [block + 2 for block, count in enumerate(self.unvisited) if count >= self.window]:
            names = f"block {idle[0]} is" if len(idle) == 1 else f"blocks {', '.join(map(str, idle))} are"
            message = (
                f"{names} executed by no image for {self.window} steps: weights and batch norms of such "
                "blocks stay as they are"
            )
            self._report("unvisited", done, stage, message)

    def _report(self, kind: str, done: int, stage: str, message: str) -> None:
        if kind not in self.reported:
            self.reported.add(kind)
            say(f"step {done} ({stage.upper()}): {message}; training continues")


def check_finite(state: Any, done: int, stage: str, name: str = "") -> None:
    """Check that a state to be saved holds no NaN and no infinity.

    Raises:
        DivergenceError: it holds one; the message names the tensor.
    """
    if isinstance(state, Tensor):
        if state.is_floating_point() and not state.isfinite().all():
            raise diverged(f"{name} holds a NaN or an infinity", done, stage)
    elif isinstance(state, (dict, list, tuple)):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        for key, value in items:
            check_finite(value, done, stage, f"{name}.{key}".lstrip("."))


def diverged(what: str, done: int, stage: str) -> DivergenceError:
    """A DivergenceError that says what went wrong, at which step, and what to try."""
    return DivergenceError(
        f"{what} at step {done} ({stage.upper()}); the run stops, its last checkpoint is kept. Try a lower "
        "learning rate, or --precision fp32"
    )
