"""A forward pass as an episode: the only dynamics in the project.

SkipNet (Wang, Yu, Dou, Darrell, Gonzalez, ECCV 2018, arXiv 1711.09485), section 3.1, equation 1:
x^{i+1} = G^i(x^i) F^i(x^i) + (1 - G^i(x^i)) x^i. The vocabulary is that of Gymnasium's functional
environments: initial, observation, transition, reward, terminal. Nothing here holds episode state.
"""

from __future__ import annotations

import math
from enum import IntEnum
from functools import cached_property
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from skipnet_rl.flops import NetworkMacs, block_costs, network_macs
from skipnet_rl.resnet import Block, ResNet, pool

ALPHA = 1.0  # unless said otherwise; the paper's 0.1 or so asks for its thousands of steps


class Action(IntEnum):
    """What to do with an image at a block."""

    SKIP = 0
    EXECUTE = 1


class State(NamedTuple):
    """A batch of images somewhere on its way through the network.

    Attributes:
        x: features [B, C, H, W], the input of the block to decide on.
        y: labels [B], int64.
        t: number of the decision, 0 … N-1, or N at the end; one int, the batch moves in lockstep.
    """

    x: Tensor
    y: Tensor
    t: int


class RoutingMDP:
    """The decision process over one network.

    Args:
        net: the backbone; its first block always runs, so N = len(net.blocks) - 1.
        alpha: weight of the compute saving against the classification loss, ≥ 0.
        cost: `"blocks"` (C_i = 1, the paper), `"flops"` (a block's share of the mean), or C itself, [N].

    Raises:
        ValueError: alpha negative or not a number, an unknown cost, costs of another length than N or
            not finite, a network of one block, which leaves nothing to decide.
    """

    @torch.inference_mode(False)
    def __init__(self, net: ResNet, alpha: float = ALPHA, cost: str | Tensor = "blocks") -> None:
        if isinstance(alpha, bool) or not (isinstance(alpha, Real) and math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha is {alpha!r}; expected a finite number >= 0, such as 0.1")
        self.net: ResNet = net
        self.alpha: float = float(alpha)
        self.num_decisions: int = len(net.blocks) - 1
        if self.num_decisions < 1:
            raise ValueError("the network has one block, which always runs; expected at least two")
        self.cost: Tensor = block_costs(net, cost) if isinstance(cost, str) else cost
        if not isinstance(self.cost, Tensor):
            self.cost = torch.as_tensor(cost, device="cpu")
        if self.cost.shape != (self.num_decisions,):
            raise ValueError(f"cost has shape {tuple(self.cost.shape)}; expected ({self.num_decisions},)")
        if not self.cost.isfinite().all():
            raise ValueError(f"cost is {self.cost.tolist()}; expected finite numbers")
        self.payment: list[float] = (
            self.alpha / self.num_decisions * self.cost
        ).tolist()  # of skipping decision t
        self.feature_width: int = max(block.out_channels for block in net.blocks)

    @cached_property
    @torch.inference_mode(False)  # it is kept, and later callers may want gradients
    def macs(self) -> NetworkMacs:
        """MACs of the network's parts, as it is at the first use."""
        return network_macs(self.net)

    @property
    def observation_size(self) -> int:
        """D: the widest stage's channels plus one place per decision."""
        return self.feature_width + self.num_decisions

    def block(self, t: int) -> Block:
        """The block that decision t is about."""
        return self.net.blocks[t + 1]

    def initial(self, images: Tensor, labels: Tensor) -> State:
        """Stem and first block: normalised images [B, 3, H, W], labels [B] → State at t = 0."""
        return State(self.net.blocks[0](self.net.enter(images)), labels, 0)

    def observation(self, state: State) -> Tensor:
        """Pooled feature, zero-padded to the widest stage, then the decision's one-hot: [B, D] float32.

        At the end of the episode the one-hot part is zero.
        """
        pooled = pool(state.x, torch.float32)
        observation = pooled.new_zeros(len(pooled), self.observation_size)
        observation[:, : pooled.shape[1]] = pooled
        if not self.terminal(state):
            observation[:, self.feature_width + state.t] = 1
        return observation

    def transition(self, state: State, action: Tensor, inplace: bool = False) -> State:
        """Move past one block.

        Args:
            state: before the block.
            action: bool [B] runs the block's transform on the executed images alone (gather, run,
                scatter); float [B] in [0, 1] runs it on all and mixes, differentiable in the gate. In
                training mode its batch norms then see all images, not the executed ones alone.
            inplace: the new features may be written over `state.x`, which is then lost; saves a copy.

        Raises:
            ValueError: an action of another shape, or neither bool nor floating point.
        """
        if action.shape != state.y.shape or not (action.dtype == torch.bool or action.is_floating_point()):
            came = f"{action.dtype} of shape {tuple(action.shape)}"
            raise ValueError(f"action is {came}; expected bool or float of shape ({len(state.y)},)")
        block, x = self.block(state.t), state.x
        skipped = block.shortcut(x)  # once for the whole batch: its batch norm moves once
        if action.dtype != torch.bool:
            gate = action.to(skipped.dtype).view(-1, 1, 1, 1)
            executed = block.execute(x, skipped)
            return State(gate * executed + (1 - gate) * skipped, state.y, state.t + 1)
        index = action.nonzero().squeeze(1)
        if len(index) == 0:
            x = skipped
        elif len(index) == len(action):
            x = block.execute(x, skipped)
        else:
            rows = take(x, index)
            shortcut = rows if skipped is x else take(skipped, index)
            executed = block.execute(rows, shortcut)
            x = put(skipped, index, executed.to(skipped.dtype), inplace or skipped is not x)
        return State(x, state.y, state.t + 1)

    def reward(self, state: State, action: Tensor, next_state: State) -> Tensor:
        """alpha/N (1 - a) C_t, and at the end minus the detached cross-entropy: [B], float32 or the net's."""
        precision = torch.promote_types(self.net.fc.weight.dtype, torch.float32)
        reward = self.payment[state.t] * (1 - action.to(precision))
        return reward - self.loss(next_state).detach() if self.terminal(next_state) else reward

    def terminal(self, state: State) -> bool:
        """Whether all N decisions are taken; one answer for the batch."""
        return state.t == self.num_decisions

    def logits(self, state: State) -> Tensor:
        """The classifier on the last feature map: [B, K] float32."""
        return self.net.classify(state.x)

    def loss(self, state: State) -> Tensor:
        """Cross-entropy per image, differentiable: [B] float32."""
        return F.cross_entropy(self.logits(state), state.y, reduction="none")


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` of x [B, C, H, W] in channels-last memory, where `x[index]` would leave it."""
    return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


def put(x: Tensor, index: Tensor, rows: Tensor, inplace: bool) -> Tensor:
    """x [B, C, H, W], or a copy of it, with `rows` at `index`, in channels-last memory."""
    x, rows = x.permute(0, 2, 3, 1), rows.permute(0, 2, 3, 1)
    if not inplace:
        return x.index_copy(0, index, rows).permute(0, 3, 1, 2)
    if not (x.requires_grad or rows.requires_grad) and (_in_words(x) and _in_words(rows)):
        # the same bytes as 64-bit integers: on a CPU copying costs by the number of elements
        x.view(torch.int64).index_copy_(0, index, rows.view(torch.int64))
    else:
        x.index_copy_(0, index, rows)
    return x.permute(0, 3, 1, 2)


def _in_words(x: Tensor) -> bool:
    """Whether each row of channels lies in memory as whole 64-bit words."""
    return x.is_contiguous() and x.shape[-1] * x.element_size() % 8 == 0
