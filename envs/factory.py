"""From strings to live objects: what the registered ids call.

`env.spec` stays JSON: a network as keyword would be deep-copied into it, and paths, enums, devices and
NumPy's numbers are taken as plain text and numbers. Environments with the same arguments share one network
and one set of images, as long as the files behind them stay as they are.
"""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from envs.ids import depth_of
from envs.skipnet import SkipNetEnv
from envs.specs import plain
from envs.vector import SkipNetVectorEnv
from skipnet_rl.catalogue import sha256_of
from skipnet_rl.data import Images, load_images
from skipnet_rl.data.places import data_folder, fingerprint
from skipnet_rl.device import cpu_by_default
from skipnet_rl.errors import WeightsError
from skipnet_rl.folding import for_inference
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.normalisation import normalised
from skipnet_rl.problem import Problem, load_network
from skipnet_rl.resnet import ResNet


def make_env(depth: int, **kwargs: Any) -> SkipNetEnv:
    """What `gymnasium.make("SkipResNet110-v0", …)` calls.

    Args:
        depth: from the id.
        **kwargs: of `parts`, and obs_mode, augment, render_mode of `SkipNetEnv`.
    """
    mdp, images, rest = parts(depth, **plain(kwargs))
    return SkipNetEnv(mdp, images, **rest)


def make_vector_env(depth: int, num_envs: int = 1, **kwargs: Any) -> SkipNetVectorEnv:
    """What `gymnasium.make_vec("SkipResNet110-v0", num_envs=…, …)` calls.

    Args:
        depth: from the id.
        num_envs: B.
        **kwargs: of `parts`, and obs_mode, augment, autoreset_mode, array, render_mode of
            `SkipNetVectorEnv`.
    """
    mdp, images, rest = parts(depth, **plain(kwargs))
    return SkipNetVectorEnv(mdp, images, num_envs, **rest)


def problem_of(id: str, **kwargs: Any) -> Problem:
    """The problem that a registered id and keyword arguments of `Problem` describe, as for `gymnasium.make`.

    Raises:
        gymnasium.error.Error: no such id.
        ValueError: the id of another kind of environment.
    """
    depth_of(id)
    return Problem(**{**gym.spec(id).kwargs, **kwargs})


@cpu_by_default()
def parts(depth: int, split: str = "train", **kwargs: Any) -> tuple[RoutingMDP, Images, dict[str, Any]]:
    """The decision process and the images that keyword arguments describe, and what is left of them.

    Args:
        depth: 34, 50 or 101 (for ImageNet), or 6n+2 (for CIFAR).
        split: `"train"`, `"val"` or `"test"`.
        **kwargs: of `Problem`; a warning where the weights were trained with another mean and std.
    """
    if not isinstance(split, str):
        raise ValueError(f"split is {split!r}; expected its name as text")
    own = {each.name for each in fields(Problem)}
    given = Problem(depth, **{name: value for name, value in kwargs.items() if name in own})
    problem = given.resolve()
    folder = data_folder(problem.data_dir, problem.dataset, problem.download)
    held = fingerprint(problem.dataset, folder)
    place, size = str(problem.device), problem.image_size
    weights = None if problem.weights is None else str(problem.weights)
    images = _images(problem.dataset, split, problem.data_dir, bool(problem.download), size, place, held)
    images = normalised(images, problem.mean, problem.std, (problem.weights,))
    net = _network(
        depth,
        len(images.classes),
        problem.dataset,
        problem.shortcut,
        weights,
        _content(weights),
        place,
        problem.precision,
    )
    return problem.mdp(net), images, {name: value for name, value in kwargs.items() if name not in own}


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # what is kept serves callers of every mode
def _images(
    dataset: str, split: str, data_dir: str | None, download: bool, size: int, device: str, held: str
) -> Images:
    return load_images(dataset, split, data_dir, download, size).to(device)


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # what is kept serves callers of every mode
def _network(
    depth: int,
    num_classes: int,
    dataset: str,
    shortcut: str,
    weights: str | None,
    content: str,
    device: str,
    precision: str,
) -> ResNet:
    return for_inference(load_network(weights, depth, num_classes, dataset, shortcut).to(device), precision)


def _content(weights: str | None) -> str:
    """Digest of a file of weights, so that another one of its name is read anew; "" where there is none."""
    path = Path(weights or "auto")
    try:
        return sha256_of(path) if path.is_file() else ""
    except (OSError, WeightsError):  # a part is missing: whoever loads it says so
        return ""


# `gymnasium.make` reads it: "human" and "rgb_array_list" then come from Gymnasium's wrappers
make_env.metadata = SkipNetEnv.metadata  # type: ignore[attr-defined]
