"""Adaptive computation time (ACT): within each stage of the network an image stops once it has halted.

    python -m agents.act --env SkipResNet20-v0 --dataset cifar10 --data-dir data

Figurnov, Collins, Zhu, Zhang, Huang, Vetrov, Salakhutdinov, "Spatially Adaptive Computation Time for Residual
Networks", CVPR 2017 (arXiv 1612.02297), section 3.1, after Graves 2016 (arXiv 1603.08983):

    min  L(ŷ, y) + τ Σ_stages (N + R)

with N the units that run in a stage and R the remainder, the halting weight of the last of them. There is no
sampling and no reward: scores and backbone share one gradient.

    train   a stage's output is the mean of its units' outputs, weighted by the halting distribution
    tune    the backbone alone, on the routes of test time: the output is that of the last unit that runs

The paper keeps the mean at test time. A policy can only skip or execute, so here the features after a stage
are those of the last unit that ran, and the network is tuned for them. `mean_accuracy` in result.json is the
accuracy with the mean, on validation images before the tuning.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from agents.common.cli import main_with_named_errors
from agents.common.flags import CompiledArgs, Method, Schedule, TrainingArgs
from agents.common.keeper import KeepLast
from agents.common.learner import ModelLearner
from agents.common.optimizers import adam
from agents.common.outcome import weights_header
from agents.common.preset_choice import scaled_to
from agents.common.runner import run_agent
from agents.common.setting import Setting
from agents.common.situation import Situation, defaults_of
from skipnet_rl.data import Images
from skipnet_rl.data.imageset import step_batch
from skipnet_rl.device import autocast
from skipnet_rl.evaluate import usual_batch_size
from skipnet_rl.halting import HaltingGate, pondered
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.modules import evaluation_mode
from skipnet_rl.rollout import Trajectory, rollout
from skipnet_rl.weights import ACT


@dataclass(frozen=True)
class Args(CompiledArgs, TrainingArgs):
    """Train halting scores and backbone together."""

    advice: ClassVar[tuple[str, str]] = (
        "Raise --alpha (or --tau, if you set it), or train longer (--iterations)",
        "Lower --alpha (or --tau, if you set it), or train longer (--iterations, --tune-iterations)",
    )
    tau: Method[float | None] = None
    """weight of the ponder cost (default: alpha/N, which the environment pays for a skipped block)"""
    iterations: Schedule[int] = 300
    """training steps on the mean of the units"""
    tune_iterations: Schedule[int] = 300
    """final steps, which train the backbone alone on the thresholded routes"""
    lr: Schedule[float] = 1e-3
    """Adam's learning rate for the backbone, falling linearly to zero in each stage"""
    gate_lr: Schedule[float] = 2e-2
    """Adam's learning rate for the halting scores, falling linearly to zero"""

    def plan(self) -> list[str]:
        """The stage of each training step."""
        return ["ponder"] * self.iterations + ["tune"] * self.tune_iterations

    def left(self, step: int) -> float:
        """Return the share of a stage's steps still to come, from 1 down to 0."""
        done = step - self.iterations
        return -done / self.iterations if done < 0 else 1 - done / self.tune_iterations


class Learner(ModelLearner):
    """Backbone, halting scores and optimizers of one run."""

    def __init__(self, args: Args, mdp: RoutingMDP, precision: str) -> None:
        self.policy = HaltingGate(mdp.net).to(mdp.device)
        super().__init__(mdp, nn.ModuleDict({"net": mdp.net, "gate": self.policy}), precision)
        self.tau = mdp.alpha / mdp.num_decisions if args.tau is None else args.tau
        self.mean_accuracy: float | None = None  # on validation images, after the training on the mean
        self.optimizers = {
            "net": adam(mdp.net, args.lr),
            "gate": adam(self.policy, args.gate_lr),
        }

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {**super().state_dict(), "mean_accuracy": self.mean_accuracy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        super().load_state_dict(state)
        self.mean_accuracy = state["mean_accuracy"]


class Keeper(KeepLast):
    """Keeps the last weights, and measures the mean that they were trained on."""

    learner: Learner

    def end_stage(self, stage: str) -> None:
        """Measure the mean before the batch norms are settled for the thresholded routes."""
        if stage == "ponder":
            setting = self.setting
            images = setting.val.first(setting.args.eval_images)
            self.learner.mean_accuracy = mean_accuracy(self.learner, images)
        super().end_stage(stage)

    def about(self, rate: float) -> dict[str, Any]:
        """The notes, and the accuracy of the mean."""
        return {**super().about(rate), "mean_accuracy": self.learner.mean_accuracy}


@torch.no_grad()
def mean_accuracy(learner: Learner, images: Images) -> float:
    """Compute the accuracy with the mean of the units as each stage's output."""
    mdp, right = learner.mdp.for_inference(), 0
    with evaluation_mode(learner.policy):
        for batch, labels in images.batches(usual_batch_size(images.device, mdp.net.image_size)):
            with autocast(learner.precision, images.device):
                right += int(pondered(mdp, learner.policy, batch, labels)[0].correct.sum())
    return right / len(images)


def train_step(learner: Learner, data: Images, step: int, stage: str, args: Args) -> Trajectory:
    """Take one step on the loss and the ponder cost, or on the loss of the thresholded routes."""
    images, labels = step_batch(data, step, args.batch_size, args.seed)
    learner.model.train()
    rates = {"net": args.left(step) * args.lr}
    with autocast(learner.precision, data.device):
        if stage == "tune":
            episode = rollout(learner.mdp, learner.policy, images, labels)
            loss = episode.loss.mean()
        else:
            episode, cost = pondered(learner.mdp, learner.policy, images, labels)
            loss = episode.loss.mean() + learner.tau * cost.mean()
            rates["gate"] = args.left(step) * args.gate_lr
    learner.descend(loss, rates)
    return episode


def start(setting: Setting[Args]) -> Learner:
    """Build the learner, with new halting scores."""
    return Learner(setting.args, setting.mdp(), setting.precision)


def keep(setting: Setting[Args], learner: Learner, folder: Path) -> Keeper:
    """Keep the last weights."""
    header = weights_header(setting, ACT, "act")
    return Keeper(setting, learner, folder, row="ACT", header=header, trained=("ponder", "tune"))


def train(args: Args) -> dict[str, Any]:
    """Train both stages, then evaluate on the test set once; returns result.json's content."""
    return run_agent(args, "act", start, keep, train_step)


def values_of(situation: Situation) -> dict[str, Any]:
    """Return the steps of a new run, which take equally long on any network."""
    return scaled_to(situation, vars(Args()))


arguments = partial(defaults_of, Args, values=values_of)  # the flags' defaults on a command line


if __name__ == "__main__":
    main_with_named_errors(Args, train, defaults=arguments)
