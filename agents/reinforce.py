"""REINFORCE (Williams 1992) on a frozen backbone: the gates of SkipNet, learned by reward alone.

    python -m agents.reinforce --env SkipResNet20-v0 --dataset cifar10 --data-dir data

The score-function half of `agents.hybrid_reinforce`: the same estimator on the same gates, without a
gradient of the cross-entropy. It shows what routing alone achieves, beside PPO, A2C and DQN on the same
frozen network.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agents.common.chains import new_gate
from agents.common.cli import main_with_named_errors
from agents.common.flag_rules import check_routes
from agents.common.flags import FrozenArgs, Method, Schedule, TrainingArgs
from agents.common.keeper import KeepLast
from agents.common.learner import ModelLearner
from agents.common.optimizers import adam, resume
from agents.common.outcome import weights_header
from agents.common.runner import run_agent
from agents.common.setting import Setting
from agents.common.situation import defaults_of
from skipnet_rl.data import Images
from skipnet_rl.data.imageset import step_batch
from skipnet_rl.device import autocast
from skipnet_rl.estimators import advantages, score_function_loss
from skipnet_rl.process import DecisionProcess
from skipnet_rl.randomness import Stream, step_generator
from skipnet_rl.rollout import Trajectory, rewards_to_go, rollout


@dataclass(frozen=True)
class Args(FrozenArgs, TrainingArgs):
    """Train gates on a frozen backbone."""

    gate: Method[Literal["rnn", "ff1", "ff2"]] = "rnn"
    """kind of gate: one LSTM for all blocks (rnn), or a convolutional network per block; unused on a chain"""
    baseline: Method[Literal["none", "batch-mean", "leave-one-out"]] = "leave-one-out"
    """baseline of the score function; leave-one-out: the mean over an image's other routes"""
    routes: Method[int] = 4
    """sampled routes per image"""
    iterations: Schedule[int] = 500
    """training steps"""
    batch_size: Schedule[int] = 256
    """episodes per step"""
    lr: Schedule[float] = 1e-2
    """Adam's learning rate"""

    @property
    def images_per_step(self) -> int:
        """Several episodes share an image."""
        return self.batch_size // self.routes

    def check(self) -> None:
        """Raise a ValueError for a name or number that makes no sense."""
        super().check()
        check_routes(self.batch_size, self.routes, self.baseline)

    def plan(self) -> list[str]:
        """The stage of each training step."""
        return ["train"] * self.iterations


class Learner(ModelLearner):
    """Gate and optimizer over a frozen network."""

    def __init__(self, args: Args, mdp: DecisionProcess, precision: str) -> None:
        torch.manual_seed(args.seed)
        mdp.net.requires_grad_(False).eval()
        self.kind, gate = new_gate(args.gate, mdp)
        self.policy = self.gate = gate.to(mdp.device)
        super().__init__(mdp, nn.ModuleDict({"net": mdp.net, "gate": gate}), precision)
        self.optimizers = {"gate": adam(gate, args.lr)}

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, without the network, which stays as it is."""
        return {"gate": self.gate.state_dict(), "optimizer": self.optimizers["gate"].state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.gate.load_state_dict(state["gate"])
        resume(self.optimizers["gate"], state["optimizer"])


def train_step(learner: Learner, data: Images, step: int, stage: str, args: Args) -> Trajectory:
    """Take one step: sample routes, weigh their log-probabilities by the advantages."""
    device = data.device
    images, labels = step_batch(data, step, args.images_per_step, args.seed)
    images, labels = repeated(images, args.routes), labels.repeat_interleave(args.routes)
    learner.gate.train()
    draws = step_generator(args.seed, step, device, Stream.ROUTES)
    with autocast(learner.precision, device):
        episode = rollout(learner.mdp, learner.gate, images, labels, "sample", draws)
    weights = advantages(rewards_to_go(episode.rewards), args.baseline, args.routes)
    loss = score_function_loss(episode.log_probs, weights)
    learner.descend(loss, {"gate": args.lr})
    return episode


def repeated(images: Tensor, routes: int) -> Tensor:
    """Repeat each of the images [B, …], side by side; pixels in channels-last memory."""
    images = images.repeat_interleave(routes, 0)
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


def start(setting: Setting[Args]) -> Learner:
    """Build the learner, with new gates."""
    return Learner(setting.args, setting.mdp(), setting.precision)


def keep(setting: Setting[Args], learner: Learner, folder: Path) -> KeepLast:
    """Keep the last weights."""
    return KeepLast(
        setting, learner, folder, row="REINFORCE", header=weights_header(setting, learner.kind, "reinforce")
    )


def train(args: Args) -> dict[str, Any]:
    """Train, evaluate, write the run folder; returns result.json's content."""
    return run_agent(args, "reinforce", start, keep, train_step)


arguments = partial(defaults_of, Args)  # the flags' defaults on a command line


if __name__ == "__main__":
    main_with_named_errors(Args, train, defaults=arguments)
