"""BlockDrop: one look at the image decides on all blocks at once.

    python -m agents.blockdrop --env SkipResNet20-v0 --dataset cifar10 --data-dir data

Wu, Nagarajan, Kumar, Rennie, Davis, Grauman, Feris, "BlockDrop: Dynamic Inference Paths in Residual
Networks", CVPR 2018 (arXiv 1711.08393). A small ResNet, the policy network, sees the image and gives the
probability of each block (section 3.2). The reward is 1 - (executed / N)² for a right answer and -γ for a
wrong one (equation 4); the baseline is the reward of the thresholded route (self-critical, equation 8); the
probabilities are kept away from 0 and 1 (equation 9).

    curriculum   the backbone is frozen; at first only the last block is decided on, then one more
                 at a time (section 3.3)
    joint        backbone and policy network are trained together, with the cross-entropy added

This reward is not the environment's. The table's `return` is, as for every agent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.common.cli import main_with_named_errors
from agents.common.flags import Method, PreparedArgs, Schedule
from agents.common.keeper import KeepLast
from agents.common.learner import ModelLearner
from agents.common.optimizers import adam
from agents.common.outcome import weights_header
from agents.common.preparation import Preparation
from agents.common.runner import run_agent
from agents.common.setting import Setting
from agents.common.situation import defaults_of
from skipnet_rl.data import Images
from skipnet_rl.data.imageset import step_batch
from skipnet_rl.device import autocast
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.policy_networks import PolicyNetwork
from skipnet_rl.randomness import Stream, step_generator
from skipnet_rl.rollout import Trajectory, rollout


@dataclass(frozen=True)
class Args(PreparedArgs):
    """Train a policy network that drops blocks, all at once."""

    advice: ClassVar[tuple[str, str]] = (
        "Lower --penalty, or train longer (--curriculum, --joint)",
        "Raise --penalty, or train longer (--curriculum, --joint)",
    )
    lengths: ClassVar[tuple[str, ...]] = ("curriculum", "joint")
    policy_depth: Method[int] = 8
    """depth of the policy network (6n + 2)"""
    penalty: Method[float] = 5.0
    """penalty for a wrong answer (γ)"""
    bound: Method[float] = 0.95
    """largest probability of either action (α); with the paper's 0.8, each block is dropped at least one time
    in five, and a short curriculum learns to execute everything"""
    curriculum: Schedule[int] = 400
    """training steps with a frozen backbone; the blocks are added over the first half of them"""
    joint: Schedule[int] = 200
    """training steps of backbone and policy network together"""
    lr: Schedule[float] = 1e-3
    """Adam's learning rate for the policy network"""
    joint_lr: Schedule[float] = 3e-4
    """Adam's learning rate for the backbone in the joint stage, falling linearly to zero"""

    def check(self) -> None:
        """Raise a ValueError for a number that makes no sense."""
        super().check()
        if not 0.5 < self.bound <= 1:
            raise ValueError(f"--bound is {self.bound}; expected 0.5 < bound <= 1")

    def plan(self) -> list[str]:
        """The stage of each training step."""
        stages = {"warmup": self.warmup_iterations, "curriculum": self.curriculum, "joint": self.joint}
        return [stage for stage, steps in stages.items() for _ in range(steps)]

    def decided(self, step: int, num_decisions: int) -> int:
        """Return how many of the last blocks are decided on, at a step after the preparation."""
        growth = max(self.curriculum // 2, 1)
        return min(num_decisions, 1 + (step - self.warmup_iterations) * num_decisions // growth)


class Learner(ModelLearner):
    """Backbone, policy network and optimizers of one run."""

    def __init__(
        self, args: Args, mdp: RoutingMDP, precision: str, preparation: Preparation | None = None
    ) -> None:
        torch.manual_seed(args.seed)
        policy = PolicyNetwork(mdp.num_decisions, args.policy_depth, mdp.net.image_size)
        self.policy = policy.to(mdp.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        model = nn.ModuleDict({"net": mdp.net, "policy": self.policy})
        super().__init__(mdp, model, precision, preparation)
        self.optimizers = {
            "policy": adam(self.policy, args.lr),
            "net": adam(mdp.net, args.joint_lr),
        }


def reward(routes: Tensor, correct: Tensor, penalty: float) -> Tensor:
    """Compute equation 4: routes [B, N], correct [B] → [B]."""
    used = routes.float().mean(dim=1)
    return torch.where(correct, 1 - used.square(), -penalty)


def bounded(logits: Tensor, bound: float) -> Tensor:
    """Compute equation 9, s' = α s + (1 - α)(1 - s): log-odds [B, N] → probabilities [B, N]."""
    s = logits.sigmoid()
    return bound * s + (1 - bound) * (1 - s)


def train_step(learner: Learner, data: Images, step: int, stage: str, args: Args) -> Trajectory:
    """Take one self-critical step; in the joint stage, also one of the backbone on the cross-entropy."""
    device, mdp = data.device, learner.mdp
    images, labels = step_batch(data, step, args.batch_size, args.seed)
    learner.policy.train()
    draws = step_generator(args.seed, step, device, Stream.ROUTES)
    if stage == "warmup":
        assert learner.preparation is not None
        mdp.net.train()
        with autocast(learner.precision, device):
            episode, loss = learner.preparation.step(mdp, learner.policy, images, labels, step, draws)
        learner.descend(loss, {"policy": args.lr, "net": args.joint_lr})
        return episode
    mdp.net.train(stage == "joint")
    frozen = mdp.num_decisions - args.decided(step, mdp.num_decisions)  # first blocks, which always run
    with autocast(learner.precision, device):
        p = bounded(learner.policy.start(images).float(), args.bound)
    sampled, greedy = torch.rand(p.shape, device=device, generator=draws) < p, p > 0.5
    sampled[:, :frozen] = greedy[:, :frozen] = True
    # in one region of autocast, older versions of PyTorch reuse weights that were cast without gradients
    with torch.no_grad(), autocast(learner.precision, device):
        mdp.net.eval()  # the baseline moves no batch norm
        own = rollout(mdp, AlwaysExecute(), images, labels, routes=greedy)
        mdp.net.train(stage == "joint")
    with torch.set_grad_enabled(stage == "joint"), autocast(learner.precision, device):
        episode = rollout(mdp, AlwaysExecute(), images, labels, routes=sampled)
    gain = reward(sampled, episode.correct, args.penalty) - reward(greedy, own.correct, args.penalty)
    log_probs = torch.where(sampled, p, 1 - p).log()[:, frozen:].sum(dim=1)
    loss = -(gain * log_probs).mean()
    if stage != "joint":
        learner.descend(loss, {"policy": args.lr})
        return episode
    done = (step - args.warmup_iterations - args.curriculum) / args.joint
    rates = {"policy": args.lr, "net": args.joint_lr * (1 - done)}
    learner.descend(loss + episode.loss.mean(), rates)
    return episode


def start(setting: Setting[Args]) -> Learner:
    """Build the learner, with a new policy network."""
    return Learner(setting.args, setting.mdp(), setting.precision, Preparation.of(setting))


def keep(setting: Setting[Args], learner: Learner, folder: Path) -> KeepLast:
    """Keep the last weights."""
    args = setting.args
    header = weights_header(setting, "blockdrop", "blockdrop", policy_depth=args.policy_depth)
    return KeepLast(setting, learner, folder, row="BlockDrop", header=header, trained=("warmup", "joint"))


def train(args: Args) -> dict[str, Any]:
    """Train both stages, then evaluate on the test set once; returns result.json's content."""
    return run_agent(args, "blockdrop", start, keep, train_step)


arguments = partial(defaults_of, Args)  # the flags' defaults on a command line


if __name__ == "__main__":
    main_with_named_errors(Args, train, defaults=arguments)
