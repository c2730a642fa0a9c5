"""Preparation of a network for skips: it learns to do without its least important blocks.

A network that has always run every block loses most of its accuracy under the first routes that gates
sample, and the reward then teaches the gates to skip nothing. During a preparation, the blocks whose absence
costs least are left out more and more often while the network adapts. The gates learn the same rates, and
hybrid REINFORCE starts from there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.common.distillation import SHARE, Teacher, distilled
from agents.common.setting import LOOK, Setting
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import Policy
from skipnet_rl.progress import image_progress
from skipnet_rl.randomness import for_images
from skipnet_rl.rollout import Trajectory, rollout
from skipnet_rl.runs import started_with
from skipnet_rl.terminal import say
from skipnet_rl.tolerance import Tolerance, absence_costs, falling_rates

RAMP = 0.5  # share of the preparation over which the rates fall
TRIED = 0.97  # highest rate that the gates learn, so that they still skip every block now and then


def look(setting: Setting[Any]) -> tuple[Setting[Any], Tolerance | None]:
    """Measure how well a run's network copes with skips, and drop a preparation that it does not need.

    Args:
        setting: the setting of any agent; `warmup_iterations` marks those that can prepare a network.

    Returns:
        The setting, without steps of preparation if skips cost the network little, else with the cost of each
        block's absence; and what skips cost, or None for a chain. A resumed run keeps its first decision.
    """
    args, tolerance = setting.args, setting.introduce()
    if tolerance is None or not hasattr(args, "warmup_iterations"):
        return setting, tolerance
    if (before := started_with(args)) is not None:
        steps = before.get("warmup_iterations", 0)
    else:
        steps = 0 if tolerance.prepared else args.warmup_iterations
    setting = replace(setting, args=replace(args, warmup_iterations=steps))
    if not steps:
        trained_gates = getattr(args, "gate_weights", None)  # they leave out only what the network can spare
        if not (tolerance.prepared or trained_gates or args.weights == "none"):
            say(
                "preparation: none, although skips cost the network much; --warmup-iterations sets its steps "
                "(in agents.hybrid_reinforce, --preset plain)"
            )
        return setting, tolerance
    say(f"preparation: {steps} steps, in which the network learns to do without its least important blocks")
    images = setting.val.first(LOOK // 4)  # only the order of the costs counts
    with image_progress("what each block is worth") as show:
        costs = absence_costs(setting.mdp(), images, precision=setting.precision, progress=show)
    return replace(setting, absence_costs=costs), tolerance


class Preparation:
    """The steps that prepare a network.

    Args:
        costs: cost of each block's absence [N], see `look`.
        steps: how many.
        teacher: gives its predictions; None for the labels alone.
        share: of the teacher in the loss.
    """

    def __init__(
        self, costs: Tensor, steps: int, teacher: Teacher | None = None, share: float = SHARE
    ) -> None:
        self.costs, self.steps, self.teacher, self.share = costs, steps, teacher, share

    @classmethod
    def of(cls, setting: Setting[Any]) -> Preparation | None:
        """Return the preparation of an agent without a flag for teachers; None if there are no steps."""
        costs, steps = setting.absence_costs, setting.args.warmup_iterations
        return None if costs is None else cls(costs, steps, Teacher([setting.plain], setting.precision))

    def step(
        self,
        mdp: RoutingMDP,
        policy: Policy,
        images: Tensor,
        labels: Tensor,
        step: int,
        generator: torch.Generator,
    ) -> tuple[Trajectory, Tensor]:
        """Play episodes on routes sampled at the rates of a step, and compare the gates with these rates.

        Args:
            mdp, policy, images, labels: see `rollout`.
            step: its number, from 0.
            generator: random generator of the routes, on the images' device.

        Returns:
            The episodes, and the loss, a scalar: the backbone's, see `distilled`, and the cross-entropy of
            the gates' p(execute) against the rates, capped at `TRIED`.
        """
        progress = (step + 1) / self.steps
        rates = falling_rates(self.costs, mdp.payment, min(1.0, progress / RAMP))
        rates = rates.to(images.device, non_blocking=True)
        draws = for_images(
            lambda count: torch.rand(count, len(rates), generator=generator, device=images.device),
            len(labels),
            generator,
        )
        episode = rollout(mdp, policy, images, labels, routes=draws < rates)
        aim = rates.clamp(max=TRIED).expand_as(episode.gate_logits)
        missed = F.binary_cross_entropy_with_logits(episode.gate_logits, aim, reduction="none")
        targets = None if self.teacher is None else self.teacher(images)
        loss = distilled(episode.loss, episode.logits, targets, self.share)
        return episode, loss.mean() + missed.sum(dim=1).mean()
