"""A policy's episodes on a batch, with or without gradients, and their rewards-to-go."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from skipnet_rl.errors import unknown_name
from skipnet_rl.mdp import RoutingMDP, State
from skipnet_rl.policies import Policy

MODES = ("greedy", "sample", "straight-through")


@dataclass(frozen=True)
class Trajectory:
    """B episodes of N decisions.

    Attributes:
        gate_logits: [B, N] log-odds of "execute", with gradients to the policy.
        actions: [B, N] float32 of 0 and 1; with `"straight-through"` it carries gradients.
        rewards: [B, N] float32, detached; the last column includes minus the loss.
        logits: [B, K] of the classifier, with gradients to the network.
        labels: [B] int64.
        loss: [B] cross-entropy, with gradients to the network.
    """

    gate_logits: Tensor
    actions: Tensor
    rewards: Tensor
    logits: Tensor
    labels: Tensor
    loss: Tensor

    @property
    def log_probs(self) -> Tensor:
        """log p(a|x) of each action taken, [B, N]."""
        return F.logsigmoid(torch.where(self.actions > 0.5, self.gate_logits, -self.gate_logits))

    @property
    def predictions(self) -> Tensor:
        """Predicted classes [B]."""
        return self.logits.argmax(dim=1)

    @property
    def correct(self) -> Tensor:
        """Whether each prediction is right, [B] bool."""
        return self.predictions == self.labels

    @property
    def returns(self) -> Tensor:
        """Episode returns [B]."""
        return self.rewards.sum(dim=1)


def choose(logit: Tensor, mode: str, generator: torch.Generator | None = None) -> Tensor:
    """Turn log-odds [B] into an action [B].

    `"greedy"` thresholds p at 0.5 (the paper at test time) and `"sample"` draws from Bernoulli(p);
    both give bool. `"straight-through"` gives the threshold's value as float with the gradient of p
    (Bengio, Léonard, Courville 2013, arXiv 1308.3432), for the paper's supervised pre-training.
    """
    if mode == "greedy":
        return logit > 0
    if mode == "sample":
        return torch.rand(logit.shape, device=logit.device, generator=generator) < torch.sigmoid(logit)
    if mode == "straight-through":
        soft = torch.sigmoid(logit)
        return (logit > 0).to(soft.dtype) + (soft - soft.detach())  # in this order exactly 0 or 1
    raise unknown_name("rollout mode", mode, MODES)


def rollout(
    mdp: RoutingMDP,
    policy: Policy,
    images: Tensor,
    labels: Tensor,
    mode: str = "greedy",
    generator: torch.Generator | None = None,
) -> Trajectory:
    """Run a batch from the image to the loss.

    Args:
        mdp: the decision process.
        policy: what decides.
        images: normalised, [B, 3, H, W].
        labels: [B] int64.
        mode: how log-odds become actions, see `choose`.
        generator: for `mode="sample"`, on the images' device.
    """
    state, hidden = mdp.initial(images, labels), None
    gate_logits, actions, rewards = [], [], []
    while not mdp.terminal(state):
        logit, hidden = policy(mdp, state, hidden)
        action = choose(logit, mode, generator)
        state, reward = _step(mdp, state, action)
        gate_logits.append(logit)
        actions.append(action.float())
        rewards.append(reward)
    logits = mdp.logits(state)
    loss = F.cross_entropy(logits, labels, reduction="none")
    return Trajectory(
        torch.stack(gate_logits, 1), torch.stack(actions, 1), torch.stack(rewards, 1), logits, labels, loss
    )


def _step(mdp: RoutingMDP, state: State, action: Tensor) -> tuple[State, Tensor]:
    next_state = mdp.transition(state, action)
    return next_state, mdp.reward(state, action.detach(), next_state)


def rewards_to_go(rewards: Tensor) -> Tensor:
    """Sum of the rewards from each decision to the end, discount 1: [B, N] → [B, N].

    The paper's r_i = -[L - α/N Σ_{j≥i} R_j] (section 3.3, equation 4).
    """
    return rewards.flip(1).cumsum(1).flip(1)
