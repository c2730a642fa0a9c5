"""What decides: the Policy protocol, and the policies that need no training.

A policy is a callable `policy(mdp, state, hidden) -> (logit, hidden)`. The logit [B] is the
log-odds of "execute". Policies that need the whole feature map read `state.x`, agents that learned
from observations read `mdp.observation(state)`; a policy's memory travels in `hidden`, which is
None at the first decision, and never in the State. A policy that looks at the image itself has a
method `start(images)`, whose result is its memory at the first decision instead. A policy that costs
something says so by `macs()`, the multiply-accumulates of all its decisions for one image.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from skipnet_rl.device import autocast
from skipnet_rl.mdp import RoutingMDP, State
from skipnet_rl.process import DecisionProcess
from skipnet_rl.resnet import module_list, pool


class Policy(Protocol):
    """Anything that can be rolled out."""

    def __call__(self, mdp: DecisionProcess, state: Any, hidden: Any, /) -> tuple[Tensor, Any]:
        """Log-odds of "execute" [B] for the block at `state.t`, and the memory to hand back."""
        ...


class Critic(Protocol):
    """Anything that predicts rewards-to-go."""

    def __call__(self, mdp: DecisionProcess, state: Any, /) -> Tensor:
        """Expected sum of the rewards from the decision at `state.t` on, [B]."""
        ...


def first_memory(policy: Any, images: Tensor) -> Any:
    """`hidden` at the first decision: what the policy makes of the images [B, 3, H, W], or None."""
    return policy.start(images) if hasattr(policy, "start") else None


class _Adjusted(nn.Module):
    """A policy whose log-odds are changed on their way; its memory and its costs are its own."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def start(self, images: Tensor) -> Any:
        """The policy's first memory."""
        return first_memory(self.policy, images)

    def macs(self) -> int:
        """Those of the policy."""
        return policy_macs(self.policy)


class Biased(_Adjusted):
    """A policy with a constant added to its log-odds: the compute budget of a trained gate.

    Above zero more blocks are executed, below zero less, without training anew.
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
    """A policy whose p(execute) is kept within [floor, 1 - floor], so that each action is tried.

    p' = floor + (1 - 2 floor) p. What is sampled and what is differentiated are both p', so the
    score function stays on-policy.
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

    The feature is detached: the backbone does not learn to please its critic.
    """

    def __init__(self, mdp: RoutingMDP) -> None:
        super().__init__()
        channels = [mdp.block(t).in_channels for t in range(mdp.num_decisions)]
        self.heads = module_list(nn.Linear(count, 1) for count in channels)
        for head in self.heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, mdp: RoutingMDP, state: State) -> Tensor:
        """Predictions [B]."""
        head = self.heads[state.t]
        pooled = pool(state.x.detach(), head.weight.dtype)
        with autocast("fp32", pooled.device):
            return head(pooled).squeeze(1)


def policy_macs(policy: Any) -> int:
    """MACs of all decisions for one image; 0 for a policy that computes nothing.

    Warns of a module with weights that does not say: it counts as 0, too.
    """
    if hasattr(policy, "macs"):
        return policy.macs()
    if isinstance(policy, nn.Module) and any(True for _ in policy.parameters()):
        warnings.warn(
            f"{type(policy).__name__} has no macs(): its own cost is taken as 0 FLOPs", stacklevel=2
        )
    return 0


class AlwaysExecute:
    """The plain network."""

    def __call__(self, mdp: DecisionProcess, state: Any, hidden: None) -> tuple[Tensor, None]:
        """+∞ for each image."""
        return _constant(state, math.inf), None


class RandomSkip:
    """Each image executes each block with probability `rate`: stochastic depth at a constant rate.

    Roll it out with `mode="sample"`. Between rates of 0 and 1 its logit is finite, so its returns have
    log-probabilities.
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
    """The same blocks for every image: route [N] of 0 and 1, a buffer, saved and loaded as weights are."""

    route: Tensor

    def __init__(self, route: Tensor) -> None:
        super().__init__()
        self.register_buffer("route", route.bool().clone())

    def forward(self, mdp: DecisionProcess, state: Any, hidden: None) -> tuple[Tensor, None]:
        """±∞ as the route says, alike for the whole batch."""
        logit = torch.where(self.route[state.t].to(state.y.device), math.inf, -math.inf)
        return logit.expand(state.y.shape[0]), None  # len() would fix B in an exported model


class StochasticDepth:
    """One draw per block for the whole batch, survival falling linearly with depth.

    Huang, Sun, Liu, Sedra, Weinberger, "Deep Networks with Stochastic Depth", ECCV 2016, equation 4,
    without their rescaling at test time, since a route here either runs a block or does not. A batch
    that drops a block does none of its work.

    Args:
        last: survival probability of the last block (the paper's p_L; 0.5 there).
        generator: where the draws come from, on the CPU.
    """

    def __init__(self, last: float, generator: torch.Generator) -> None:
        if not 0 < last <= 1:
            raise ValueError(f"survival of the last block is {last!r}; expected 0 < p <= 1")
        self.last, self.generator = last, generator

    def survival(self, mdp: DecisionProcess, t: int) -> float:
        """p of decision t, which is about block t + 2 of N + 1, counted from one."""
        return 1 - (t + 2) / (mdp.num_decisions + 1) * (1 - self.last)

    def __call__(self, mdp: DecisionProcess, state: Any, hidden: None) -> tuple[Tensor, None]:
        """±∞, alike for the whole batch."""
        drawn = torch.rand((), generator=self.generator, device=self.generator.device).item()
        survives = drawn < self.survival(mdp, state.t)
        return _constant(state, math.inf if survives else -math.inf), None


class Replay:
    """Plays back routes [B, N] that were taken before."""

    def __init__(self, routes: Tensor) -> None:
        self.routes = routes

    def __call__(self, mdp: DecisionProcess, state: Any, hidden: None) -> tuple[Tensor, None]:
        """±∞ as the stored route says."""
        execute = self.routes[:, state.t].bool()
        return torch.where(execute, math.inf, -math.inf), None


def _constant(state: Any, value: float) -> Tensor:
    return torch.full((state.y.shape[0],), value, device=state.y.device)
