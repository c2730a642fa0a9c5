"""Gumbel-softmax gates with a target rate of execution, as in ConvNet-AIG.

    python -m agents.gumbel --env SkipResNet20-v0 --dataset cifar10 --data-dir data --target 0.7

Veit, Belongie, "Convolutional Networks with Adaptive Inference Graphs", ECCV 2018 (arXiv 1711.11503):

    min  L(ŷ, y) + λ Σ_l (z̄_l - t)² / N

with z̄_l the share of a batch that executes block l, and discrete gates whose gradient is that of the
relaxed draw (section 3.2). There is no reward: the penalty alone limits the compute.

The paper sets the target for every block (`--target-of block`). The default here is a target for the mean
over blocks, (mean_l z̄_l - t)², so that blocks can differ: with the paper's, every gate stays near t for every
image in a short training, and if t is above one half, the threshold at test time executes everything.
The paper's gates are small networks on each block's pooled feature; here `--gate` chooses them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

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
from skipnet_rl.gates import make_gate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.randomness import Stream, step_generator
from skipnet_rl.rollout import Trajectory, rollout

TOLERANCE = 0.05  # largest distance from the target at which it counts as met


@dataclass(frozen=True)
class Args(PreparedArgs):
    """Train gates and backbone together through relaxed draws."""

    advice: ClassVar[tuple[str, str]] = (
        "Lower --target, raise --penalty, or train longer (--iterations)",
        "Raise --target, lower --penalty, or train longer (--iterations)",
    )
    gate: Method[Literal["rnn", "ff1", "ff2"]] = "rnn"
    """kind of gate: one LSTM shared by all blocks (rnn), or a small convolutional network per block"""
    target: Method[float] = 0.7
    """share of the images for which a block should be executed (the paper's t)"""
    target_of: Method[Literal["block", "network"]] = "network"
    """scope of the target: each block (the paper), or the network on average"""
    penalty: Method[float] = 2.0
    """weight of the penalty for missing the target (λ)"""
    iterations: Schedule[int] = 500
    """training steps"""
    lr: Schedule[float] = 1e-3
    """Adam's learning rate for the backbone, falling linearly to zero"""
    gate_lr: Schedule[float] = 1e-2
    """Adam's learning rate for the gates, falling linearly to zero"""

    def plan(self) -> list[str]:
        """The stage of each training step."""
        return ["warmup"] * self.warmup_iterations + ["train"] * self.iterations


class Learner(ModelLearner):
    """Backbone, gate and optimizers of one run."""

    def __init__(
        self, args: Args, mdp: RoutingMDP, precision: str, preparation: Preparation | None = None
    ) -> None:
        torch.manual_seed(args.seed)
        self.policy = make_gate(args.gate, mdp.net).to(mdp.device)
        model = nn.ModuleDict({"net": mdp.net, "gate": self.policy})
        super().__init__(mdp, model, precision, preparation)
        self.optimizers = {
            "net": adam(mdp.net, args.lr),
            "gate": adam(self.policy, args.gate_lr),
        }


class Keeper(KeepLast):
    """Keeps the last weights; a note says if they miss the target."""

    def about(self, rate: float) -> dict[str, Any]:
        """The note."""
        return {"notes": missed_target(self.setting.args, rate)}


def rate_penalty(actions: Tensor, target: float, target_of: str = "block") -> Tensor:
    """Compute the mean squared distance of execution rates from the target: actions [B, N] → scalar."""
    rates = actions.mean(dim=0)
    return ((rates if target_of == "block" else rates.mean()) - target).square().mean()


def train_step(learner: Learner, data: Images, step: int, stage: str, args: Args) -> Trajectory:
    """Take one step, of the preparation or on the loss and the penalty."""
    device = data.device
    images, labels = step_batch(data, step, args.batch_size, args.seed)
    learner.model.train()
    draws = step_generator(args.seed, step, device, Stream.ROUTES)
    left = 1.0
    with autocast(learner.precision, device):
        if stage == "warmup":
            assert learner.preparation is not None
            episode, loss = learner.preparation.step(learner.mdp, learner.policy, images, labels, step, draws)
        else:
            episode = rollout(learner.mdp, learner.policy, images, labels, "gumbel", draws)
            missed = rate_penalty(episode.actions, args.target, args.target_of)
            loss = episode.loss.mean() + args.penalty * missed
            left -= (step - args.warmup_iterations) / args.iterations
    learner.descend(loss, {"net": left * args.lr, "gate": left * args.gate_lr})
    return episode


def start(setting: Setting[Args]) -> Learner:
    """Build the learner, with new gates."""
    return Learner(setting.args, setting.mdp(), setting.precision, Preparation.of(setting))


def keep(setting: Setting[Args], learner: Learner, folder: Path) -> Keeper:
    """Keep the last weights."""
    header = weights_header(setting, setting.args.gate, "gumbel")
    return Keeper(setting, learner, folder, row="Gumbel", header=header, trained=("warmup", "train"))


def train(args: Args) -> dict[str, Any]:
    """Train, evaluate, write the run folder; returns result.json's content."""
    return run_agent(args, "gumbel", start, keep, train_step)


def missed_target(args: Args, rate: float) -> list[str]:
    """Return a note on what to do if the rate of execution misses `--target`, else nothing."""
    if abs(rate - args.target) <= TOLERANCE:
        return []
    longer = "train longer (--iterations), or weigh the target more (--penalty)"
    return [f"the target is missed: {rate:.1%} of the decisions execute, not {args.target:.1%}; {longer}"]


arguments = partial(defaults_of, Args)  # the flags' defaults on a command line


if __name__ == "__main__":
    main_with_named_errors(Args, train, defaults=arguments)
