"""What skipped blocks cost a network, measured before anything is trained.

A network that never trained with skips breaks down under a few of them. Which ones matters most: some blocks
hardly change the answer, others carry it (Veit, Wilber, Belongie 2016, arXiv 1605.06431, section 4.1).
"""

from __future__ import annotations

import copy
import time
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

RATE = 0.9  # of execution: one block in ten is skipped
LIMIT = 0.05  # loss of accuracy at that rate, above which training with gates breaks the network
SHARE = 0.3  # of the blocks, which a preparation teaches a network to do without
SKIPPED = 0.1  # rate of execution at which it leaves them: rare, and still tried


@dataclass(frozen=True)
class Tolerance:
    """How a network copes with skips.

    Attributes:
        images: how many were looked at.
        whole: accuracy with all blocks.
        skipping: accuracy with every block executed at `RATE`, at random.
        seconds_per_image: time of an evaluation with all blocks.
    """

    images: int
    whole: float
    skipping: float
    seconds_per_image: float = 0.0

    @property
    def prepared(self) -> bool:
        """Whether the network can take the routes of untrained gates."""
        return self.whole - self.skipping <= LIMIT

    def __str__(self) -> str:
        """One line for a person."""
        return (
            f"{self.whole:.1%} of {self.images:,} validation images are right with all blocks, "
            f"{self.skipping:.1%} with one block in ten skipped at random"
        )


def measure_tolerance(mdp: RoutingMDP, images: Images, precision: str = "fp32", seed: int = 0) -> Tolerance:
    """Play all images twice: with every block, and with random skips.

    Args:
        mdp: the decision process; its network is left as it is.
        images: what to look at, some hundred.
        precision: `"fp32"` or `"bf16"`.
        seed: of the skips.
    """
    draws = step_generator(seed, 0, images.device, Stream.TOLERANCE)
    begun = time.perf_counter()
    whole = evaluate(mdp, AlwaysExecute(), images, precision=precision)
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    skipping = evaluate(mdp, RandomSkip(RATE), images, mode="sample", generator=draws, precision=precision)
    # the first pass has a GPU's start in it
    seconds = min(first, (time.perf_counter() - begun) / RATE) / len(images)
    return Tolerance(len(images), whole.accuracy, skipping.accuracy, seconds)


@torch.no_grad()
def absence_costs(mdp: RoutingMDP, images: Images, batch_size: int = 50, precision: str = "fp32") -> Tensor:
    """Cross-entropy that is added where one block alone is left out: [N] on the CPU, in nats.

    Each decision is skipped once, after the blocks before it have run and before those after it do, so all
    of them cost half as much as N passes.

    Args:
        mdp: the decision process; its network is left as it is.
        images: what to look at, some hundred.
        batch_size: images at a time; the features of all N blocks are held for them.
        precision: `"fp32"` or `"bf16"`.
    """
    images.check_not_empty()
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
    return added / len(images)


def _run_on(mdp: RoutingMDP, state: State, execute: Tensor) -> State:
    while not mdp.terminal(state):
        state = mdp.transition(state, execute)
    return state


def falling_rates(costs: Tensor, progress: float, share: float = SHARE) -> Tensor:
    """Rates of execution that teach a network to do without its cheapest blocks: [N] → [N], float32.

    As training proceeds, the rates of the `share` of blocks whose absence costs least fall from 1 to
    `SKIPPED`. The others always run: tolerance for the routes to come is cheap, for any route it is dear.

    Args:
        costs: of each block's absence, see `absence_costs`; their order alone counts.
        progress: from 0, where everything is executed, to 1.
        share: of the blocks.

    Raises:
        ValueError: a progress or a share outside 0 … 1.
    """
    for name, value in (("progress", progress), ("share", share)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value!r}; expected a number between 0 and 1")
    rates = torch.ones(len(costs), device="cpu")
    rates[costs.argsort()[: round(share * len(costs))]] = SKIPPED
    return 1 - progress * (1 - rates)
