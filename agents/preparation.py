"""Preparation of a network for skips: it learns to do without the blocks that it misses least.

A network that always ran every block loses most of its accuracy under the first routes that gates draw, and
then the reward teaches the gates to skip nothing. So its cheapest blocks are left out more and more often
while the network follows, and the gates learn the same rates, for hybrid REINFORCE to go on from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.setting import WORSE
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import Policy
from skipnet_rl.rollout import Trajectory, rollout
from skipnet_rl.tolerance import falling_rates

RAMP = 0.5  # share of the preparation over which the rates fall
TRIED = 0.97  # most that the gates aim at: so they go on trying, now and then, what is not skipped


def prepared_episode(
    mdp: RoutingMDP, policy: Policy, images: Tensor, labels: Tensor, costs: Tensor, progress: float,
    generator: torch.Generator,
) -> tuple[Trajectory, Tensor]:  # fmt: skip
    """Episodes on routes drawn at the rates of a preparation, and how far the gates are from these rates.

    Args:
        mdp, policy, images, labels: see `rollout`.
        costs: of each block's absence [N], see `absence_costs`.
        progress: share of the preparation that is done, from 0 to 1.
        generator: of the routes, on the images' device.

    Returns:
        The episodes, and a scalar: the cross-entropy of the gates' p(execute) against the rates, which
        count as `TRIED` where they are more.
    """
    rates = falling_rates(costs, min(1.0, progress / RAMP)).to(images.device)
    draws = torch.rand(len(labels), len(rates), generator=generator, device=images.device)
    episode = rollout(mdp, policy, images, labels, routes=draws < rates)
    aim = rates.clamp(max=TRIED).expand_as(episode.gate_logits)
    missed = F.binary_cross_entropy_with_logits(episode.gate_logits, aim, reduction="none")
    return episode, missed.sum(dim=1).mean()


def shortcomings(whole: float, accuracy: float, compute_flops: float, advice: Sequence[str]) -> list[str]:
    """What a run has to say of its end, in sentences; nothing where it saves compute and keeps its accuracy.

    Args:
        whole: accuracy of the network with all blocks, on validation images.
        accuracy: of what the run ends with, on the same images.
        compute_flops: its FLOPs over those of the plain network.
        advice: what to do where nothing is saved, and where accuracy is lost.
    """
    found = []
    if compute_flops > 0.99:
        found.append(f"nothing is saved: {compute_flops:.1%} of the FLOPs remain. {advice[0]}")
    if whole - accuracy > WORSE:
        found.append(
            f"accuracy is lost: {accuracy:.1%} of the validation images are right, {whole:.1%} with all "
            f"blocks. {advice[1]}"
        )
    return found
