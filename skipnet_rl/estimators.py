"""The score-function estimator of SkipNet's hybrid gradient (section 3.3, equations 3 and 4).

∇J = E[∇L] - E[Σ_i ∇log p(g_i|x) r_i]: the first term is the cross-entropy's own gradient through
the executed blocks, the second is what stands here. All tensors are [B, N]; nothing broadcasts.
"""

from __future__ import annotations

from torch import Tensor


def leave_one_out(rewards_to_go: Tensor, routes: int) -> Tensor:
    """Advantages against the other routes of the same image: [B, N] → [B, N].

    The baseline of a route is the mean of the other routes' rewards-to-go at the same decision. It
    does not depend on the route's own actions, so the gradient's mean stays as it is (Kool, van
    Hoof, Welling, "Buy 4 REINFORCE Samples, Get a Baseline for Free!", 2019).

    Args:
        rewards_to_go: episodes of one image stand side by side: image 0 route 0, image 0 route 1, …
        routes: sampled routes per image; 1 means no baseline.

    Raises:
        ValueError: B is not a multiple of `routes`.
    """
    batch, decisions = rewards_to_go.shape
    if batch % routes:
        raise ValueError(f"{batch} episodes cannot be split into images with {routes} routes each")
    if routes == 1:
        return rewards_to_go
    grouped = rewards_to_go.view(batch // routes, routes, decisions)
    return ((grouped - grouped.mean(dim=1, keepdim=True)) * routes / (routes - 1)).view(batch, decisions)


def score_function_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """A scalar whose gradient is the estimate of -∇E[return] in the policy's parameters.

    Raises:
        ValueError: the shapes differ; broadcasting here would sum over pairs of images.
    """
    if log_probs.shape != advantages.shape:
        came = f"{tuple(log_probs.shape)} and {tuple(advantages.shape)}"
        raise ValueError(f"log-probabilities and advantages have shapes {came}; expected the same [B, N]")
    return -(log_probs * advantages.detach()).sum(dim=1).mean()
