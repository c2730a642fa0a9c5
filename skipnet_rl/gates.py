"""Gating networks: policies that decide from the block's input (SkipNet, section 3.2).

The paper words the layers loosely; sizes follow what its authors state for their experiments.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skipnet_rl.errors import unknown_name
from skipnet_rl.flops import count_macs, on_meta
from skipnet_rl.mdp import RoutingMDP, State
from skipnet_rl.precision import autocast
from skipnet_rl.resnet import ResNet

GATES = ("rnn",)
Hidden = tuple[Tensor, Tensor]


class RecurrentGate(nn.Module):
    """RNNGate: pooled feature → projection to 10, one per block → one LSTM shared by all → p(execute).

    The memory of the LSTM runs along the depth of the network and starts at zero with each image.
    On a pooled feature the 1×1 convolution of the paper is a linear layer.

    Args:
        net: the backbone whose blocks are to be gated.
        size: width of the projections and of the LSTM.
        initial_rate: p(execute) before training; near "execute", since a backbone that has not been
            trained with skips breaks down under many of them.
    """

    def __init__(self, net: ResNet, size: int = 10, initial_rate: float = 0.9) -> None:
        if not 0 < initial_rate < 1:
            raise ValueError(f"initial_rate is {initial_rate!r}; expected a probability between 0 and 1")
        super().__init__()
        self.size = size
        self.projections = nn.ModuleList(nn.Linear(block.in_channels, size) for block in net.blocks[1:])
        self.lstm = nn.LSTMCell(size, size)
        self.head = nn.Linear(size, 1)
        nn.init.normal_(self.head.weight, std=0.1)
        nn.init.constant_(self.head.bias, torch.logit(torch.tensor(initial_rate)).item())

    def forward(self, mdp: RoutingMDP, state: State, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        """Log-odds of "execute" [B] and the LSTM's memory, two [B, size]."""
        pooled = state.x.to(self.head.weight.dtype).mean(dim=(2, 3))
        return self.decide(pooled, state.t, hidden)

    def decide(self, pooled: Tensor, t: int, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        """The same from a pooled feature [B, C]."""
        with autocast("fp32", pooled.device):  # little work, and it decides
            hidden = self.lstm(torch.relu(self.projections[t](pooled)), hidden)
            return self.head(hidden[0]).squeeze(1), hidden

    def macs(self) -> int:
        """MACs of all N decisions for one image."""
        gate = on_meta(self)
        total, hidden = 0, None
        for t, projection in enumerate(gate.projections):
            pooled = torch.empty(1, projection.in_features, device="meta")
            macs, (_, hidden) = count_macs(gate.decide, pooled, t, hidden)
            total += macs
        return total


def make_gate(name: str, net: ResNet) -> RecurrentGate:
    """The gate called `name` for a backbone."""
    if name not in GATES:
        raise unknown_name("gate", name, GATES)
    return RecurrentGate(net)
