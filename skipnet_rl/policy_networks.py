"""Policies that are not gates: one look at the image, or layers on the environment's observation.

`PolicyNetwork` is BlockDrop's (Wu et al. 2018, arXiv 1711.08393, section 3.2). `ObservationPolicy` rebuilds
in plain PyTorch the policies that stable-baselines3 trains, so that their weights open without that package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skipnet_rl.device import autocast
from skipnet_rl.errors import WeightsError
from skipnet_rl.flops import count_macs, on_meta
from skipnet_rl.mdp import RoutingMDP, State
from skipnet_rl.process import DecisionProcess
from skipnet_rl.resnet import ResNet

Memory = tuple[Tensor, Tensor]
ACTOR, VALUES = "mlp_extractor.policy_net.", "q_net.q_net."  # stable-baselines3's names of the layers
LSTM, LAST = "lstm_actor.", "action_net"


class PolicyNetwork(nn.Module):
    """A policy that computes all N log-odds from the image at the start, and keeps them as its memory.

    Args:
        num_decisions: N.
        depth: 6n+2.
        image_size: side of the images; those larger than 32 are shrunk by average pooling first.
    """

    def __init__(self, num_decisions: int, depth: int = 8, image_size: int = 32) -> None:
        super().__init__()
        self.image_size = image_size
        self.shrink = nn.AvgPool2d(max(image_size // 32, 1))
        self.net = ResNet(depth, num_decisions)
        nn.init.normal_(self.net.fc.weight, std=0.02)  # the bias decides at first, whatever the image
        nn.init.constant_(self.net.fc.bias, 2.0)  # mostly "execute", which the backbone can cope with

    def start(self, images: Tensor) -> Tensor:
        """The log-odds [B, N]."""
        return self.net(self.shrink(images))

    def forward(self, mdp: RoutingMDP, state: State, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The log-odds [B] for the block at `state.t`."""
        return hidden[:, state.t], hidden

    def macs(self) -> int:
        """MACs of its one forward pass for one image of `image_size`."""
        image = torch.empty(1, 3, self.image_size, self.image_size, device="meta")
        macs, _ = count_macs(on_meta(self).start, image)
        return macs


class OnObservations(nn.Module):
    """A policy that decides from the first `width` numbers of the observation alone, on its own device.

    Args:
        width: length of its observations, with or without the one-hot part.
        num_decisions: N, to count the MACs.
    """

    def __init__(self, width: int, num_decisions: int) -> None:
        super().__init__()
        self.width, self.num_decisions = width, num_decisions

    def decide(self, observation: Tensor, hidden: Any) -> tuple[Tensor, Any]:
        """Log-odds of "execute" [B] from observations [B, `width`], and the memory."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def forward(self, mdp: DecisionProcess, state: Any, hidden: Any) -> tuple[Tensor, Any]:
        """Log-odds of "execute" [B] on the device of the images, and the memory of a recurrent policy."""
        if self.width not in (mdp.observation_size, mdp.feature_width):
            expected = f"{mdp.observation_size}, or {mdp.feature_width} with obs_mode='feature'"
            raise ValueError(
                f"the policy takes observations of length {self.width}; this network has {expected}"
            )
        place = state.y.device
        observation = mdp.observation(state)[:, : self.width].to(self.device)
        with autocast("fp32", place):
            logit, hidden = self.decide(observation, hidden)
        return logit.to(place), hidden

    def macs(self) -> int:
        """MACs of all N decisions for one image."""
        with torch.no_grad():
            once, _ = count_macs(self.decide, torch.zeros(1, self.width, device=self.device), None)
        return once * self.num_decisions


class ObservationPolicy(OnObservations):
    """Layers on the observation, optionally after an LSTM, with two outputs: skip, execute.

    The log-odds of "execute" are the difference of two log-probabilities (PPO, A2C, RecurrentPPO), or of two
    action values (DQN). Their sign is the greedy choice in both cases.

    Args:
        layers: observation [B, D], or the LSTM's output, → [B, 2].
        lstm: the LSTM before the layers, or None.
        values: whether the outputs are action values; else they are logits.
        num_decisions: N, to count the MACs.
    """

    def __init__(self, layers: nn.Sequential, lstm: nn.LSTM | None, values: bool, num_decisions: int) -> None:
        first: Any = layers[0] if lstm is None else lstm
        super().__init__(first.in_features if lstm is None else first.input_size, num_decisions)
        self.layers, self.lstm, self.values = layers, lstm, values

    @classmethod
    def of_sb3(cls, tensors: Mapping[str, Tensor], num_decisions: int) -> ObservationPolicy:
        """Rebuild a policy of stable-baselines3 from its weights.

        The activations are that package's defaults: ReLU in a Q-network, tanh in an actor. What only training
        needs, such as the critic, is left out.

        Args:
            tensors: `policy.state_dict()` of a model of PPO, A2C, DQN or RecurrentPPO.
            num_decisions: N, to count the MACs.

        Raises:
            WeightsError: the tensors are not those of such a policy.
        """
        values = any(name.startswith(VALUES) for name in tensors)
        hidden, last = (VALUES, "") if values else (ACTOR, LAST)
        names = sorted({name.rpartition(".")[0] for name in tensors if name.startswith(hidden)}, key=_number)
        try:
            layers: list[nn.Module] = []
            for name in [*names, *([last] if last else [])]:
                layers += [_linear(tensors, name), nn.ReLU() if values else nn.Tanh()]
            policy = cls(nn.Sequential(*layers[:-1]), _lstm(tensors), values, num_decisions)
        except (KeyError, IndexError, ValueError, RuntimeError, AttributeError) as error:
            raise WeightsError(f"these are not the weights of a policy on observations: {error}") from error
        if policy.layers[-1].out_features != 2:
            raise WeightsError(f"the policy has {policy.layers[-1].out_features} actions; expected 2")
        return policy

    def decide(self, observation: Tensor, hidden: Memory | None) -> tuple[Tensor, Memory | None]:
        """Log-odds of "execute" [B], and the LSTM's memory, two [layers, B, size], if it has one."""
        if self.lstm is not None:
            sequence, hidden = self.lstm(observation.unsqueeze(0), hidden)  # of one step
            observation = sequence.squeeze(0)
        outputs = self.layers(observation)
        if not self.values:
            outputs = outputs - outputs.logsumexp(dim=1, keepdim=True)
        return outputs[:, 1] - outputs[:, 0], hidden


def _number(name: str) -> int:
    return int(name.rpartition(".")[2])


def _linear(tensors: Mapping[str, Tensor], name: str) -> nn.Linear:
    weight = tensors[f"{name}.weight"]
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": tensors[f"{name}.bias"]})
    return layer


def _lstm(tensors: Mapping[str, Tensor]) -> nn.LSTM | None:
    found = {name.removeprefix(LSTM): value for name, value in tensors.items() if name.startswith(LSTM)}
    if not found:
        return None
    size, width = found["weight_hh_l0"].shape[1], found["weight_ih_l0"].shape[1]
    lstm = nn.LSTM(width, size, num_layers=sum(name.startswith("weight_hh") for name in found))
    lstm.load_state_dict(found)
    return lstm
