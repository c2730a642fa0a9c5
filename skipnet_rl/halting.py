"""Adaptive computation time (ACT): within each stage of a network an image stops once it has halted.

Figurnov, Collins, Zhu, Zhang, Huang, Vetrov, Salakhutdinov, "Spatially Adaptive Computation Time for
Residual Networks", CVPR 2017 (arXiv 1612.02297), section 3.1, after Graves 2016 (arXiv 1603.08983). Each unit
of a stage but the last gives a halting score. An image halts at the unit where their sum reaches 1 - ε; the
weight of that unit is the remainder, what the earlier scores leave of 1. A stage's output is the mean of its
units' outputs, weighted by their scores and the remainder; its ponder cost is the number of units plus the
remainder.

In training the next stage gets that mean, see `pondered`. As a policy, `HaltingGate` skips the blocks after
the unit at which an image halts, and the next stage gets that unit's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from skipnet_rl.device import autocast
from skipnet_rl.gates import Gate
from skipnet_rl.mdp import RoutingMDP, State
from skipnet_rl.modules import module_list
from skipnet_rl.network import Network
from skipnet_rl.rollout import Trajectory

EPSILON = 0.01  # so that an image can halt at the first unit (Graves 2016, section 2)
INITIAL_BIAS = -3.0  # of a score, the authors' value: at first all units run in stages of up to 21


class Halting(NamedTuple):
    """How B images halt in a stage of L units.

    Attributes:
        weights: halting distribution over the units, [B, L].
        units: how many of them run, 1 … L, [B] int64.
    """

    weights: Tensor
    units: Tensor

    @property
    def remainder(self) -> Tensor:
        """Weight of the last unit that runs, [B]."""
        return self.weights.gather(1, self.units.unsqueeze(1) - 1).squeeze(1)

    @property
    def ponder_cost(self) -> Tensor:
        """Units plus remainder, [B]; its gradient is -1 in the score of every unit that runs but the last."""
        return self.units + self.remainder

    def mean(self, outputs: Sequence[Tensor]) -> Tensor:
        """The mean of the units' outputs under the distribution: L times [B, …] → [B, …]."""
        ones = [1] * (outputs[0].dim() - 1)
        weights = self.weights.to(outputs[0].dtype).view(*self.weights.shape, *ones).unbind(dim=1)
        found = weights[0] * outputs[0]
        for weight, output in zip(weights[1:], outputs[1:], strict=True):
            found = torch.addcmul(found, weight, output)
        return found


def left(before: Tensor) -> Tensor:
    """1 - ε minus a sum of scores: positive where an image goes on to the next unit."""
    return 1 - EPSILON - before


def halting(before: Tensor) -> Halting:
    """The halting distribution of a stage from the sums of the scores before each of its units, [B, L]."""
    runs = left(before) > 0
    spent = torch.cat([torch.where(runs, before, 1), before.new_ones(len(before), 1)], dim=1)
    return Halting(spent.diff(dim=1), runs.sum(dim=1))


class HaltingGate(Gate):
    """ACT as a policy: pooled output of a unit → linear → score; its memory is the sum in the stage so far.

    A stage's first block always runs, and its last unit needs no score. In place of log-odds it returns 1 - ε
    minus the sum; the sign decides.

    Args:
        net: the backbone to gate.

    Raises:
        ValueError: every stage of the network has one block, which always runs; layers between two blocks.
    """

    def __init__(self, net: Network) -> None:
        super().__init__()
        if any(block.prefix is not None for block in net.blocks):
            raise ValueError(
                f"{net.name} has layers between its blocks that always run; halting needs stages that have "
                "only blocks, such as a ResNet's or a ViT's"
            )
        self.begins = [before != stage for before, stage in pairwise(net.stages)]
        if all(self.begins):
            raise ValueError(
                f"every stage of this {net.name} has one block, which always runs; expected a deeper network"
            )
        widths = [block.in_features for block in net.blocks[1:]]
        self.numbers = [t - sum(self.begins[:t]) for t in range(len(widths))]  # places in `scores`
        self.scores = module_list(
            nn.Linear(width, 1) for width, begins in zip(widths, self.begins, strict=True) if not begins
        )
        for score in self.scores:
            nn.init.zeros_(score.weight)
            nn.init.constant_(score.bias, INITIAL_BIAS)

    def forward(self, mdp: RoutingMDP, state: State, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """1 - ε minus the sum of scores [B], +∞ at a stage's first block, and the sum [B]."""
        if self.begins[state.t]:
            zeros = state.x.new_zeros(state.x.shape[0], dtype=self.scores[0].weight.dtype)
            return zeros + torch.inf, zeros
        total = self.score(mdp.pool(state, self.scores[0].weight.dtype), state.t)
        total = total if hidden is None else hidden + total
        return left(total), total

    def score(self, pooled: Tensor, t: int) -> Tensor:
        """Halting score of the unit before decision t, from its pooled output [B, C]: [B] in 0 … 1."""
        with autocast("fp32", pooled.device):
            return self.scores[self.numbers[t]](pooled).sigmoid().squeeze(1)

    def macs_per_decision(self) -> list[int]:
        """MACs of each of the N decisions for one image; none at a stage's first block."""
        return [
            0 if begins else self.scores[number].in_features
            for begins, number in zip(self.begins, self.numbers, strict=True)
        ]


def pondered(mdp: RoutingMDP, gate: HaltingGate, images: Tensor, labels: Tensor) -> tuple[Trajectory, Tensor]:
    """Play an episode per image in which a stage's output is the mean over its units.

    Args:
        mdp, gate: the decision process and its policy.
        images, labels: normalised images [B, 3, H, W] and labels [B] int64.

    Returns:
        The episodes, with gradients to network and scores, and the ponder cost, summed over the stages, [B].
    """
    state = mdp.initial(images, labels)
    total = cost = torch.zeros(len(labels), device=labels.device)
    outputs, before = [state.x], [total]  # of the stage's units, and the sums of scores before them
    gate_logits, actions = [], []
    while True:
        if mdp.terminal(state) or gate.begins[state.t]:
            halted = halting(torch.stack(before, dim=1))
            state, cost = state._replace(x=halted.mean(outputs)), cost + halted.ponder_cost
            outputs, before = [], []
        if mdp.terminal(state):
            break
        logit, total = gate(mdp, state, total)
        gate_logits.append(logit)
        actions.append(logit > 0)
        state = mdp.transition(state, actions[-1])
        outputs.append(state.x)
        before.append(total)
    logits = mdp.logits(state)
    loss = mdp.loss(state, logits)
    rewards = [
        mdp.reward(state._replace(t=t), action, state._replace(t=t + 1), loss)
        for t, action in enumerate(actions)
    ]
    episodes = Trajectory(
        gate_logits=torch.stack(gate_logits, 1),
        actions=torch.stack(actions, 1).to(loss.dtype),
        rewards=torch.stack(rewards, 1),
        logits=logits,
        labels=labels,
        loss=loss,
        state=state,
    )
    return episodes, cost
