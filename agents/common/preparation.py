"""Preparation of a network for skips: it learns to do without the blocks that it misses least.

A network that always ran every block loses most of its accuracy under the first routes that gates draw, and
then the reward teaches the gates to skip nothing. So its cheapest blocks are left out more and more often
while the network follows, and the gates learn the same rates, for hybrid REINFORCE to go on from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.common.distillation import Teacher, distilled
from agents.common.setting import LOOK, WORSE, Setting
from skipnet_rl.errors import WeightsError
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import Policy
from skipnet_rl.rollout import Trajectory, rollout
from skipnet_rl.tolerance import Tolerance, absence_costs, falling_rates

TAUGHT = 0.9  # share of the teacher in the loss of a `Preparation`
RAMP = 0.5  # share of the preparation over which the rates fall
TRIED = 0.97  # most that the gates aim at: so they go on trying, now and then, what is not skipped


def check_trained(setting: Setting) -> None:
    """Raise a WeightsError, which says how to train one, where a run has no trained network to start from."""
    args = setting.args
    if args.weights == "auto":
        raise WeightsError(
            f"no ResNet-{args.depth} on {setting.dataset} is shipped; train one: python -m agents.pretrain "
            f"--depth {args.depth} --dataset {setting.dataset}, and give its weights: --weights "
            "runs/…/weights.safetensors (or --weights none for untrained ones)"
        )


def look(setting: Setting[Any]) -> tuple[Setting[Any], Tolerance | None, Tensor | None]:
    """Look at a run's network before it is trained, and drop a preparation that it does not need.

    Args:
        setting: of any agent; `warmup_iterations` is the flag of those that can prepare a network.

    Returns:
        The setting, without steps of preparation where skips cost the network little; what they cost it, or
        None for a network that stays as it is; the cost of each block's absence [N], or None where nothing is
        to be prepared. A run that is resumed
        keeps to what it decided at first.
    """
    args = setting.args
    if args.frozen:
        setting.introduce()
        return setting, None, None
    check_trained(setting)
    tolerance = setting.look()
    if not hasattr(args, "warmup_iterations"):
        return setting, tolerance, None
    before = args.run_dir and args.run_dir / "args.json"
    if before and before.is_file() and args.resume:
        steps = json.loads(before.read_text(encoding="utf-8")).get("warmup_iterations", 0)
    else:
        steps = 0 if tolerance.prepared else args.warmup_iterations
    setting = replace(setting, args=replace(args, warmup_iterations=steps))
    if not steps:
        return setting, tolerance, None
    images = setting.val.first(LOOK // 4)  # the order of the costs is what counts
    return setting, tolerance, absence_costs(setting.mdp(), images, precision=setting.precision)


class Preparation:
    """The steps of preparation of an agent that has no teacher otherwise.

    Args:
        setting: what it learns on; the network as it came is the teacher.
        costs: see `look`; None where there are no steps.
    """

    def __init__(self, setting: Setting[Any], costs: Tensor | None) -> None:
        self.costs = costs
        self.steps = setting.args.warmup_iterations
        self.teacher = None if costs is None else Teacher([setting.plain], setting.precision)

    def step(
        self,
        mdp: RoutingMDP,
        policy: Policy,
        images: Tensor,
        labels: Tensor,
        step: int,
        generator: torch.Generator,
    ) -> tuple[Trajectory, Tensor]:
        """Episodes of step number `step`, and the loss, see `prepared_episode`."""
        assert self.costs is not None and self.teacher is not None, "there is no preparation"
        progress = (step + 1) / self.steps
        episode, missed = prepared_episode(mdp, policy, images, labels, self.costs, progress, generator)
        loss = distilled(episode.loss, episode.logits, self.teacher(images), TAUGHT)
        return episode, loss.mean() + missed


def prepared_episode(
    mdp: RoutingMDP,
    policy: Policy,
    images: Tensor,
    labels: Tensor,
    costs: Tensor,
    progress: float,
    generator: torch.Generator,
) -> tuple[Trajectory, Tensor]:
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
