"""The Policy protocol, and policies that need no training.

A policy is a callable `policy(mdp, state, hidden) -> (logit, hidden)`. The logit [B] is the log-odds of
"execute". Policies on feature maps read `state.x`, policies on observations `mdp.observation(state)`. A
policy's memory is passed as `hidden`, never in the State; it is None at the first decision, or the result of
the policy's method `start(images)` if it has one. A policy with a computational cost has a method `macs()`,
the multiply-accumulates of all its decisions for one image.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from skipnet_rl.device import autocast
from skipnet_rl.mdp import RoutingMDP, State
from skipnet_rl.modules import module_list
from skipnet_rl.process import DecisionProcess


class Policy(Protocol):
    """A function or module that decides which images execute a block."""

    def __call__(self, mdp: DecisionProcess, state: Any, hidden: Any, /) -> tuple[Tensor, Any]:
        """Log-odds of "execute" [B] for decision `state.t`, and the memory to pass to the next call."""
        ...


class Critic(Protocol):
    """A function or module that predicts rewards-to-go."""

    def __call__(self, mdp: DecisionProcess, state: Any, /) -> Tensor:
        """Expected sum of the rewards from decision `state.t` on, [B]."""
        ...


def first_memory(policy: Any, images: Tensor) -> Any:
    """Memory before the first decision: `policy.start(images)` for images [B, 3, H, W], or None."""
    return policy.start(images) if hasattr(policy, "start") else None


class _Adjusted(nn.Module):
    """Wraps a policy and changes its log-odds; memory and cost are the policy's."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def start(self, images: Tensor) -> Any:
        """The policy's memory before the first decision."""
        return first_memory(self.policy, images)

    def macs(self) -> int:
        """MACs of the policy."""
        return policy_macs(self.policy)


class Biased(_Adjusted):
    """A policy with a constant added to its log-odds, to change the compute budget of trained gates.

    A bias above zero executes more blocks, one below zero fewer, without retraining.
    """

    def __init__(self, policy: Policy, bias: float) -> None:
        if math.isnan(bias):
            raise ValueError("bias is nan; expected a number of logits, such as -0.5")
        super().__init__(policy)
        self.bias = bias

    def forward(self, mdp: DecisionProcess, state: Any, hidden: Any) -> tuple[Tensor, Any]:
        """The policy's log-odds [B] plus the bias."""
        logit, hidden = self.policy(mdp, state, hidden)
        return logit + self.bias, hidden


class Exploring(_Adjusted):
    """A policy whose p(execute) is mapped into [floor, 1 - floor], so that each action is tried.

    p' = floor + (1 - 2 floor) p is both sampled and differentiated, so the score function is on-policy.
    """

    def __init__(self, policy: Policy, floor: float) -> None:
        if not 0 <= floor < 0.5:
            raise ValueError(f"exploration floor is {floor!r}; expected 0 <= floor < 0.5")
        super().__init__(policy)
        self.floor = floor

    def forward(self, mdp: DecisionProcess, state: Any, hidden: Any) -> tuple[Tensor, Any]:
        """Log-odds of p' [B]."""
        logit, hidden = self.policy(mdp, state, hidden)
        if self.floor == 0:
            return logit, hidden
        scale = 1 - 2 * self.floor
        up = self.floor + scale * logit.sigmoid()
        down = self.floor + scale * (-logit).sigmoid()
        return up.log() - down.log(), hidden


class ValueBaseline(nn.Module):
    """Predicts the rewards-to-go from the pooled feature, one linear map per decision.

    The feature is detached, so that the backbone is not trained by the critic.
    """

    def __init__(self, mdp: RoutingMDP) -> None:
        super().__init__()
        channels = [mdp.block(t).in_features for t in range(mdp.num_decisions)]
        self.heads = module_list(nn.Linear(count, 1) for count in channels)
        for head in self.heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, mdp: RoutingMDP, state: State) -> Tensor:
        """Predictions [B]."""
        head = self.heads[state.t]
        pooled = mdp.pool(state._replace(x=state.x.detach()), head.weight.dtype)
        with autocast("fp32", pooled.device):
            return head(pooled).squeeze(1)


def policy_macs(policy: Any) -> int:
    """MACs of all decisions for one image; 0 for a policy that computes nothing.

    A module with weights but without `macs()` counts as 0, with a warning.
    """
    if hasattr(policy, "macs"):
        return policy.macs()
    if isinstance(policy, nn.Module) and any(True for _ in policy.parameters()):
        warnings.warn(
            f"{type(policy).__name__} has no macs(): its own cost is taken as 0 FLOPs", stacklevel=2
        )
    return 0


class AlwaysExecute:
    """Executes every block: the plain network."""

    def __call__(self, mdp: DecisionProcess, state: Any, hidden: None) -> tuple[Tensor, None]:
        """+∞ for each image."""
        return _constant(state, math.inf), None


class RandomSkip:
    """Each image executes each block with probability `rate`.

    Use with `mode="sample"`. For rates strictly between 0 and 1 log-probabilities are finite.
    """

    def __init__(self, rate: float) -> None:
        if not 0 <= rate <= 1:
            raise ValueError(f"rate is {rate!r}; expected a probability between 0 and 1")
        self.rate = rate

    def __call__(self, mdp: DecisionProcess, state: Any, hidden: None) -> tuple[Tensor, None]:
        """The log-odds of `rate` for each image."""
        rate = torch.tensor(self.rate, dtype=torch.float64, device="cpu")
        return _constant(state, rate.logit().item()), None


class FixedRoute(nn.Module):
    """Executes the same blocks for every image; the route [N] is a buffer, saved with the weights."""

    route: Tensor

    def __init__(self, route: Tensor) -> None:
        super().__init__()
        self.register_buffer("route", route.bool().clone())

    def forward(self, mdp: DecisionProcess, state: Any, hidden: None) -> tuple[Tensor, None]:
        """+∞ where the route executes, else -∞, [B]."""
        logit = torch.where(self.route[state.t].to(state.y.device), math.inf, -math.inf)
        return logit.expand(state.y.shape[0]), None  # len() would fix B in an exported model


class StochasticDepth:
    """Drops blocks at random for the whole batch; survival falls linearly with depth.

    Huang, Sun, Liu, Sedra, Weinberger, "Deep Networks with Stochastic Depth", ECCV 2016, equation 4,
    without their rescaling at test time, since a route either runs a block or does not. A block that is
    dropped is not computed.

    Args:
        last: survival probability of the last block (the paper's p_L; 0.5 there).
        generator: random generator on the CPU.
    """

    def __init__(self, last: float, generator: torch.Generator) -> None:
        if not 0 < last <= 1:
            raise ValueError(f"survival of the last block is {last!r}; expected 0 < p <= 1")
        self.last, self.generator = last, generator

    def survival(self, mdp: DecisionProcess, t: int) -> float:
        """Survival probability of decision t, which is about block t + 2 of N + 1, counted from one."""
        return 1 - (t + 2) / (mdp.num_decisions + 1) * (1 - self.last)

    def __call__(self, mdp: DecisionProcess, state: Any, hidden: None) -> tuple[Tensor, None]:
        """+∞ if the block survives, else -∞, for the whole batch."""
        drawn = torch.rand((), generator=self.generator, device=self.generator.device).item()
        survives = drawn < self.survival(mdp, state.t)
        return _constant(state, math.inf if survives else -math.inf), None


def _constant(state: Any, value: float) -> Tensor:
    return torch.full((state.y.shape[0],), value, device=state.y.device)
