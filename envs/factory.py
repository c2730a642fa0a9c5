"""From strings to live objects: what the registered ids call.

`env.spec` stays JSON: a network as keyword would be deep-copied into it, and paths, enums, devices and
NumPy's numbers are taken as plain text and numbers. Environments with the same arguments share one network
and one set of images, as long as the files behind them stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from envs.skipnet import SkipNetEnv
from envs.specs import plain
from envs.vector import SkipNetVectorEnv
from skipnet_rl.data import Images, load_images, resolve_dataset
from skipnet_rl.data.places import data_folder, fingerprint
from skipnet_rl.device import cpu_by_default, pick_device, resolve_precision
from skipnet_rl.errors import WeightsError
from skipnet_rl.folding import for_inference
from skipnet_rl.mdp import ALPHA, RoutingMDP
from skipnet_rl.normalisation import check_statistics, normalised
from skipnet_rl.resnet import Architecture, ResNet
from skipnet_rl.weights import build_backbone, sha256_of, weights_name


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


@cpu_by_default()
def parts(
    depth: int,
    dataset: str = "auto",
    data_dir: str | None = None,
    download: bool = False,
    split: str = "train",
    alpha: float = ALPHA,
    cost: str = "blocks",
    shortcut: str = "projection",
    weights: str | None = "auto",
    device: str | torch.device | None = "auto",
    precision: str = "fp32",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **rest: Any,
) -> tuple[RoutingMDP, Images, dict[str, Any]]:
    """The decision process and the images that keyword arguments describe, and what is left of them.

    Args:
        depth: 34, 50 or 101 (for ImageNet), or 6n+2 (for CIFAR).
        dataset: `"auto"`, or one of `skipnet_rl.data.DATASETS`.
        data_dir: folder of the data set's official files (else $SKIPNET_DATA, else ./data).
        download: fetch missing files through torchvision.
        split: `"train"`, `"val"` or `"test"`.
        alpha: weight of the compute saving.
        cost: `"blocks"` or `"flops"`.
        shortcut: `"projection"`, `"pad"` or `"pool"`.
        weights: path of a file, name of a shipped one, `"auto"` (the shipped one that fits, else untrained
            with a warning), `"torchvision"` (its ImageNet weights) or None (untrained).
        device: `"auto"` or None (a GPU where there is one), `"cpu"`, `"cuda"`, `"cuda:1"` or a
            `torch.device`.
        precision: of the convolutions: `"fp32"`, `"bf16"`, or `"auto"` (bf16 where the hardware has it).
        mean, std: three numbers each, of pixel values in 0 … 1, that images are normalised with (default: the
            data set's own); a warning where the weights were trained with others.
    """
    for name, value in (("split", split), ("shortcut", shortcut)):
        if not isinstance(value, str):
            raise ValueError(f"{name} is {value!r}; expected its name as text")
    check_statistics(mean, std)
    weights = None if weights is None else weights_name(weights)
    dataset, _ = resolve_dataset(dataset, data_dir)
    place = str(pick_device(device))
    size = Architecture.of_depth(depth).image_size
    held = fingerprint(dataset, data_folder(data_dir, dataset, download))
    images = _images(dataset, split, data_dir, bool(download), size, place, held)
    images = normalised(images, mean, std, (weights,), depth, shortcut)
    precision = resolve_precision(precision, place)
    net = _network(
        depth, len(images.classes), dataset, shortcut, weights, _content(weights), place, precision
    )
    return RoutingMDP(net, alpha, cost), images, rest


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
    return for_inference(build_backbone(depth, num_classes, dataset, shortcut, weights).to(device), precision)


def _content(weights: str | None) -> str:
    """Digest of a file of weights, so that another one of its name is read anew; "" where there is none."""
    path = Path(weights or "auto")
    try:
        return sha256_of(path) if path.is_file() else ""
    except (OSError, WeightsError):  # a part is missing: whoever loads it says so
        return ""


# `gymnasium.make` reads it: "human" and "rgb_array_list" then come from Gymnasium's wrappers
make_env.metadata = SkipNetEnv.metadata  # type: ignore[attr-defined]
