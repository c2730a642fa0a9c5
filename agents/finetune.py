"""Long training of a gated network's backbone on the routes that its gates choose at test time.

    python -m agents.finetune --weights resnet110-rendered-digits-hrl --teacher resnet110-rendered-digits
    python -m agents.finetune --weights runs/…/hrl.safetensors --fixed-route

The final tuning of `agents.hybrid_reinforce` as a separate, longer run. A threshold has no gradient, so the
gates stay as they are and the backbone learns the routes that they take, from the labels and, with
`--teacher`, from the predictions of trained networks. With `--fixed-route` all images take the route that the
gates choose most often on the validation images: a control that shows what choosing per image is worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from agents.common.cli import main_with_named_errors
from agents.common.distillation import TaughtArgs, Teacher, distilled, teachers_of
from agents.common.flags import Method, Schedule, TrainingArgs
from agents.common.keeper import KeepBest
from agents.common.learner import GatedLearner
from agents.common.optimizers import OPTIMIZERS, falling
from agents.common.preset_choice import trained_as
from agents.common.runner import run_agent
from agents.common.setting import Setting
from agents.common.situation import Situation, defaults_of
from envs.ids import depth_of, is_model
from skipnet_rl import catalogue
from skipnet_rl.data import Images, resolve_dataset
from skipnet_rl.data.imageset import step_batch
from skipnet_rl.device import autocast
from skipnet_rl.errors import WeightsError
from skipnet_rl.evaluate import most_frequent
from skipnet_rl.gates import GATES
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.rollout import Trajectory, rollout
from skipnet_rl.weights import FIXED, Opened, StoredPolicy, new_policy, open_weights


@dataclass(frozen=True)
class Args(TaughtArgs, TrainingArgs):
    """Train a gated network's backbone on the routes that its gates choose."""

    advice: ClassVar[tuple[str, str]] = (
        "The gates stay as they are: start from gates that skip more (--weights)",
        "Train longer (--iterations), or start from gates that skip less (--weights)",
    )
    fixed_route: Method[bool] = False
    """one route for all images, the one that the gates choose most often"""
    iterations: Schedule[int] = 600
    """training steps"""
    optimizer: Schedule[Literal["adam", "sgd"]] = "sgd"
    """optimizer of the backbone; sgd: Nesterov's, with the momentum and weight decay of agents.pretrain"""
    lr: Schedule[float] = 0.05
    """learning rate of the backbone"""
    schedule: Schedule[Literal["constant", "linear", "cosine"]] = "cosine"
    """course of the learning rate, to zero unless constant"""
    bn: Literal["train", "frozen", "recalibrate"] = "recalibrate"  # see `hybrid_reinforce.Args`
    bn_images: int = 4_000
    eval_images: int = 1_000

    def check(self) -> None:
        """Raise a ValueError for a name or number that makes no sense."""
        super().check()
        if self.weights in ("auto", "none", "torchvision"):
            raise ValueError(
                f"--weights is {self.weights}; expected a network with gates: a file, or the name of a "
                "shipped one (none is shipped for this id and data set)"
            )

    def plan(self) -> list[str]:
        """The stage of each training step."""
        return ["tune"] * self.iterations


class Learner(GatedLearner):
    """Backbone and its optimizer; the gates, or the route, stay as they are."""

    def __init__(self, setting: Setting[Args], opened: Opened) -> None:
        args = setting.args
        gate: Any = opened.policy
        kind = opened.header["kind"]
        if args.fixed_route:
            gate, kind = new_policy(FIXED, setting.net), FIXED
            gate.route.copy_(frequent_route(setting, opened))
        super().__init__(setting.mdp(), gate, setting.precision)
        self.kind = kind
        self.teacher = Teacher(teachers_of(setting), self.precision) if args.share else None
        self.optimizers = {"net": OPTIMIZERS[args.optimizer](self.mdp.net, args.lr)}


def frequent_route(setting: Setting[Args], opened: Opened) -> Tensor:
    """Return the route [N] that the gates choose most often on the validation images."""
    opened = opened.on(setting.device)
    return most_frequent(setting.evaluate(opened.mdp(), opened.policy, images=setting.val).routes)


def train_step(learner: Learner, data: Images, step: int, stage: str, args: Args) -> Trajectory:
    """Train the backbone for one step, on thresholded routes."""
    images, labels = step_batch(data, step, args.batch_size, args.seed)
    targets = None if learner.teacher is None else learner.teacher(images)
    images = images.contiguous(memory_format=torch.channels_last)
    learner.mdp.net.train(args.bn != "frozen")
    learner.gate.eval()
    with autocast(learner.precision, data.device):
        episode = rollout(learner.mdp, learner.gate, images, labels)
        loss = distilled(episode.loss, episode.logits, targets, args.share).mean()
    left = (args.iterations - step) / args.iterations
    learner.descend(loss, {"net": falling(args.schedule, left) * args.lr})
    return episode


def start(setting: Setting[Args]) -> Learner:
    """Build the learner over the network of `--weights`."""
    args = setting.args
    opened = open_weights(
        args.weights,
        depth=args.depth,
        shortcut=None if args.other_library else args.shortcut,
        num_classes=len(setting.train.classes),
    )
    if isinstance(opened.policy, AlwaysExecute):
        raise WeightsError(f"{args.weights} has no gates; expected a network whose gates choose routes")
    if not (args.fixed_route or isinstance(opened.policy, StoredPolicy)):
        raise WeightsError(
            f"{args.weights} has a policy of kind {opened.header['kind']!r}, which cannot be stored with a "
            "tuned network; expected a network with gates, as agents.hybrid_reinforce trains; or give "
            "--fixed-route, which trains on this policy's most frequent route"
        )
    return Learner(setting, opened)


def keep(setting: Setting[Args], learner: Learner, folder: Path) -> KeepBest:
    """Keep the best weights; the start competes."""
    return KeepBest(setting, learner, folder, "finetune", learner.kind, trained=True)


def train(args: Args) -> dict[str, Any]:
    """Train, then evaluate on the test set once; returns result.json's content."""
    return run_agent(args, "finetune", start, keep, train_step)


def values_of(situation: Situation) -> dict[str, Any]:
    """Return a network with gates, and the flags that it was trained with."""
    weights = situation.weights
    if weights == "auto":
        dataset, _ = resolve_dataset(situation.dataset, situation.data_dir)
        depth = None if is_model(situation.env) else depth_of(situation.env)
        kinds = tuple(GATES)
        gated = catalogue.find_auto(depth, dataset, "projection", kinds, situation.alpha, start=False)
        weights = weights if gated is None else gated["name"]
    return {"weights": weights, **trained_as(weights, situation.model)}


arguments = partial(defaults_of, Args, values=values_of)  # the flags' defaults on a command line


if __name__ == "__main__":
    main_with_named_errors(Args, train, defaults=arguments)
