"""Play a policy's episodes on a batch, with or without gradients; rewards-to-go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from skipnet_rl.errors import unknown_name
from skipnet_rl.policies import Critic, Policy, first_memory
from skipnet_rl.process import DecisionProcess
from skipnet_rl.randomness import for_images

RELAXATIONS = ("straight-through", "soft", "gumbel")
MODES = ("greedy", "sample", *RELAXATIONS)


@dataclass(frozen=True)
class Trajectory:
    """B episodes of N decisions.

    Attributes:
        gate_logits: [B, N] log-odds of "execute", with gradients to the policy.
        actions: [B, N] of 0 and 1, with gradients in `"straight-through"` and `"gumbel"`; p(execute) in
            `"soft"`.
        rewards: [B, N], detached; the last column includes minus the loss.
        logits: [B, K] classifier outputs, with gradients to the network.
        labels: [B] int64.
        loss: [B] cross-entropy, with gradients to the network.
        state: final state of the process.
        values: [B, N] critic's predictions of the rewards-to-go, with gradients to the critic.
    """

    gate_logits: Tensor
    actions: Tensor
    rewards: Tensor
    logits: Tensor
    labels: Tensor
    loss: Tensor
    state: Any = None
    values: Tensor | None = None

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
    both return bool. `"straight-through"` returns the thresholded value as float with the gradient of p
    (Bengio, Léonard, Courville 2013, arXiv 1308.3432), for the paper's supervised pre-training; `"soft"`
    returns p itself, which the paper compares it with. `"gumbel"` samples like `"sample"` with the gradient
    of the relaxed sample at temperature 1 (Jang, Gu, Poole 2017, arXiv 1611.01144, straight-through
    estimator; with two classes the difference of two Gumbel variables is logistic).
    """

    def uniform() -> Tensor:
        """A number in 0 … 1 for each image, [B]."""
        return for_images(
            lambda count: torch.rand(count, device=logit.device, generator=generator), len(logit), generator
        )

    if mode == "greedy":
        return logit > 0
    if mode == "sample":
        return uniform() < torch.sigmoid(logit)
    if mode in RELAXATIONS:
        if mode == "gumbel":
            logit = logit + torch.logit(uniform(), eps=1e-6)
        soft = torch.sigmoid(logit)
        if mode == "soft":
            return soft
        return (logit > 0).to(soft.dtype) + (soft - soft.detach())  # in this order exactly 0 or 1
    raise unknown_name("rollout mode", mode, MODES)


def rollout(
    mdp: DecisionProcess,
    policy: Policy,
    images: Tensor,
    labels: Tensor,
    mode: str = "greedy",
    generator: torch.Generator | None = None,
    *,
    routes: Tensor | None = None,
    critic: Critic | None = None,
) -> Trajectory:
    """Play one episode per image, from the image to the loss.

    Args:
        mdp, policy: the decision process and its policy.
        images, labels: normalised images [B, 3, H, W] and labels [B] int64.
        mode: how log-odds become actions, see `choose`.
        generator: random generator for the modes that sample, on the images' device.
        routes: [B, N] bool, actions to take instead of the policy's own; the log-odds are still the
            policy's, as enumeration and importance weighting need.
        critic: predictor of the rewards-to-go, for a learned baseline.
    """
    images, labels = _ordinary(images), _ordinary(labels)
    state, hidden = mdp.initial(images, labels), first_memory(policy, images)
    gate_logits, actions, rewards, values = [], [], [], []
    loss: Tensor | None = None
    while not mdp.terminal(state):
        logit, hidden = policy(mdp, state, hidden)
        action = choose(logit, mode, generator) if routes is None else routes[:, state.t]
        if critic is not None:
            values.append(critic(mdp, state))
        before, state = state, mdp.transition(state, action)
        if mdp.terminal(state):
            logits = mdp.logits(state)
            loss = mdp.loss(state, logits)
        reward = mdp.reward(before, action.detach(), state, loss)
        gate_logits.append(logit)
        actions.append(action.to(reward.dtype))
        rewards.append(reward)
    assert loss is not None  # there is at least one decision
    return Trajectory(
        gate_logits=torch.stack(gate_logits, 1),
        actions=torch.stack(actions, 1),
        rewards=torch.stack(rewards, 1),
        logits=logits,
        labels=labels,
        loss=loss,
        state=state,
        values=torch.stack(values, 1) if values else None,
    )


def _ordinary(tensor: Tensor) -> Tensor:
    """Copy a tensor made in inference mode, which autograd cannot save outside that mode."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def rewards_to_go(rewards: Tensor) -> Tensor:
    """Sum of the rewards from each decision to the end, discount 1: [B, N] → [B, N].

    The paper's r_i = -[L - α/N Σ_{j≥i} R_j] (section 3.2, equation 6).
    """
    return rewards.flip(1).cumsum(1).flip(1)
