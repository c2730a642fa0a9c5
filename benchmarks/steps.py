"""Single training steps for benchmarks.

`pretraining` is a step of `agents.pretrain` from untrained weights, with every block executed. `hybrid` is an
HRL step of `agents.hybrid_reinforce`, with sampled routes that execute half of the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from agents import hybrid_reinforce, pretrain
from benchmarks import measure, training
from skipnet_rl.data import load_images
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.resnet import ResNet

Kind = Literal["pretraining", "hybrid"]
LABELS = {"pretraining": "pretraining", "hybrid": "HRL, half executed"}


@dataclass(frozen=True)
class StepOptions(measure.Timed):
    """Options of a benchmark of one training step."""

    step: Kind = "pretraining"
    """pretraining, or hybrid"""
    depth: int = 110
    """depth of the network"""
    batch_size: int = 128
    """episodes per step"""
    precision: str = "auto"
    """bf16, fp32, or auto"""


class Step(NamedTuple):
    """A training step that can be repeated, at a learning rate of zero.

    Attributes:
        mdp: the decision process; its `net` may be replaced by a compiled one.
        take: takes the step and returns the mean loss of its episodes.
    """

    mdp: RoutingMDP
    take: Callable[[], Tensor]


def make(kind: Kind, depth: int, batch_size: int, precision: str, device: torch.device) -> Step:
    """Return a step on rendered-digits at the network's image size; images and weights never change."""
    torch.manual_seed(0)
    net: Any = ResNet(depth)
    data = load_images(training.DATASET, "train", size=net.image_size).to(device)
    if kind == "pretraining":
        plain = pretrain.Args(depth=depth, batch_size=batch_size, lr=0.0)
        alone = pretrain.Learner(plain, net.to(device, memory_format=torch.channels_last), precision)
        return Step(alone.mdp, lambda: pretrain.train_step(alone, data, 0, plain).loss.detach().mean())
    flags: dict[str, Any] = {"batch_size": batch_size, "precision": precision}
    args = hybrid_reinforce.Args(lr=0.0, gate_lr=0.0, **flags)
    learner = training.learner(depth, args, 0.5, device)

    def take() -> Tensor:
        return hybrid_reinforce.train_step(learner, data, 0, "hrl", args).loss.detach().mean()

    return Step(learner.mdp, take)
