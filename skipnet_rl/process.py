"""Base of the decision processes: N decisions, each to skip or execute a block, then an answer.

The blocks are those of one network (`skipnet_rl.mdp.RoutingMDP`) or whole networks
(`skipnet_rl.chain.ChainMDP`). The vocabulary is that of Gymnasium's functional environments: initial,
observation, transition, reward, terminal. Nothing here holds episode state.
"""

from __future__ import annotations

import copy
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import IntEnum
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from skipnet_rl.errors import unknown_name

if TYPE_CHECKING:
    from typing_extensions import Self

COSTS = ("blocks", "flops")
ALPHA = 1.0  # default; the paper's values of about 0.1 need its thousands of steps


class Action(IntEnum):
    """Action of an image at a block."""

    SKIP = 0
    EXECUTE = 1


StateT = TypeVar("StateT", bound=tuple[Any, ...])


def select(state: StateT, index: Tensor) -> StateT:
    """Select the episodes of a batch by `index`, numbers or a mask [B]."""

    def part(value: Any) -> Any:
        """Select the rows of a field [B, …], or of each field in a tuple; anything else is unchanged."""
        if isinstance(value, tuple):
            return tuple(map(part, value))
        return value[index] if isinstance(value, Tensor) else value

    return type(state)(*map(part, state))


class DecisionProcess(ABC):
    """N decisions between an image and its answer, each to skip a block or to execute it.

    A subclass defines the blocks: transitions, features, the answer and the computation. A state is a named
    tuple with labels `y` [B] and the number `t` of the decision.

    Args:
        net: network that computes the answers; has `num_classes`, `image_size`, `depth` and `stages`.
        num_decisions: N.
        alpha: weight of the compute saving against the classification loss, ≥ 0.
        cost: C [N], or `"blocks"` (C_t = 1), or `"flops"` (a block's FLOPs over their mean).

    Attributes:
        payment: alpha/N C_t, the reward for skipping decision t; N numbers.
        feature_width: length of an observation without the one-hot part.

    Raises:
        ValueError: alpha is negative or not a number; an unknown cost; costs that are not finite or not [N].
    """

    net: Any
    alpha: float
    num_decisions: int
    cost: Tensor
    payment: list[float]
    feature_width: int

    def __init__(self, net: Any, num_decisions: int, alpha: float, cost: str | Tensor) -> None:
        self.net = net
        self.num_decisions = num_decisions
        self._pay(alpha, cost)

    def with_payment(self, alpha: float, cost: str | Tensor) -> Self:
        """The same process over the same network with another alpha and cost; MACs are not counted again.

        Raises:
            ValueError: see the class.
        """
        copied = copy.copy(self)
        copied._pay(alpha, cost)
        return copied

    @torch.inference_mode(False)
    def _pay(self, alpha: float, cost: str | Tensor) -> None:
        if isinstance(alpha, bool) or not (isinstance(alpha, Real) and math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha is {alpha!r}; expected a finite number >= 0, such as 0.1")
        self.alpha = float(alpha)
        self.cost = self._named_cost(cost) if isinstance(cost, str) else cost
        if not isinstance(self.cost, Tensor):
            self.cost = torch.as_tensor(cost, device="cpu")
        if self.cost.shape != (self.num_decisions,):
            raise ValueError(f"cost has shape {tuple(self.cost.shape)}; expected ({self.num_decisions},)")
        if not self.cost.isfinite().all():
            raise ValueError(f"cost is {self.cost.tolist()}; expected finite numbers")
        self.payment = (self.alpha / self.num_decisions * self.cost).tolist()

    def _named_cost(self, cost: str) -> Tensor:
        """Costs C by their name: [N] float32, of mean 1."""
        if cost not in COSTS:
            raise unknown_name("cost", cost, COSTS)
        if cost == "blocks":
            return torch.ones(self.num_decisions, device="cpu")
        macs = torch.tensor(self.decision_macs, dtype=torch.float64, device="cpu")
        return (macs / macs.mean()).float()

    @abstractmethod
    def initial(self, images: Tensor, labels: Tensor) -> Any:
        """The state at t = 0 of normalised images [B, 3, H, W] with labels [B]."""

    @abstractmethod
    def features(self, state: Any) -> Tensor:
        """Features of a state for the observation: [B, W] float32, W at most `feature_width`."""

    @abstractmethod
    def transition(self, state: Any, action: Tensor, inplace: bool = False) -> Any:
        """Move past one decision.

        Args:
            state: before the decision.
            action: bool [B] computes the block only for the executed images (gather, run, scatter); float
                [B] in [0, 1] computes it for all and mixes, differentiable in the gate.
            inplace: may overwrite `state`, which saves a copy.

        Raises:
            ValueError: an action of another shape, or neither bool nor floating point.
        """

    @abstractmethod
    def logits(self, state: Any) -> Tensor:
        """The answer at the end: [B, K] of `dtype`."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Type of rewards and logits: float32, or that of a wider network."""

    @property
    @abstractmethod
    def whole_macs(self) -> int:
        """MACs per image for which `compute_flops` is 1."""

    @property
    @abstractmethod
    def decision_macs(self) -> Sequence[int]:
        """The most MACs per image that executing a block adds; one number per decision, N."""

    @abstractmethod
    def compute_flops(self, state: Any, routes: Tensor, policy_macs: int = 0) -> Tensor:
        """FLOPs per image relative to the plain network.

        Args:
            state: at the end.
            routes: the actions taken, [B, N] of 0/1.
            policy_macs: MACs of all decisions of the policy for one image.

        Returns:
            [B] float64.
        """

    @abstractmethod
    def for_inference(self, precision: str = "fp32") -> Self:
        """The process over a copy of the network for inference, see `folding`."""

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(itertools.chain(self.net.parameters(), self.net.buffers())).device

    @property
    def observation_size(self) -> int:
        """D: the features plus one place per decision."""
        return self.feature_width + self.num_decisions

    def observation(self, state: Any) -> Tensor:
        """Features, zero-padded to `feature_width`, then the decision's one-hot: [B, D] float32.

        At the end of the episode the one-hot part is zero.
        """
        features = self.features(state)
        observation = features.new_zeros(features.shape[0], self.observation_size)
        observation[:, : features.shape[1]] = features
        if not self.terminal(state):
            observation[:, self.feature_width + state.t] = 1
        return observation

    def reward(self, state: Any, action: Tensor, next_state: Any, loss: Tensor | None = None) -> Tensor:
        """alpha/N (1 - a) C_t, and at the end minus the detached cross-entropy: [B] of `dtype`.

        `loss` is the cross-entropy of `next_state`, if it is known already.
        """
        reward = self.payment[state.t] * (1 - action.to(self.dtype))
        if not self.terminal(next_state):
            return reward
        return reward - (self.loss(next_state) if loss is None else loss).detach()

    def terminal(self, state: Any) -> bool:
        """Whether all N decisions are taken, for the whole batch."""
        return state.t == self.num_decisions

    def loss(self, state: Any, logits: Tensor | None = None) -> Tensor:
        """Cross-entropy per image, differentiable: [B]; pass `logits` if they are known already."""
        return F.cross_entropy(self.logits(state) if logits is None else logits, state.y, reduction="none")


def check_action(action: Tensor, state: Any) -> None:
    """Raise a ValueError for an action that is not a bool or float for each image of the batch, [B]."""
    if action.shape != state.y.shape or not (action.dtype == torch.bool or action.is_floating_point()):
        came = f"{action.dtype} of shape {tuple(action.shape)}"
        raise ValueError(f"action is {came}; expected bool or float of shape ({len(state.y)},)")
