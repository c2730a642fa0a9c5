"""Train a backbone alone: SGD on the cross-entropy, optionally with stochastic depth or teachers.

    python -m agents.pretrain --depth 20 --dataset cifar10 --data-dir data

The result is the network that `agents.hybrid_reinforce` starts from. Batches, augmentation and peak rate are
those of He et al. 2016 (arXiv 1512.03385, section 4.2); by default with a cosine after a warm-up instead of
the steps, Nesterov's momentum, and a weight decay of 5e-4 on matrices alone (theirs: 1e-4). Stochastic depth:
Huang et al. 2016 (arXiv 1603.09382), without a rescaling at test time. It makes the backbone tolerant of
skipped blocks, and saves the work of the blocks that a batch drops.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from agents.common.cli import main_with_named_errors
from agents.common.compiled import compile_where_asked
from agents.common.distillation import SHARE, TaughtArgs, Teacher, distilled, teachers_of
from agents.common.estimate import print_estimate_of_pretraining
from agents.common.flags import Data, Method, Run, Schedule
from agents.common.learner import ModelLearner
from agents.common.loop import learn
from agents.common.new_network import new_network
from agents.common.optimizers import MOMENTUM, adamw, resume, sgd, warmed_up
from agents.common.outcome import finish, weights_header
from agents.common.processes import check_run_dir, start_run
from agents.common.setting import Setting
from agents.common.situation import defaults_of
from envs.ids import id_of
from skipnet_rl.batchnorm import recalibrate
from skipnet_rl.checkpoint import load_weights, save_weights
from skipnet_rl.data import Images
from skipnet_rl.data.imageset import step_batch
from skipnet_rl.device import autocast, cpu_by_default
from skipnet_rl.evaluate import evaluate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.network import Network
from skipnet_rl.policies import AlwaysExecute, StochasticDepth
from skipnet_rl.progress import image_progress
from skipnet_rl.randomness import Stream, step_generator
from skipnet_rl.resnet import Architecture
from skipnet_rl.rollout import Trajectory, rollout

EPOCHS, FEWEST_STEPS = 30, 1_500  # if no length is given
ON_THE_WAY = 2  # batches of 250 images to estimate batch norms on, for a validation during training


@dataclass(frozen=True)
class Args(TaughtArgs):
    """Train a network with every block executed: a ResNet, or a model of another library."""

    first_look: ClassVar[bool] = False
    takes_processes: ClassVar[bool] = True
    depth: Data[int] = 110
    """depth, 6n + 2 (14, 20, 32, 38, …, 110, 152) for CIFAR-sized images; 34, 50, 101 for ImageNet's"""
    weights: Data[str] = "none"
    """network to start from (a warm restart): a file, a shipped name, auto for the best shipped one that
    fits, or torchvision for torchvision's; for a model of another library, a file, or DEFAULT for the
    library's own. A shallower ResNet grows: its missing blocks start as their shortcuts, so that the
    predictions stay the same. A classifier for another number of classes is replaced by a new one"""
    model: Data[str | None] = None
    """classifier of torchvision or timm, such as torchvision/convnext_tiny, instead of a ResNet of --depth"""
    zero_init_residual: Method[bool] = True
    """the usual initial weights; by default each block starts as its shortcut (Goyal et al. 2017, arXiv
    1706.02677), which deep networks need"""
    survival: Method[float] = 1.0
    """stochastic depth: survival probability of the last block, falling linearly from 1 at the first"""
    epochs: Schedule[float | None] = None
    """passes over the training split (default: 30, or as many as 1500 steps take if that is more)"""
    batch_size: Schedule[int] = 128
    """images per step"""
    lr: Schedule[float] = 0.1
    """peak learning rate"""
    schedule: Schedule[Literal["cosine", "step"]] = "cosine"
    """course of the learning rate: a cosine to zero, or step: divided by ten at 50 % and 75 % of the steps"""
    warmup: Schedule[float] = 0.05
    """share of the steps over which the learning rate rises from zero"""
    optimizer: Schedule[Literal["sgd", "adamw"]] = "sgd"
    """optimizer; transformers and ConvNeXt need adamw, with lr 0.001 and weight decay 0.05"""
    momentum: Schedule[float | None] = None
    """momentum of Nesterov's SGD (default: 0.9); adamw has none"""
    weight_decay: Schedule[float] = 5e-4
    """weight decay of convolutions and the classifier's matrix"""
    test_images: Run[int | None] = None
    """number of test images at the end, the first ones (default: all)"""
    resume: Run[bool] = False
    """continuation from the checkpoint in --run-dir, if there is one"""
    # Without a policy there is nothing to choose.
    env: str = ""  # follows from the depth, or the model
    alpha: float = 0.0
    cost: Literal["blocks", "flops"] = "blocks"
    eval_images: int = 10**9  # all validation images

    def __post_init__(self) -> None:
        """Name the environment of this network."""
        object.__setattr__(self, "env", id_of(None if self.other_library else self.depth))

    @property
    def other_library(self) -> bool:
        """Whether the network is a model of another library."""
        return self.model is not None

    @property
    def trains_networks(self) -> bool:
        """Always."""
        return True

    @property
    def images_per_step(self) -> int:
        """The batch."""
        return self.batch_size

    @property
    def networks(self) -> tuple[str | None, ...]:
        """Weights of the teachers; `Problem.sources` has the network's."""
        return self.teacher

    def check(self) -> None:
        """Raise a ValueError for a name or number that makes no sense."""
        super().check()
        if not self.other_library:
            Architecture.of_depth(self.depth)
        if self.distillation not in (0, SHARE) and not self.teacher:
            raise ValueError("--distillation needs a --teacher")
        if self.momentum is not None and self.optimizer != "sgd":
            raise ValueError(f"--momentum is for sgd, but --optimizer is {self.optimizer}; leave it out")

    @property
    def sgd_momentum(self) -> float:
        """The momentum that is given, or the usual one."""
        return MOMENTUM if self.momentum is None else self.momentum

    def resolved(self) -> Args:
        """Return the flags with SGD's usual momentum if none is given."""
        return replace(self, momentum=self.sgd_momentum) if self.optimizer == "sgd" else self

    def steps(self, images: int) -> int:
        """Return the number of training steps; raises a ValueError if it is zero."""
        epochs = EPOCHS if self.epochs is None else self.epochs
        steps = round(epochs * (images // self.batch_size))
        if steps < 1:
            raise ValueError(
                f"{epochs} epochs of {images} images in batches of {self.batch_size} make no step; raise "
                "--epochs, or lower --batch-size"
            )
        return max(steps, FEWEST_STEPS) if self.epochs is None else steps


class Learner(ModelLearner):
    """A backbone and its optimizer."""

    def __init__(self, args: Args, net: Network, precision: str, teacher: Teacher | None = None) -> None:
        super().__init__(RoutingMDP(net), nn.ModuleDict({"net": net}), precision)
        self.teacher = teacher
        if args.optimizer == "adamw":
            optimizer = adamw(net, args.lr, args.weight_decay)
        else:
            optimizer = sgd(net, args.lr, args.sgd_momentum, args.weight_decay)
        self.optimizers = {"net": optimizer}

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"net": self.mdp.net.state_dict(), "optimizer": self.optimizers["net"].state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.mdp.net.load_state_dict(state["net"])
        resume(self.optimizers["net"], state["optimizer"])


def train_step(learner: Learner, data: Images, step: int, args: Args) -> Trajectory:
    """Take one step of the optimizer, on one batch with its augmentation and its dropped blocks.

    Returns:
        The batch as episodes; their loss is the one that was minimised, the teachers' share included.
    """
    episode = play(learner, data, step, args)
    progress = (step + 0.5) / args.steps(len(data))
    rate = args.lr * warmed_up(args.schedule, args.warmup, progress)
    learner.descend(episode.loss.mean(), {"net": rate})
    return episode


def play(learner: Learner, data: Images, step: int, args: Args) -> Trajectory:
    """Play the episodes of a step; a teacher sees the same images."""
    device, mdp = data.device, learner.mdp
    images, labels = step_batch(data, step, args.batch_size, args.seed)
    targets = None if learner.teacher is None else learner.teacher(images)
    with autocast(learner.precision, device):
        if args.survival == 1:
            logits = mdp.net(images)
            loss = F.cross_entropy(logits, labels, reduction="none")
            every = torch.ones(len(labels), mdp.num_decisions, device=device)
            rewards = torch.zeros_like(every)
            rewards[:, -1] = -loss.detach()
            episode = Trajectory(every, every, rewards, logits, labels, loss)
        else:
            policy = StochasticDepth(args.survival, step_generator(args.seed, step, "cpu", Stream.ROUTES))
            episode = rollout(mdp, policy, images, labels)
        return replace(episode, loss=distilled(episode.loss, episode.logits, targets, args.share))


def settled(net: Network, data: Images, args: Args) -> RoutingMDP:
    """Return the network to validate; with stochastic depth, a copy with batch norms for all blocks executed.

    The statistics of training come from networks with dropped blocks, and make the whole network look worse
    than it is.
    """
    if args.survival == 1:
        return RoutingMDP(net)
    mdp = RoutingMDP(copy.deepcopy(net))
    recalibrate(mdp, AlwaysExecute(), data, batches=ON_THE_WAY, seed=args.seed)
    return mdp


@cpu_by_default()
def train(args: Args) -> dict[str, Any]:
    """Train, evaluate on the test set once, write the run folder; returns result.json's content."""
    setting = Setting.of(args.resolved(), new_network)
    check_run_dir(setting)
    data, net = setting.train, setting.net
    steps = args.steps(len(data))
    teacher = Teacher(teachers_of(setting), setting.precision) if args.share else None
    learner = Learner(args, net, setting.precision, teacher)
    compile_where_asked(setting, net)
    run = start_run(setting, "pretrain")
    eval_every = max(len(data) // args.batch_size, min(steps // EPOCHS, 50))  # few images: short epochs
    if run:
        print_estimate_of_pretraining(setting, steps, eval_every)
    wall_time = learn(
        run,
        ["pretrain"] * steps,
        learner,
        train_step=lambda step, _: train_step(learner, data, step, args),
        validate=lambda *_: setting.validate(settled(net, data, args), AlwaysExecute()),
        seed=args.seed,
        eval_every=eval_every,
        resume=args.resume,
    )
    if run is None:  # the leader does the rest
        return {}
    if args.survival < 1:  # its statistics come from networks with dropped blocks
        recalibrate(RoutingMDP(net), AlwaysExecute(), data, seed=args.seed)
    file = run.folder / "weights.safetensors"
    save_weights(file, net, weights_header(setting, "plain", "pretrain"))
    load_weights(file, net)  # report what the file does, rounding included
    with image_progress("test images") as show:
        final = evaluate(RoutingMDP(net), AlwaysExecute(), setting.test, progress=show)
    weights = {"all blocks": file.name}
    return finish(setting, run, "pretrain", {"all blocks": final}, wall_time, weights, precision="fp32")


arguments = partial(defaults_of, Args)  # the flags' defaults on a command line


if __name__ == "__main__":
    main_with_named_errors(Args, train, defaults=arguments)
