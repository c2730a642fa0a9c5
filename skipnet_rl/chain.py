"""Several networks in a row as one decision process: SkipNet's equation one level up.

A block is a whole network. The state is the image and the answer so far, a^k (log-probabilities), and
a^{k+1} = G (w a^k + (1 - w) log p_{k+1}(image)), normalised, + (1 - G) a^k. The first network always answers,
so that every decision can look at a finished answer; skipping one network does not rule out the next. With
the decisions G = "the margin is small" and w = 0 it is a cascade (IDK cascades, Wang et al. 2017, arXiv
1706.00885).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skipnet_rl.belief import belief, belief_size
from skipnet_rl.member import Answer
from skipnet_rl.process import ALPHA, DecisionProcess, check_action

if TYPE_CHECKING:
    from typing_extensions import Self

MIX = 0.3  # weight of the answer so far; on CIFAR-10, 0.2 to 0.4 do equally well


class Chain(nn.Module):
    """Networks in the order in which they are asked.

    Args:
        members: two or more, of the same classes and image size: `Member`s, or their stand-ins from
            `skipnet_rl.recording`.
        mix: w, the weight of the answer so far when a network is asked: one number for all networks after
            the first, or one for each, N. At 0 only the last answer counts.

    Raises:
        ValueError: fewer than two members or classes, members that do not fit together, a weight outside
            0 … 1.
    """

    mix: Tensor

    def __init__(self, members: Sequence[nn.Module], mix: float | Sequence[float] = MIX) -> None:
        if len(members) < 2:
            raise ValueError(
                f"a chain of {len(members)} networks leaves nothing to decide; expected two or more"
            )
        for what in ("num_classes", "image_size"):
            values = [getattr(member, what) for member in members]
            if len(set(values)) > 1:
                raise ValueError(f"the networks differ in {what}: {values}; expected the same for all")
        super().__init__()
        self.members = nn.ModuleList(members)
        last: Any = members[-1]
        self.num_classes, self.image_size, self.depth = last.num_classes, last.image_size, last.depth
        if self.num_classes < 2:
            raise ValueError("the networks know one class, so every answer is sure; expected two or more")
        self.stages = list(range(len(members)))  # for plots: each network is one stage
        self.register_buffer("mix", check_mix(mix, len(members) - 1), persistent=False)

    @property
    def names(self) -> list[str]:
        """Names of the networks."""
        return [str(member.name) for member in self.members]

    @property
    def name(self) -> str:
        """Names of the networks, joined by arrows."""
        return " → ".join(self.names)

    def forward(self, images: Tensor) -> Tensor:
        """The answer with every network asked: images [B, 3, H, W] → log-probabilities [B, K]."""
        first, *others = self.members
        answer = first(images).log_probs
        for member, weight in zip(others, self.mix, strict=True):
            answer = mix_answers(answer, member(images).log_probs, weight)
        last: Any = self.members[-1]
        return answer.to(last.dtype)

    def mixed(self, mix: float | Sequence[float]) -> Chain:
        """The same networks with other weights of the answer so far."""
        return Chain(list(self.members), mix).to(self.mix.device)

    def for_inference(self, precision: str = "fp32") -> Chain:
        """A copy that cannot be trained."""
        members: list[Any] = list(self.members)
        return Chain([member.for_inference(precision) for member in members], self.mix.tolist()).to(
            self.mix.device
        )


def mix_answers(so_far: Tensor, found: Tensor, weight: float | Tensor) -> Tensor:
    """Geometric mean of two answers, `weight` on the first: log-probabilities [B, K] → [B, K]."""
    return F.log_softmax(weight * so_far + (1 - weight) * found, dim=1)


def check_mix(mix: float | Sequence[float], count: int) -> Tensor:
    """Return the weight of the answer so far for each decision, [N] float64.

    Raises:
        ValueError: a wrong number of weights, or one outside 0 … 1.
    """
    values = list(mix) if isinstance(mix, Iterable) else [mix] * count
    if len(values) != count or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"mix is {mix!r}; expected {count} weights of the answer so far, from 0 to 1")
    return torch.tensor(values, dtype=torch.float64, device="cpu")


class ChainState(NamedTuple):
    """A batch of images somewhere on its way through the chain.

    Attributes:
        images: [B, 3, H, W].
        y: labels [B], int64.
        t: number of the decision, 0 … N-1, or N at the end.
        answers: the answer after the first network and after each decision since, t + 1 of [B, K].
        macs: spent so far, [B] float64; the blocks that a gated network executes differ between images.
    """

    images: Tensor
    y: Tensor
    t: int
    answers: tuple[Tensor, ...]
    macs: Tensor

    @property
    def answer(self) -> Tensor:
        """The answer so far: log-probabilities [B, K] float64."""
        return self.answers[-1]


class ChainMDP(DecisionProcess):
    """The decision process over a chain.

    The observation is the belief of the answer so far and the decision's one-hot, see
    `skipnet_rl.belief`: D = 6 + N (5 + N with two classes).

    Args:
        chain: N + 1 networks; the first always answers.
        alpha: weight of the compute saving against the classification loss, ≥ 0. When networks are sure of
            their answers, correcting an error lowers the loss little: where 0.1 suits the blocks of one
            network, a tenth of it may suit a chain.
        cost: `"flops"` (a network's FLOPs over the mean of those that can be skipped), `"blocks"`
            (C_k = 1), or C itself, [N].

    Raises:
        ValueError: see `DecisionProcess`.
    """

    net: Chain

    def __init__(self, chain: Chain, alpha: float = ALPHA, cost: str | Tensor = "flops") -> None:
        super().__init__(chain, len(chain.members) - 1, alpha, cost)
        self.feature_width = belief_size(chain.num_classes)

    def member(self, k: int) -> Any:
        """Network number k of the chain; decision t is about number t + 1."""
        return self.net.members[k]

    @property
    def whole_macs(self) -> int:
        """MACs of the last network with every block executed."""
        return self.member(-1).whole_macs

    @property
    def decision_macs(self) -> list[int]:
        """The most MACs of each network but the first, see `Member.macs`; N numbers."""
        return [self.member(k).macs for k in range(1, self.num_decisions + 1)]

    def compute_flops(self, state: ChainState, routes: Tensor, policy_macs: int = 0) -> Tensor:
        """FLOPs of the networks that ran, with their gates, over those of the whole last one: [B] float64."""
        return (state.macs + policy_macs) / self.whole_macs

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the last network's logits."""
        return self.member(-1).dtype

    def for_inference(self, precision: str = "fp32") -> Self:
        """The same process over a chain that cannot be trained."""
        copied = copy.copy(self)
        copied.net = self.net.for_inference(precision)
        return copied

    def initial(self, images: Tensor, labels: Tensor) -> ChainState:
        """The first network's answer to normalised images [B, 3, H, W] with labels [B]."""
        answer = self.member(0)(images)
        return ChainState(images, labels, 0, (answer.log_probs,), answer.macs)

    def features(self, state: ChainState) -> Tensor:
        """The belief of the answer so far: [B, 6] float32, [B, 5] with two classes."""
        return belief(state.answer).float()

    def transition(self, state: ChainState, action: Tensor, inplace: bool = False) -> ChainState:
        """Ask the next network about the executed images, and mix its answer into the answer so far.

        See `DecisionProcess`; `inplace` has no effect, since nothing here is worth writing in place.
        """
        check_action(action, state)
        if action.dtype != torch.bool:
            executed = self._ask(state.images, state.answer, state.t)
            gate = action.to(executed.log_probs.dtype).view(-1, 1)
            answer = gate * executed.log_probs + (1 - gate) * state.answer
            macs = state.macs + executed.macs * (action.detach() > 0.5)
            return self._moved(state, answer, macs)
        index = action.nonzero().squeeze(1)
        if len(index) == 0:
            return self._moved(state, state.answer, state.macs)
        deferred, so_far = state.images.index_select(0, index), state.answer.index_select(0, index)
        executed = self._ask(deferred, so_far, state.t)
        answer = state.answer.index_copy(0, index, executed.log_probs)
        return self._moved(state, answer, state.macs.index_add(0, index, executed.macs))

    def _ask(self, images: Tensor, answer: Tensor, t: int) -> Answer:
        """Mix network t + 1's answer into the answer so far [B, K]; return it with that network's MACs."""
        found, w = self.member(t + 1)(images), self.net.mix[t]
        return found._replace(log_probs=mix_answers(answer, found.log_probs, w))

    def _moved(self, state: ChainState, answer: Tensor, macs: Tensor) -> ChainState:
        return ChainState(state.images, state.y, state.t + 1, (*state.answers, answer), macs)

    def loss(self, state: ChainState, logits: Tensor | None = None) -> Tensor:
        """Cross-entropy per image, differentiable: [B]; computed in float64, where it does not saturate."""
        return F.cross_entropy(state.answer, state.y, reduction="none").to(self.dtype)

    def logits(self, state: ChainState) -> Tensor:
        """The answer so far: [B, K] of `dtype`."""
        return state.answer.to(self.dtype)
