"""Build environments from names and numbers: the entry points of the registered ids.

`env.spec` stays JSON: networks are given by name, since an object would be deep-copied into the spec, and
paths, enums, devices and NumPy's numbers are converted to text and numbers. Environments with the same
arguments share one network and one set of images, until a file behind them changes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from envs.ids import arguments_of, depth_of, is_chain, is_model
from envs.skipnet import SkipNetEnv
from envs.specs import plain
from envs.vector import SkipNetVectorEnv
from skipnet_rl.catalogue import sha256_of
from skipnet_rl.chain_problem import ChainProblem
from skipnet_rl.data import Images, load_images
from skipnet_rl.data.places import data_folder, fingerprint
from skipnet_rl.device import cpu_by_default
from skipnet_rl.errors import WeightsError, unknown_name
from skipnet_rl.model_problem import ModelProblem
from skipnet_rl.normalisation import normalised
from skipnet_rl.problem import Problem
from skipnet_rl.process import DecisionProcess

KINDS: dict[str, type[Problem]] = {"depth": Problem, "networks": ChainProblem, "model": ModelProblem}
INTERNAL = ("mdp", "images", "why")  # what the classes take and the registered ids do not
IDS = "an id such as SkipResNet20-v0 gives the depth; networks go with SkipChain-v0, a model with SkipNet-v0"


def make_env(**kwargs: Any) -> SkipNetEnv:
    """Entry point of `gymnasium.make("SkipResNet110-v0", …)` and `gymnasium.make("SkipChain14x110-v0", …)`.

    Args:
        **kwargs: those of `parts`, and obs_mode, augment, render_mode of `SkipNetEnv`.
    """
    check_names(kwargs, SkipNetEnv)
    mdp, images, rest = parts(**plain(kwargs))
    return SkipNetEnv(mdp, images, **rest)


def make_vector_env(num_envs: int = 1, **kwargs: Any) -> SkipNetVectorEnv:
    """Entry point of `gymnasium.make_vec("SkipResNet110-v0", num_envs=…, …)`.

    Args:
        num_envs: B.
        **kwargs: those of `parts`, and obs_mode, augment, autoreset_mode, array, render_mode of
            `SkipNetVectorEnv`.
    """
    check_names(kwargs, SkipNetVectorEnv)
    mdp, images, rest = parts(**plain(kwargs))
    return SkipNetVectorEnv(mdp, images, num_envs, **rest)


def check_names(kwargs: Mapping[str, Any], env: type) -> None:
    """Raise a ValueError for a keyword argument that neither the problem nor the environment class takes.

    It lists the known ones and the nearest.
    """
    kind = kind_of(kwargs)
    names = [each.name for each in fields(kind) if KINDS.get(each.name, kind) is kind]
    known = [each for each in (*names, "split", *inspect.signature(env).parameters) if each not in INTERNAL]
    for name in kwargs:
        if name not in known:
            raise unknown_name("argument", name, known)


def problem_of(id: str, **kwargs: Any) -> Problem:
    """Return the problem of a registered id and keyword arguments of `Problem`, as for `gymnasium.make`.

    Raises:
        gymnasium.error.Error: no such id.
        ValueError: the id of another kind of environment.
    """
    own = arguments_of(id)
    if not is_chain(id) and not is_model(id):
        depth_of(id)
    return kind_of(own)(**{**own, **kwargs})


def kind_of(kwargs: Mapping[str, Any]) -> type[Problem]:
    """Return the class of problem that keyword arguments describe; each registered id gives one of `KINDS`.

    Raises:
        ValueError: arguments of different kinds.
    """
    named = [name for name in KINDS if name in kwargs] or ["depth"]
    if len(named) > 1:
        came = " and ".join(f"{name} {kwargs[name]!r}" for name in named)
        raise ValueError(f"{came} do not go together; {IDS}")
    kind = KINDS[named[0]]
    others = {each.name for other in KINDS.values() for each in fields(other)}
    strange = sorted(kwargs.keys() & (others - {each.name for each in fields(kind)}))
    if strange:
        raise ValueError(f"{strange[0]} {kwargs[strange[0]]!r} does not go with {named[0]}; {IDS}")
    return kind


@cpu_by_default()
def parts(split: str = "train", **kwargs: Any) -> tuple[DecisionProcess, Images, dict[str, Any]]:
    """Return the decision process, the images and the keyword arguments that describe neither.

    Args:
        split: `"train"`, `"val"`, `"test"`, or a half of the validation images: `"calibration"` or
            `"selection"`.
        **kwargs: arguments of `Problem`, or of `ChainProblem` (with `networks`) or `ModelProblem` (with
            `model`). Warns if weights were trained with another mean and std.

    Raises:
        ValueError: arguments of different kinds, or that the problem refuses.
    """
    if not isinstance(split, str):
        raise ValueError(f"split is {split!r}; expected its name as text")
    kind = kind_of(kwargs)
    own = {each.name for each in fields(kind)}
    problem = kind(**{name: value for name, value in kwargs.items() if name in own}).resolve()
    folder = data_folder(problem.data_dir, problem.dataset, problem.download)
    held = fingerprint(problem.dataset, folder)
    place, size = str(problem.device), problem.image_size
    images = _images(problem.dataset, split, problem.data_dir, bool(problem.download), size, place, held)
    images = normalised(images, problem.mean, problem.std, problem.sources)
    alike = replace(
        problem, alpha=None, cost=None, mean=None, std=None, data_dir=None, download=False, why=("", "")
    )
    process = _process(alike, len(images.classes), tuple(map(_content, problem.sources)))
    mdp = process.with_payment(*problem.payment)
    return mdp, images, {name: value for name, value in kwargs.items() if name not in own}


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # what is cached serves callers in any mode
def _images(
    dataset: str, split: str, data_dir: str | None, download: bool, size: int, device: str, held: str
) -> Images:
    return load_images(dataset, split, data_dir, download, size).to(device)


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # what is cached serves callers in any mode
def _process(problem: Problem, num_classes: int, contents: tuple[str, ...]) -> DecisionProcess:
    """The process over a problem's folded network; `contents` of its files are only part of the key."""
    process = problem.mdp(problem.network(num_classes)).for_inference(problem.precision)
    _ = process.whole_macs  # counted once for all environments
    return process


def clear_cache() -> None:
    """Drop the cached networks and images."""
    _images.cache_clear()
    _process.cache_clear()


def _content(weights: str | Path | None) -> str:
    """Digest of a weights file, so that a changed file is read again; "" if there is none."""
    path = Path(weights or "auto").expanduser()
    try:
        return sha256_of(path) if path.is_file() else ""
    except (OSError, WeightsError):  # a part is missing: loading the file reports it
        return ""


# read by `gymnasium.make`, whose wrappers then add "human" and "rgb_array_list"
make_env.metadata = SkipNetEnv.metadata  # type: ignore[attr-defined]
