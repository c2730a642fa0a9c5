"""Train a backbone alone: SGD on the cross-entropy, optionally with stochastic depth or teachers.

    python -m agents.pretrain --depth 20 --dataset cifar10 --data-dir data

The result is the network that `agents.hybrid_reinforce` starts from. Schedule and regularisation:
He et al. 2016 (arXiv 1512.03385, section 4.2), with a cosine instead of the steps by default.
Stochastic depth: Huang et al. 2016 (arXiv 1603.09382). It makes the backbone tolerant of skipped
blocks, and a batch that drops a block does none of its work.
"""

from __future__ import annotations

import copy
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from agents.common import flags
from agents.common.cli import main_with_named_errors
from agents.common.distillation import Teacher, check_teachers, distilled, load_teachers
from agents.common.flag_rules import check_choices, check_numbers
from agents.common.optimizers import sgd
from agents.common.setting import after
from agents.common.watch import check_finite, check_loss
from skipnet_rl import catalogue
from skipnet_rl.batchnorm import recalibrate
from skipnet_rl.checkpoint import load_weights, save_weights
from skipnet_rl.data import Images, resolve_dataset
from skipnet_rl.data.imageset import training_index
from skipnet_rl.device import autocast, cpu_by_default, pick_device, resolve_precision
from skipnet_rl.errors import WeightsError
from skipnet_rl.evaluate import evaluate
from skipnet_rl.growth import grow
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.normalisation import normalised
from skipnet_rl.policies import AlwaysExecute, StochasticDepth
from skipnet_rl.progress import image_progress, load_images, progress_bar
from skipnet_rl.randomness import Stream, step_generator
from skipnet_rl.resnet import Architecture, ResNet
from skipnet_rl.rollout import rollout
from skipnet_rl.runs import Run, run_folder, without_places
from skipnet_rl.terminal import say
from skipnet_rl.weights import open_weights

EPOCHS, FEWEST_STEPS = 30, 1_500  # of a training whose length nobody gives
ON_THE_WAY = 2  # batches of 250 images for the statistics of a network that is validated between epochs


@dataclass(frozen=True)
class Args:
    """Train a ResNet with every block executed."""

    depth: flags.Data[int] = 110
    """6n + 2 (14, 20, 32, 38, …, 110, 152) for CIFAR-sized images; 34, 50, 101 for ImageNet's"""
    dataset: flags.Data[str] = "auto"
    """auto, rendered-digits, cifar10, cifar100, svhn, imagenet or imagefolder"""
    data_dir: flags.Data[Path | None] = None
    """folder of the data set's official files (else $SKIPNET_DATA, else ./data)"""
    download: flags.Data[bool] = False
    """fetch missing files through torchvision"""
    mean: flags.Data[tuple[float, float, float] | None] = None
    """of the images' pixels in 0 … 1, per channel, for normalising (default: the data set's own)"""
    std: flags.Data[tuple[float, float, float] | None] = None
    """their deviation (default: the data set's own)"""
    shortcut: flags.Data[Literal["projection", "pad", "pool"]] = "projection"
    """projection, pad or pool"""
    zero_init_residual: flags.Method[bool] = True
    """start each block as its shortcut (Goyal et al. 2017, arXiv 1706.02677); deep networks need it"""
    weights: flags.Data[str | None] = None
    """go on from these weights, a file, a shipped name, or torchvision for torchvision's, with a schedule of
    its own (a warm restart); a classifier of another number of classes begins anew, and the blocks that a
    shallower network lacks begin as their shortcuts, so that the deeper one starts with the same predictions
    (default: from nothing)"""
    epochs: flags.Schedule[float | None] = None
    """passes over the training split (default: 30, and on few images as many as 1,500 steps take)"""
    batch_size: flags.Schedule[int] = 128
    """images per step"""
    lr: flags.Schedule[float] = 0.1
    """peak learning rate"""
    schedule: flags.Schedule[Literal["cosine", "step"]] = "cosine"
    """cosine to zero, or step: divided by ten at 50 % and 75 % of the steps"""
    warmup: flags.Schedule[float] = 0.05
    """share of the steps over which the learning rate rises from zero"""
    momentum: flags.Schedule[float] = 0.9
    """of Nesterov's SGD"""
    weight_decay: flags.Schedule[float] = 5e-4
    """on convolutions and the classifier's matrix"""
    survival: flags.Method[float] = 1.0
    """stochastic depth: survival probability of the last block, falling linearly; 1 is none"""
    distillation: flags.Method[float] = 0.0
    """share of the loss that asks for the predictions of --teacher instead of the labels"""
    teacher: flags.Method[tuple[str, ...]] = ()
    """network of --distillation, or several: files, names of shipped ones, or auto, of the same shortcut"""
    precision: flags.Run[Literal["auto", "bf16", "fp32"]] = "auto"
    """bf16, fp32, or auto: bf16 where the hardware has it"""
    device: flags.Run[str] = "auto"
    """cpu, cuda, or auto"""
    seed: flags.Run[int] = 0
    """of weights, order, augmentation and dropped blocks"""
    run_dir: flags.Run[Path | None] = None
    """run folder (default: runs/<env>-pretrain-<seed>-<time>)"""
    resume: flags.Run[bool] = False
    """go on from the checkpoint in --run-dir"""
    debug: flags.Run[bool] = False
    """show the traceback of an error"""

    def check(self) -> None:
        """Raise a ValueError for a name or number that makes no sense."""
        check_choices(self)
        check_numbers(self)
        if self.distillation and not self.teacher:
            raise ValueError("--distillation needs a --teacher")
        check_teachers(self.teacher, self.distillation)

    def steps(self, images: int) -> int:
        """Number of training steps; a ValueError where that is none."""
        epochs = EPOCHS if self.epochs is None else self.epochs
        steps = round(epochs * (images // self.batch_size))
        if steps < 1:
            raise ValueError(f"{epochs} epochs of {images} images in batches of {self.batch_size} is no step")
        return max(steps, FEWEST_STEPS) if self.epochs is None else steps


def learning_rate(step: int, steps: int, args: Args) -> float:
    """Linear warm-up, then the schedule."""
    progress = (step + 0.5) / steps
    if progress < args.warmup:
        return args.lr * progress / args.warmup
    if args.schedule == "cosine":
        return args.lr * 0.5 * (1 + math.cos(math.pi * (progress - args.warmup) / (1 - args.warmup)))
    return args.lr * (1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01)


def train_step(
    mdp: RoutingMDP, data: Images, step: int, args: Args, precision: str, teacher: nn.Module | None = None
) -> torch.Tensor:
    """Loss [B] of one batch with its augmentation and its dropped blocks; a teacher sees the same images."""
    device = data.device
    index = training_index(step, args.batch_size, len(data), args.seed).to(device)
    images, labels = data.training_batch(index, step_generator(args.seed, step, device))
    with torch.no_grad():
        targets = None if teacher is None else teacher(images)
    with autocast(precision, device):
        if args.survival == 1:
            logits = mdp.net(images)
            loss = F.cross_entropy(logits, labels, reduction="none")
        else:
            policy = StochasticDepth(args.survival, step_generator(args.seed, step, "cpu", Stream.ROUTES))
            episode = rollout(mdp, policy, images, labels)
            logits, loss = episode.logits, episode.loss
        return distilled(loss, logits, targets, args.distillation)


@cpu_by_default()
def train(args: Args) -> dict[str, Any]:
    """Train, evaluate on the test set once, write the run folder; returns result.json's content."""
    args.check()
    device = pick_device(args.device)
    resolve_precision(args.precision, device)
    dataset, reason = resolve_dataset(args.dataset, args.data_dir)
    say(f"dataset: {reason}")
    size = Architecture.of_depth(args.depth).image_size
    networks = {"train": (args.weights, *args.teacher), "val": (), "test": ()}  # a mismatch is said once
    data, val, test = (
        normalised(
            load_images(dataset, split, args.data_dir, args.download, size).to(device),
            args.mean, args.std, weights,
        )
        for split, weights in networks.items()
    )  # fmt: skip
    args.steps(len(data))
    torch.manual_seed(args.seed)
    net = ResNet(args.depth, len(data.classes), args.shortcut)
    if args.weights is not None:
        start = start_of(args, dataset, len(data.classes))
        if start.depth < net.depth:
            say(f"weights: a ResNet-{start.depth}, which grows to a ResNet-{net.depth}")
        grow(start, net)
    elif args.zero_init_residual:
        for block in net.blocks:
            torch.nn.init.zeros_(block.last_norm.weight)
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teachers = load_teachers(args.teacher, args.depth, len(data.classes), dataset, args.shortcut, device)
    env = f"SkipResNet{args.depth}-v0"
    run = Run(run_folder(args.run_dir, env, "pretrain", args.seed, args.resume), args, args.resume)
    wall_time = run_steps(net, teachers, run, data, val, args)
    if args.survival < 1:  # the statistics are those of networks with dropped blocks
        recalibrate(RoutingMDP(net), AlwaysExecute(), data, seed=args.seed)
    command = ["python", "-m", "agents.pretrain", *sys.argv[1:]]
    about = {
        "kind": "plain", "depth": args.depth, "shortcut": args.shortcut, "dataset": dataset,
        "num_classes": len(data.classes), "mean": data.mean, "std": data.std,
        "command": without_places(command), "after": after([args.weights, *args.teacher]),
    }  # fmt: skip
    save_weights(run.folder / "weights.safetensors", net, about)
    load_weights(run.folder / "weights.safetensors", net)  # report what the file does, rounding included
    with image_progress("test images") as show:
        final = evaluate(RoutingMDP(net), AlwaysExecute(), test, progress=show)
    result = {
        "env": env, "agent": "pretrain", "dataset": dataset, "split": "test", "n_images": len(test),
        "alpha": 0.0, "seed": args.seed, "wall_time_s": wall_time,
        "command": shlex.join(command), "precision": "fp32",
        "policies": [final.summary("all blocks")],
    }  # fmt: skip
    run.finish(result)
    low, high = final.accuracy_ci95
    say(f"test accuracy {final.accuracy:.2%} (95 %: {low:.2%} – {high:.2%}); wrote {run.folder}")
    return result


def start_of(args: Args, dataset: str, num_classes: int) -> ResNet:
    """The network of `--weights`, of any depth; its classifier is new where the number of classes differs."""
    weights = args.weights
    if weights == "auto":
        entry = catalogue.find_auto(args.depth, dataset, args.shortcut)
        if entry is None:
            raise WeightsError(f"no ResNet-{args.depth} on {dataset} is shipped to start from; name a file")
        weights = entry["name"]
    assert weights is not None, "the network is new"
    depth = args.depth if weights == "torchvision" else None
    return open_weights(
        weights, depth=depth, shortcut=args.shortcut, num_classes=num_classes, new_classifier=True, seed=None
    ).network


def settled(net: ResNet, data: Images, args: Args) -> RoutingMDP:
    """The network as it will be: with stochastic depth a copy, with statistics for all blocks executed.

    Those of training are of networks with dropped blocks, under which the whole one looks worse than it is.
    """
    if args.survival == 1:
        return RoutingMDP(net)
    mdp = RoutingMDP(copy.deepcopy(net))
    recalibrate(mdp, AlwaysExecute(), data, batches=ON_THE_WAY, seed=args.seed)
    return mdp


def run_steps(
    net: ResNet, teachers: Sequence[ResNet], run: Run, data: Images, val: Images, args: Args
) -> float:
    """Train from the run's checkpoint, or from nothing, to the last step; seconds spent."""
    mdp, optimizer = RoutingMDP(net), sgd(net, args.lr, args.momentum, args.weight_decay)
    precision = resolve_precision(args.precision, data.device)
    teacher = Teacher(teachers, precision) if teachers else None
    steps_per_epoch = len(data) // args.batch_size
    steps, first, before = args.steps(len(data)), 0, 0.0
    every = max(steps_per_epoch, min(steps // EPOCHS, 50))  # between validations; few images: short epochs
    state = run.load() if args.resume else None
    if state:
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        first, before = state["step"], state["elapsed"]
    begun = time.perf_counter()
    with progress_bar(total=steps, initial=first, desc="pretrain", unit="step") as bar:
        for step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, args)
            loss = train_step(mdp, data, step, args, precision, teacher).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update()
            done = step + 1
            check_loss(loss.item(), done, "pretrain")
            if done % every and done != steps:
                continue
            seconds = time.perf_counter() - begun
            speed = (done - first) * args.batch_size / seconds
            metrics = {"train/loss": loss.item(), "train/images_per_s": speed}
            with image_progress("val images") as show:
                shown = settled(net, data, args)
                greedy = evaluate(shown, AlwaysExecute(), val, precision=precision, progress=show)
            metrics |= {"val/accuracy": greedy.accuracy, "val/loss": greedy.loss.mean().item()}
            run.log(done, "pretrain", **metrics)
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            check_finite(state, done, "pretrain")
            run.save({**state, "elapsed": before + seconds})
            bar.set_postfix_str(f"loss {loss.item():.3f}, val {greedy.accuracy:.2%}, {speed:.0f} img/s")
    return before + time.perf_counter() - begun


if __name__ == "__main__":
    main_with_named_errors(Args, train)
