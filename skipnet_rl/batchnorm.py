"""Recalibrate batch norm statistics for the routes that a policy takes.

The distribution of a block's input depends on which blocks ran before it. So statistics gathered while blocks
were dropped at random fit neither the whole network nor the routes of a trained gate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skipnet_rl.data import Images
from skipnet_rl.device import autocast
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import Policy
from skipnet_rl.randomness import Stream, step_generator
from skipnet_rl.rollout import rollout

BATCH_SIZE = 250


@torch.no_grad()
def recalibrate(
    mdp: RoutingMDP,
    policy: Policy,
    data: Images,
    *,
    batches: int = 16,
    batch_size: int = BATCH_SIZE,
    precision: str = "fp32",
    seed: int = 0,
    policy_too: bool = True,
) -> None:
    """Re-estimate the running statistics under a policy's greedy routes.

    They are replaced by their mean over `batches` whole batches of augmented training images, or over all
    images if those are fewer than a batch; a block that no image executes keeps its statistics.

    Args:
        mdp: the decision process; its network is left in evaluation mode.
        policy: the policy.
        data: training images, on the network's device.
        batches, batch_size: number and size of the batches.
        precision: `"fp32"` or `"bf16"`.
        seed: random seed of the images and their augmentation.
        policy_too: also recalibrate the batch norms of the policy.
    """
    parts = [mdp.net, *([policy] if isinstance(policy, nn.Module) else [])]
    measured = parts if policy_too else parts[:1]
    norms = [m for part in measured for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [([each.clone() for each in _running(norm)], norm.momentum) for norm in norms]
    for part in parts:
        part.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    draws = step_generator(seed, 0, "cpu", Stream.NORM_ORDER)
    order = torch.randperm(len(data), generator=draws, device="cpu")
    whole = max(1, len(order) // batch_size)  # a smaller last batch would weigh as much as the others
    device = data.device
    for number, index in enumerate(order.split(batch_size)[: min(batches, whole)]):
        draws = step_generator(seed, number, device, Stream.NORM_AUGMENTATION)
        images, labels = data.training_batch(index, draws)
        with autocast(precision, device):
            rollout(mdp, policy, images, labels)
    for norm, (statistics, momentum) in zip(norms, before, strict=True):
        if norm.num_batches_tracked == 0:
            for now, earlier in zip(_running(norm), statistics, strict=True):
                now.copy_(earlier)
        norm.momentum = momentum
        norm.eval()


def _running(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The running mean and variance."""
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var
