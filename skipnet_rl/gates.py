"""Gating networks: policies that decide from the block's input (SkipNet, section 3.1).

The paper describes the layers only roughly; sizes follow its authors' experiments. Every gate returns
log-odds. The rollout's `mode` says whether these are thresholded, sampled, passed straight through or used as
probabilities.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from skipnet_rl.device import autocast
from skipnet_rl.errors import unknown_name
from skipnet_rl.flops import count_macs, on_meta
from skipnet_rl.layouts import MAPS, pool
from skipnet_rl.mdp import RoutingMDP, State
from skipnet_rl.modules import module_list
from skipnet_rl.network import Network

INITIAL_RATE = 0.9  # mostly "execute": a backbone not trained with skips breaks down under many
Hidden = tuple[Tensor, Tensor]


class Gate(nn.Module):
    """Base class of the gates: a policy with a computational cost."""

    _macs: int | None = None

    def forward(self, mdp: RoutingMDP, state: State, hidden: Any) -> tuple[Tensor, Any]:
        """Log-odds of "execute" [B] for decision `state.t`, and the memory."""
        raise NotImplementedError

    def macs_per_decision(self) -> list[int]:
        """MACs of each of the N decisions for one image."""
        raise NotImplementedError

    def macs(self) -> int:
        """MACs of all N decisions for one image, counted at the first call."""
        if self._macs is None:
            self._macs = sum(self.macs_per_decision())  # takes half a second for a ResNet-110
        return self._macs


class RecurrentGate(Gate):
    """RNNGate: pooled feature → projection to 10, one per block → one LSTM shared by all → p(execute).

    The LSTM runs along the depth of the network; its memory starts at zero for each image. On a pooled
    feature the 1×1 convolution of the paper is a linear layer. The ReLU after it is not in the paper.

    Args:
        net: the backbone to gate.
        size: width of the projections and of the LSTM.
        initial_rate: p(execute) before training.
        gain: factor on the initial weights between the pooled feature and the log-odds. At 1 the log-odds of
            an untrained gate hardly differ between images (`docs/gates.md`).

    Raises:
        ValueError: `initial_rate` is not a probability, or `gain` is not positive.
    """

    def __init__(
        self, net: Network, size: int = 10, initial_rate: float = INITIAL_RATE, gain: float = 1.0
    ) -> None:
        bias = _log_odds(initial_rate)
        super().__init__()
        self.size = size
        self.projections = module_list(nn.Linear(block.in_features, size) for block in net.blocks[1:])
        self.lstm = nn.LSTMCell(size, size)
        self.head = nn.Linear(size, 1)
        nn.init.normal_(self.head.weight, std=0.1)
        nn.init.constant_(self.head.bias, bias)
        _amplify(gain, *(layer.weight for layer in self.projections), self.lstm.weight_ih, self.head.weight)

    def forward(self, mdp: RoutingMDP, state: State, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        """Log-odds of "execute" [B] and the LSTM's memory, two [B, size]."""
        return self.decide(mdp.pool(state, self.head.weight.dtype), state.t, hidden)

    def decide(self, pooled: Tensor, t: int, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        """Log-odds and memory from a pooled feature [B, C]."""
        with autocast("fp32", pooled.device):  # cheap, and decisions should be exact
            hidden = self.lstm(torch.relu(self.projections[t](pooled)), hidden)
            return self.head(hidden[0]).squeeze(1), hidden

    def macs_per_decision(self) -> list[int]:
        """MACs of each of the N decisions for one image: projection, LSTM and head."""
        gate, counts = on_meta(self), []
        hidden: Hidden | None = None
        for t, projection in enumerate(gate.projections):
            pooled = torch.empty(1, projection.in_features, device="meta")
            macs, (_, hidden) = count_macs(gate.decide, pooled, t, hidden)
            counts.append(macs)
        return counts


class FeedForwardGate(Gate):
    """Base of FFGate-I and -II: one small convolutional network per block, on the block's input.

    Args:
        net: the backbone to gate.
        initial_rate: p(execute) before training.
        gain: factor on the initial weights of the last linear layer.

    Raises:
        ValueError: `initial_rate` is not a probability, or `gain` is not positive.
    """

    def __init__(self, net: Network, initial_rate: float = INITIAL_RATE, gain: float = 1.0) -> None:
        bias = _log_odds(initial_rate)
        super().__init__()
        self.shapes = maps_of(net, type(self).__name__)
        self.features = module_list(self.layers(channels) for channels, _, _ in self.shapes)
        self.heads = module_list(nn.Linear(channels, 2) for channels, _, _ in self.shapes)
        for head in self.heads:
            nn.init.normal_(head.weight, std=0.02)  # at first the bias decides, whatever the image
            with torch.no_grad():
                head.bias.copy_(torch.tensor([0.0, bias], device=head.bias.device))
        _amplify(gain, *(head.weight for head in self.heads))

    @staticmethod
    def layers(channels: int) -> nn.Sequential:
        """Layers before the global average pool."""
        raise NotImplementedError

    def forward(self, mdp: RoutingMDP, state: State, hidden: None) -> tuple[Tensor, None]:
        """Log-odds of "execute" [B]; no memory."""
        return self.decide(state.x, state.t), None

    def decide(self, x: Tensor, t: int) -> Tensor:
        """Log-odds [B] from a feature map [B, C, H, W]."""
        head = self.heads[t]
        maps = self.features[t](x.to(head.weight.dtype))
        with autocast("fp32", x.device):  # convolutions may run in bf16, the decision in float32
            skip, execute = head(pool(maps, head.weight.dtype)).unbind(dim=1)
        return execute - skip

    def macs_per_decision(self) -> list[int]:
        """MACs of each of the N decisions for one image of the network's image size."""
        gate = on_meta(self)
        images = (torch.empty(1, *shape, device="meta") for shape in self.shapes)
        return [count_macs(gate.decide, x, t)[0] for t, x in enumerate(images)]


class FeedForwardGateI(FeedForwardGate):
    """FFGate-I, for networks of fewer than 100 layers: max pool and two 3×3 convolutions."""

    @staticmethod
    def layers(channels: int) -> nn.Sequential:
        """2×2 max pool → 3×3 conv, BN, ReLU → 3×3 conv of stride 2, BN, ReLU."""
        return nn.Sequential(nn.MaxPool2d(2), *_conv(channels, stride=1), *_conv(channels, stride=2))


class FeedForwardGateII(FeedForwardGate):
    """FFGate-II, for deeper networks: one 3×3 convolution of stride 2."""

    @staticmethod
    def layers(channels: int) -> nn.Sequential:
        """3×3 conv of stride 2, BN, ReLU."""
        return nn.Sequential(*_conv(channels, stride=2))


GATES: dict[str, type[RecurrentGate] | type[FeedForwardGate]] = {
    "rnn": RecurrentGate,
    "ff1": FeedForwardGateI,
    "ff2": FeedForwardGateII,
}


def make_gate(name: str, net: Network, gain: float = 1.0) -> RecurrentGate | FeedForwardGate:
    """Make the gate called `name` for a backbone; see the classes for `gain`.

    Raises:
        ValueError: an unknown name, or `gain` is not positive.
    """
    if name not in GATES:
        raise unknown_name("gate", name, GATES)
    return GATES[name](net, gain=gain)


def maps_of(net: Network, gate: str) -> list[tuple[int, ...]]:
    """Shape (C, H, W) of the input of each decision.

    Raises:
        ValueError: a block whose input is not a map of at least 2×2 places.
    """
    for number, (block, shape) in enumerate(zip(net.blocks, net.input_shapes(), strict=True)):
        if number and (block.layout is not MAPS or min(shape[1:]) < 2):
            raise ValueError(
                f"{gate} needs maps [B, C, H, W] of at least 2×2 places; block {number} of {net.name} takes "
                f"{block.layout.name} with {' × '.join(map(str, shape))} for an image: choose the gate rnn"
            )
    return net.input_shapes()[1:]


def _conv(channels: int, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(channels), nn.ReLU()


@torch.no_grad()
def _amplify(gain: float, *weights: Tensor) -> None:
    if not 0 < gain < math.inf:
        raise ValueError(f"gain is {gain!r}; expected a positive number, such as 1.0")
    for weight in weights:
        weight.mul_(gain)


def _log_odds(rate: float) -> float:
    if not 0 < rate < 1:
        raise ValueError(f"initial_rate is {rate!r}; expected a probability between 0 and 1")
    return math.log(rate / (1 - rate))
