"""Subjects of an evaluation: policy, network and images, by a name, a file, a run folder or a .zip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from agents.common.finished import FinishedRun
from agents.common.flags import CommonArgs
from agents.common.sb3_policies import load_model
from agents.common.situation import environment_of
from envs.ids import depth_of, id_of, is_model
from skipnet_rl import catalogue
from skipnet_rl.data import Images, resolve_dataset
from skipnet_rl.errors import WeightsError
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.network import Network
from skipnet_rl.normalisation import normalised, stated, warn_of_others
from skipnet_rl.policies import AlwaysExecute, Policy
from skipnet_rl.problem import load_network
from skipnet_rl.progress import load_images
from skipnet_rl.resnet import ResNet
from skipnet_rl.stored import trained_on
from skipnet_rl.weights import open_weights

if TYPE_CHECKING:
    from agents.evaluate import Args


@dataclass(frozen=True)
class Subject:
    """A policy to evaluate, with its network and images, and the folder of its results.

    `precision` is the one that its stated figures were measured in, see `resolve_precision`.
    """

    name: str
    about: Mapping[str, Any]
    mdp: RoutingMDP
    policy: Policy
    images: Images
    out: Path | None
    precision: str = "fp32"

    @property
    def whole_flops(self) -> float:
        """FLOPs per image of its network with every block executed."""
        return 2 * self.mdp.whole_macs

    def on(self, device: torch.device, count: int | None = None) -> Subject:
        """Return a copy of the subject on a device, with its first images (or all) in the network's size."""
        for part in (self.mdp.net, self.policy):
            if isinstance(part, nn.Module):
                part.to(device)
        images = self.images if count is None else self.images.first(count)
        return replace(self, images=images.sized(self.mdp.net.image_size).to(device))


def restore(path: Path, args: Args) -> Subject:
    """Restore a policy from a run folder, a weights file, a shipped name or a .zip.

    Raises:
        FileNotFoundError, ValueError: nothing is there, or a .zip without `--trust-sb3`.
    """
    path = Path(path)
    if path.is_dir():
        return restore_run(path, args)
    if path.suffix == ".zip":
        return restore_zip(path, args)
    depth = depth_of(args.env or CommonArgs.env) if str(path) == "torchvision" else None
    opened = open_weights(str(path), depth=depth)
    header = opened.header
    dataset = header.get("dataset") if args.dataset == "auto" else args.dataset
    if dataset is None:
        more = (
            f", or evaluate its run's folder, {path.parent}" if (path.parent / "args.json").is_file() else ""
        )
        raise WeightsError(f"{path} does not name its data set; give one: --dataset cifar10{more}")
    split = split_of(args, header.get("learned_on") == "calibration")
    images = load(dataset, split, args, path, stated(header))
    if len(images.classes) != header["num_classes"]:
        raise WeightsError(
            f"{path} does not fit: it has {header['num_classes']} classes, {dataset} {len(images.classes)}"
        )
    plain = isinstance(opened.policy, AlwaysExecute)
    alpha = header.get("alpha", 0.0) if args.alpha is None else args.alpha
    mdp = opened.mdp(alpha)
    name = "all blocks" if plain else path.stem if path.is_file() else str(path)
    env = "SkipChain-v0" if header["kind"] == "chain" else env_of(mdp.net)
    about = {"env": env, "dataset": dataset, "alpha": mdp.alpha}
    return Subject(name, about, mdp, opened.policy, images, args.out)


def split_of(args: Args, on_calibration_images: bool) -> str:
    """Return the split to evaluate on: `--split`, else images that the policy did not learn on.

    Args:
        args: the flags.
        on_calibration_images: whether it learned on that half of the validation images.
    """
    if args.split:
        return args.split
    if not (args.biases or args.controls):
        return "test"
    return "selection" if on_calibration_images else "val"


def restore_run(path: Path, args: Args) -> Subject:
    """Restore the policy of a finished run."""
    run = FinishedRun.read(path)
    args = replace(args, data_dir=run.data_dir(args.data_dir))
    split = split_of(args, run.on_calibration_images)
    images = load(run.result["dataset"], split, args, path, run.statistics)
    mdp, policy = run.restore(len(images.classes), args.stage)
    about = {key: run.result[key] for key in ("env", "agent", "dataset", "alpha")}
    name = args.stage.upper() if args.stage else run.policy_name
    precision = "fp32" if run.result.get("precision") == "fp32" else "auto"  # the hardware may lack bf16
    return Subject(name, about, mdp, policy, images, args.out or path, precision)


def restore_zip(path: Path, args: Args) -> Subject:
    """Restore a stable-baselines3 model, if `--trust-sb3` vouches for it; see `load_model`."""
    if args.trust_sb3 is None:
        raise ValueError(
            f"{path} is a stable-baselines3 model, which can execute code when it is read; if you trust "
            "it, name its algorithm: --trust-sb3 ppo"
        )
    env = args.env or environment_of(args.weights, args.dataset, args.data_dir)
    dataset, _ = resolve_dataset(args.dataset, args.data_dir, trained_on([args.weights]))
    images = load(dataset, split_of(args, False), args, args.weights)
    alpha = 1.0 if args.alpha is None else args.alpha
    weights, classes = args.weights, len(images.classes)
    if is_model(env):
        mdp = open_weights(weights, num_classes=classes).mdp(alpha)
    else:
        depth = depth_of(env)
        if weights == "auto":  # as the agents do
            start = catalogue.find_auto(depth, dataset, "projection", catalogue.START, alpha)
            weights = start["name"] if start else weights
        mdp = RoutingMDP(load_network(weights, depth, classes, dataset, new_classifier=False), alpha)
    policy = load_model(path, args.trust_sb3, mdp.num_decisions).eval()
    about = {"env": env_of(mdp.net), "dataset": dataset, "alpha": mdp.alpha}
    return Subject(path.stem, about, mdp, policy, images, args.out)


def env_of(net: Network) -> str:
    """Return the id of the environment over a network."""
    return id_of(net.depth if isinstance(net, ResNet) else None)


def load(
    dataset: str, split: str, args: Args, weights: str | Path, theirs: tuple[Any, Any] | None = None
) -> Images:
    """Load a split, normalised as the flags say, or else with `theirs`, as in training."""
    images = load_images(dataset, split, args.data_dir)
    if theirs is None:
        return normalised(images, args.mean, args.std, (weights,))
    learned = normalised(images, *theirs)
    images = normalised(learned, args.mean, args.std)
    warn_of_others(weights, learned.statistics, images.statistics)
    return images
