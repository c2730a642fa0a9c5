"""The forward pass of one network as a decision process.

SkipNet (Wang, Yu, Dou, Darrell, Gonzalez, ECCV 2018, arXiv 1711.09485), section 3.1, equation 1:
x^{i+1} = G^i(x^i) F^i(x^i) + (1 - G^i(x^i)) x^i. For reward and vocabulary see `process.DecisionProcess`.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from skipnet_rl.blocks import Block
from skipnet_rl.flops import NetworkMacs, block_costs, network_macs
from skipnet_rl.folding import for_inference
from skipnet_rl.process import ALPHA, Action, DecisionProcess, check_action
from skipnet_rl.resnet import ResNet, pool

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ALPHA", "Action", "RoutingMDP", "State", "put", "take"]


class State(NamedTuple):
    """A batch of images inside the network.

    Attributes:
        x: features [B, C, H, W], input of the block to decide on.
        y: labels [B], int64.
        t: number of the decision, 0 … N-1, or N at the end; the same for the whole batch.
    """

    x: Tensor
    y: Tensor
    t: int


class RoutingMDP(DecisionProcess):
    """The decision process over the blocks of one network.

    Args:
        net: the backbone; its first block always runs, so N = len(net.blocks) - 1.
        alpha: weight of the compute saving against the classification loss, ≥ 0.
        cost: `"blocks"` (C_i = 1, the paper), `"flops"` (a block's FLOPs over their mean), or C itself, [N].

    Raises:
        ValueError: see `DecisionProcess`; a network of one block, which has no decisions.
    """

    net: ResNet

    def __init__(self, net: ResNet, alpha: float = ALPHA, cost: str | Tensor = "blocks") -> None:
        if len(net.blocks) < 2:
            raise ValueError("the network has one block, which always runs; expected at least two")
        super().__init__(net, len(net.blocks) - 1, alpha, cost)
        self.feature_width = max(block.out_channels for block in net.blocks)  # of the widest stage

    def named_cost(self, cost: str) -> Tensor:
        """`"blocks"` or `"flops"`: [N]."""
        return block_costs(self.net, cost)

    @cached_property
    @torch.inference_mode(False)  # cached for later callers, who may need gradients
    def macs(self) -> NetworkMacs:
        """MACs of the network's parts, counted at the first use."""
        return network_macs(self.net)

    @property
    def whole_macs(self) -> int:
        """MACs of the plain network, every block executed."""
        return self.macs.total

    def compute_flops(self, state: State | None, routes: Tensor, policy_macs: int = 0) -> Tensor:
        """FLOPs of routes [B, N] over those of the plain network, see `DecisionProcess`; [B] float64."""
        return self.macs.of_routes(routes, policy_macs) / self.macs.total

    @property
    def dtype(self) -> torch.dtype:
        """Type of rewards and logits: the classifier's, at least float32."""
        return torch.promote_types(self.net.fc.weight.dtype, torch.float32)

    def for_inference(self, precision: str = "fp32") -> Self:
        """The same process over a copy of the network with its batch norms folded."""
        copied = copy.copy(self)
        copied.net = for_inference(self.net, precision)
        return copied

    def block(self, t: int) -> Block:
        """The block that decision t is about."""
        return self.net.blocks[t + 1]

    def initial(self, images: Tensor, labels: Tensor) -> State:
        """Stem and first block: normalised images [B, 3, H, W], labels [B] → State at t = 0."""
        return State(self.net.blocks[0](self.net.enter(images)), labels, 0)

    def features(self, state: State) -> Tensor:
        """Pooled feature of the block's input: [B, C] float32."""
        return pool(state.x, torch.float32)

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
        check_action(action, state)
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

    def logits(self, state: State) -> Tensor:
        """The classifier on the last feature map: [B, K] float32."""
        return self.net.classify(state.x)


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
