"""Measure what skipped blocks cost a network, before training.

A network trained without skips breaks down under a few of them. It matters which: some blocks hardly change
the answer, others are essential (Veit, Wilber, Belongie 2016, arXiv 1605.06431, section 4.1).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skipnet_rl.data import Images
from skipnet_rl.device import autocast
from skipnet_rl.evaluate import evaluate
from skipnet_rl.folding import for_inference
from skipnet_rl.mdp import RoutingMDP, State
from skipnet_rl.policies import AlwaysExecute, RandomSkip
from skipnet_rl.randomness import Stream, step_generator
from skipnet_rl.statistics import wilson_interval

RATE = 0.9  # execution rate: one block in ten is skipped
LIMIT = 0.05  # largest loss of accuracy at that rate with which training of gates works
# A network that adapts regains most of what a block's absence costs it at first: preparation leaves out the
# blocks whose absence costs up to this many times what skipping them pays.
REGAINED = 4.0
MOST = 0.5  # largest share of the blocks that preparation leaves out
SKIPPED = 0.1  # execution rate of these blocks after preparation: rare, but still tried


@dataclass(frozen=True)
class Tolerance:
    """How well a network tolerates skips.

    Attributes:
        images: number of images measured on.
        whole: accuracy with all blocks.
        skipping: accuracy with each block executed with probability `RATE`.
        seconds_per_image: time of an evaluation with all blocks.
    """

    images: int
    whole: float
    skipping: float
    seconds_per_image: float

    @property
    def prepared(self) -> bool:
        """Whether the network tolerates the routes of untrained gates."""
        return self.whole - self.skipping <= LIMIT

    def above_chance(self, num_classes: int) -> bool:
        """Whether the network is better than guessing one of the classes, by the 95 % interval."""
        return wilson_interval(self.whole * self.images, self.images)[0] > 1 / num_classes

    def __str__(self) -> str:
        """One line of text."""
        return (
            f"{self.whole:.1%} of {self.images:,} validation images are right with all blocks, "
            f"{self.skipping:.1%} with one block in ten skipped at random"
        )


def measure_tolerance(
    mdp: RoutingMDP,
    images: Images,
    precision: str = "fp32",
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tolerance:
    """Classify all images twice: with every block, and with random skips.

    Args:
        mdp: the decision process; its network is not changed.
        images: a few hundred images.
        precision: `"fp32"` or `"bf16"`.
        seed: random seed of the skips.
        progress: called as `progress(done, total)`, in images of both passes.
    """
    count = len(images)
    draws = step_generator(seed, 0, images.device, Stream.TOLERANCE)
    begun = time.perf_counter()
    whole = evaluate(
        mdp,
        AlwaysExecute(),
        images,
        precision=precision,
        progress=lambda done, _: progress(done, 2 * count),
    )
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    skipping = evaluate(
        mdp,
        RandomSkip(RATE),
        images,
        mode="sample",
        generator=draws,
        precision=precision,
        progress=lambda done, _: progress(count + done, 2 * count),
    )
    # the first pass includes the start of a GPU
    seconds = min(first, (time.perf_counter() - begun) / RATE) / count
    return Tolerance(count, whole.accuracy, skipping.accuracy, seconds)


@torch.no_grad()
def absence_costs(
    mdp: RoutingMDP,
    images: Images,
    batch_size: int = 50,
    precision: str = "fp32",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Increase of the cross-entropy when one block is left out: [N] on the CPU, in nats.

    The features before each block are computed once, so all N skips cost half as much as N passes.

    Args:
        mdp: the decision process; its network is not changed.
        images: a few hundred images.
        batch_size: images at a time; the features before all N blocks are held in memory.
        precision: `"fp32"` or `"bf16"`.
        progress: called as `progress(done, total)`, in images.
    """
    images.check_not_empty()
    done = 0
    mdp = copy.copy(mdp)
    mdp.net = for_inference(mdp.net)
    added = torch.zeros(mdp.num_decisions, dtype=torch.float64, device="cpu")
    for batch, labels in images.batches(batch_size):
        with autocast(precision, batch.device):
            execute = torch.ones(len(labels), dtype=torch.bool, device=batch.device)
            states = [mdp.initial(batch, labels)]
            while not mdp.terminal(states[-1]):
                states.append(mdp.transition(states[-1], execute))
            whole = mdp.loss(states.pop())
            for t, state in enumerate(states):
                without = _run_on(mdp, mdp.transition(state, ~execute), execute)
                added[t] += (mdp.loss(without) - whole).sum().item()
        done += len(labels)
        progress(done, len(images))
    return added / len(images)


def _run_on(mdp: RoutingMDP, state: State, execute: Tensor) -> State:
    while not mdp.terminal(state):
        state = mdp.transition(state, execute)
    return state


def falling_rates(costs: Tensor, payment: Sequence[float], progress: float) -> Tensor:
    """Rates of execution that teach a network to do without its dispensable blocks: [N] → [N], float32.

    As training proceeds, the rates of some blocks fall from 1 to `SKIPPED`: of those whose absence costs no
    more than `REGAINED` times what skipping them pays, but at least one and at most a share of `MOST`. So
    more blocks are left out at a larger alpha, or for an easy data set. The other blocks always run:
    tolerating the routes to come is cheap to learn, tolerating any route is expensive.

    Args:
        costs: cost of each block's absence in nats, see `absence_costs`.
        payment: reward for skipping each block, N numbers, see `DecisionProcess.payment`.
        progress: progress of the training, from 0 (every block is executed) to 1.

    Raises:
        ValueError: a progress outside 0 … 1.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress!r}; expected a number between 0 and 1")
    excess = costs - REGAINED * costs.new_tensor(payment)
    count = (excess <= 0).sum().clamp(max=int(MOST * len(costs))).clamp(min=1)
    rates = torch.where(excess.argsort().argsort() < count, SKIPPED, 1.0)
    return 1 - progress * (1 - rates)
