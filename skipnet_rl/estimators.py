"""The score-function estimator of SkipNet's hybrid gradient (section 3.2, equations 5 and 6).

∇J = E[∇L] - E[Σ_i ∇log p(g_i|x) r_i]: the first term is the gradient of the cross-entropy through the
executed blocks, the second is estimated here. All tensors are [B, N]; nothing broadcasts.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from skipnet_rl.errors import unknown_name

BASELINES = ("none", "batch-mean", "leave-one-out", "value")


def advantages(rewards_to_go: Tensor, baseline: str, routes: int = 1, values: Tensor | None = None) -> Tensor:
    """Weights of the log-probabilities, rewards-to-go minus a baseline: [B, N] → [B, N].

    A baseline does not depend on the action that it is for, nor on later ones of the route, so it changes the
    variance of the gradient but not its mean. In training mode batch norms tie the episodes of a batch
    together, which the estimator neglects.

    Args:
        rewards_to_go: the episodes of one image are adjacent rows, see `leave_one_out`.
        baseline: `"none"` (the paper's plain REINFORCE), `"batch-mean"` (mean of the other episodes of the
            batch), `"leave-one-out"` (mean of the other routes of the same image) or `"value"` (learned).
        routes: sampled routes per image, for `"leave-one-out"`.
        values: predictions of the rewards-to-go [B, N], for `"value"`.

    Raises:
        ValueError: an unknown baseline, or missing or misshapen `values`.
    """
    if baseline == "none":
        return rewards_to_go
    if baseline == "batch-mean":
        return leave_one_out(rewards_to_go, len(rewards_to_go))
    if baseline == "leave-one-out":
        return leave_one_out(rewards_to_go, routes)
    if baseline != "value":
        raise unknown_name("baseline", baseline, BASELINES)
    if values is None or values.shape != rewards_to_go.shape:
        came = None if values is None else tuple(values.shape)
        raise ValueError(f"values are {came}; expected predictions of shape {tuple(rewards_to_go.shape)}")
    return rewards_to_go - values.detach()


def leave_one_out(rewards_to_go: Tensor, routes: int) -> Tensor:
    """Advantages over the other routes of the same image: [B, N] → [B, N].

    The baseline of a route is the mean of the other routes' rewards-to-go at the same decision. It does not
    depend on the route's own actions, so the mean of the gradient is unchanged (Kool, van Hoof, Welling,
    "Buy 4 REINFORCE Samples, Get a Baseline for Free!", 2019).

    Args:
        rewards_to_go: the episodes of one image are adjacent rows: image 0 route 0, image 0 route 1, …
        routes: sampled routes per image, at least 2.

    Raises:
        ValueError: fewer than two routes, or B is not a multiple of `routes`.
    """
    batch, decisions = rewards_to_go.shape
    if routes < 2:
        raise ValueError(f"a baseline from other routes needs at least 2 per image, not {routes}")
    if batch % routes:
        raise ValueError(f"{batch} episodes cannot be split into images with {routes} routes each")
    grouped = rewards_to_go.view(batch // routes, routes, decisions)
    return ((grouped - grouped.mean(dim=1, keepdim=True)) * routes / (routes - 1)).view(batch, decisions)


def score_function_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """A scalar whose gradient in the policy's parameters estimates -∇E[return].

    Raises:
        ValueError: the shapes differ; broadcasting here would sum over pairs of images.
    """
    if log_probs.shape != advantages.shape:
        came = f"{tuple(log_probs.shape)} and {tuple(advantages.shape)}"
        raise ValueError(f"log-probabilities and advantages have shapes {came}; expected the same [B, N]")
    return -(log_probs * advantages.detach()).sum(dim=1).mean()


def entropy(gate_logits: Tensor) -> Tensor:
    """Entropy of each decision in nats: log-odds [B, N] → [B, N], at most log 2."""
    p = gate_logits.sigmoid()
    return F.softplus(gate_logits) - p * gate_logits
