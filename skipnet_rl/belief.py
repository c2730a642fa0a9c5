"""Beliefs: confidence features of a finished answer, and the policies that decide by them alone.

An answer is log-probabilities [B, K]. In float32 the largest probability p1 of a sure network rounds to 1,
and all sure answers would look alike. So probabilities are never formed: 1 - p1 is summed over the other
classes in logarithms, and answers are kept in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skipnet_rl.device import autocast
from skipnet_rl.errors import unknown_name
from skipnet_rl.flops import count_macs, on_meta
from skipnet_rl.gates import Gate
from skipnet_rl.process import DecisionProcess

TOP = 3  # largest log-probabilities in a belief


def margin(answer: Tensor) -> Tensor:
    """log p1 - log p2: [B, K] → [B], 0 where two classes tie."""
    first, second = answer.topk(2, dim=1).values.unbind(dim=1)
    return first - second


def doubt(answer: Tensor) -> Tensor:
    """log(1 - p1), summed over all classes but the most likely: [B, K] → [B], below 0."""
    return answer.scatter(1, answer.argmax(dim=1, keepdim=True), -math.inf).logsumexp(dim=1)


def entropy(answer: Tensor) -> Tensor:
    """Entropy in nats: [B, K] → [B]."""
    return -(answer.exp() * answer).sum(dim=1)


def belief_size(num_classes: int) -> int:
    """Length of a belief about K classes."""
    return min(TOP, num_classes) + 3


def belief(answer: Tensor) -> Tensor:
    """The largest three log-probabilities, margin, entropy and log(1 - p1): [B, K] → [B, 6].

    With two classes there are two log-probabilities, and five numbers.
    """
    top = answer.topk(min(TOP, answer.shape[1]), dim=1).values
    return torch.cat([top, torch.stack([margin(answer), entropy(answer), doubt(answer)], dim=1)], dim=1)


# how sure an answer is, by name; the larger, the surer
SURENESS: dict[str, Callable[[Tensor], Tensor]] = {
    "margin": margin,
    "confidence": lambda answer: -doubt(answer),  # orders answers as p1 does
}


class Threshold(nn.Module):
    """A policy that asks the next network where the answer so far is less sure than a threshold.

    Args:
        thresholds: one per decision, N, saved and loaded like weights; -∞ asks about no image, ∞ about all.
        by: what is compared: `"margin"`, log p1 - log p2; or `"confidence"`, -log(1 - p1).

    Raises:
        ValueError: an unknown `by`, or thresholds that are not numbers.
    """

    thresholds: Tensor

    def __init__(self, thresholds: Sequence[float] | Tensor, by: str = "margin") -> None:
        if by not in SURENESS:
            raise unknown_name("measure of sureness", by, SURENESS)
        values = torch.as_tensor(thresholds, dtype=torch.float64, device="cpu")
        if values.ndim != 1 or values.isnan().any():
            raise ValueError(f"thresholds are {thresholds!r}; expected one number per decision")
        super().__init__()
        self.by = by
        self.register_buffer("thresholds", values)

    def forward(self, mdp: DecisionProcess, state: Any, hidden: None) -> tuple[Tensor, None]:
        """Threshold minus sureness, [B]: above 0 where the next network is asked."""
        return self.thresholds[state.t] - SURENESS[self.by](state.answer), None


class BeliefGate(Gate):
    """One hidden layer of tanh units from the observation to the log-odds of "execute".

    Args:
        mdp: a process whose observation is a belief, see `skipnet_rl.chain.ChainMDP`.
        width: hidden units.
    """

    SCALE = 0.1  # log-probabilities of sure networks go down to -30

    def __init__(self, mdp: DecisionProcess, width: int = 16) -> None:
        super().__init__()
        self.num_decisions = mdp.num_decisions
        head = nn.Linear(width, 1)
        nn.init.zeros_(head.weight)  # every decision is a fair coin at first
        nn.init.zeros_(head.bias)
        self.layers = nn.Sequential(nn.Linear(mdp.observation_size, width), nn.Tanh(), head)
        self.register_buffer("scale", torch.ones(mdp.observation_size, device=head.weight.device))
        self.scale[: mdp.feature_width] = self.SCALE

    scale: Tensor

    def forward(self, mdp: DecisionProcess, state: Any, hidden: None) -> tuple[Tensor, None]:
        """Log-odds of "execute" [B]; there is no memory."""
        return self.decide(mdp.observation(state)), None

    def decide(self, observation: Tensor) -> Tensor:
        """Log-odds [B] from an observation [B, D]."""
        with autocast("fp32", observation.device):
            return self.layers(observation * self.scale).squeeze(1)

    def macs_per_decision(self) -> list[int]:
        """MACs of each of the N decisions for one image."""
        observation = torch.empty(1, len(self.scale), device="meta")
        return [count_macs(on_meta(self).decide, observation)[0]] * self.num_decisions
