"""The forward pass of one network as a decision process.

SkipNet (Wang, Yu, Dou, Darrell, Gonzalez, ECCV 2018, arXiv 1711.09485), section 3, equation 1:
x^{i+1} = G^i(x^i) F^i(x^i) + (1 - G^i(x^i)) x^i. For reward and vocabulary see `process.DecisionProcess`.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from skipnet_rl.flops import NetworkMacs, network_macs
from skipnet_rl.folding import for_inference
from skipnet_rl.layouts import put, share_memory, take
from skipnet_rl.modules import batch_norms, evaluation_mode
from skipnet_rl.network import Network, ResidualBlock
from skipnet_rl.process import ALPHA, Action, DecisionProcess, check_action

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ALPHA", "Action", "RoutingMDP", "State", "put", "take"]


class State(NamedTuple):
    """A batch of images inside the network.

    Attributes:
        x: input of the block to decide on: maps [B, C, H, W], or what else the network works on, [B, …].
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

    net: Network

    def __init__(self, net: Network, alpha: float = ALPHA, cost: str | Tensor = "blocks") -> None:
        if len(net.blocks) < 2:
            raise ValueError("the network has one block, which always runs; expected at least two")
        super().__init__(net, len(net.blocks) - 1, alpha, cost)
        widths = [width for block in net.blocks for width in (block.in_features, block.out_features)]
        self.feature_width = max(widths)  # of the widest stage

    @cached_property
    @torch.inference_mode(False)  # cached for later callers, who may need gradients
    def macs(self) -> NetworkMacs:
        """MACs of the network's parts, counted at the first use."""
        return network_macs(self.net)

    @property
    def whole_macs(self) -> int:
        """MACs of the plain network, every block executed."""
        return self.macs.total

    @property
    def decision_macs(self) -> tuple[int, ...]:
        """MACs of each block's transform, without its shortcut, which always runs; N numbers."""
        return self.macs.transforms

    def compute_flops(self, state: State | None, routes: Tensor, policy_macs: int = 0) -> Tensor:
        """FLOPs of routes [B, N] over those of the plain network, see `DecisionProcess`; [B] float64."""
        return self.macs.of_routes(routes, policy_macs) / self.macs.total

    @property
    def dtype(self) -> torch.dtype:
        """Type of rewards and logits: the classifier's, at least float32."""
        return torch.promote_types(self.net.dtype, torch.float32)

    def for_inference(self, precision: str = "fp32") -> Self:
        """The same process over a copy of the network with its batch norms folded."""
        copied = copy.copy(self)
        copied.net = for_inference(self.net, precision)
        return copied

    def block(self, t: int) -> ResidualBlock:
        """The block that decision t is about."""
        return self.net.blocks[t + 1]

    def initial(self, images: Tensor, labels: Tensor) -> State:
        """Stem and first block: normalised images [B, 3, H, W], labels [B] → State at t = 0."""
        return self.arrived(self.net.blocks[0](self.net.enter(images)), labels, 0)

    def arrived(self, x: Tensor, labels: Tensor, t: int) -> State:
        """The state at decision t: first run the layers that always run after the block before it."""
        if t < self.num_decisions and (prefix := self.block(t).prefix) is not None:
            x = prefix(x)
        return State(x, labels, t)

    def features(self, state: State) -> Tensor:
        """Pooled feature of the block's input, at the end of the last block's output: [B, C] float32."""
        return self.pool(state, torch.float32)

    def pool(self, state: State, dtype: torch.dtype) -> Tensor:
        """Pooled feature in a floating-point type, see `layouts`: [B, C]."""
        return self.block(min(state.t, self.num_decisions - 1)).layout.pool(state.x, dtype)

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
            gate = action.to(skipped.dtype).view(-1, *[1] * (skipped.dim() - 1))
            executed = block.execute(x, skipped)
            return self.arrived(gate * executed + (1 - gate) * skipped, state.y, state.t + 1)
        index = action.nonzero().squeeze(1)
        if len(index) == 0:
            x = skipped
        elif len(index) == len(action):
            x = block.execute(x, skipped)
        else:
            layout = block.layout
            rows = take(x, index, layout)
            shortcut = rows if skipped is x else take(skipped, index, layout)
            # PyTorch refuses to normalise by the statistics of one value per channel
            alone = len(index) == 1 and skipped[0, 0].numel() == 1
            with evaluation_mode(batch_norms(self.net) if alone else None):
                executed = block.execute(rows, shortcut)
            # a new tensor is written over, unless the shortcut's last layer may need it for its gradient
            own = not (skipped.requires_grad or skipped is x or share_memory(skipped, x))
            x = put(skipped, index, executed.to(skipped.dtype), inplace or own, layout)
        return self.arrived(x, state.y, state.t + 1)

    def logits(self, state: State) -> Tensor:
        """The classifier on the last features: [B, K] float32."""
        return self.net.classify(state.x)
