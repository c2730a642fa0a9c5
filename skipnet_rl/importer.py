"""Weights from elsewhere: files of `torch.save`, and torchvision's models. For their names see `foreign`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipnet_rl.errors import WeightsError, first_line
from skipnet_rl.foreign import has_blocks
from skipnet_rl.resnet import IMAGENET_DEPTHS

# keys under which training scripts keep the network, the first wins; averaged weights come after all others
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "resnet", "backbone", "module")
AVERAGED = re.compile(r"ema|averag")
NESTED = 4  # dicts in dicts


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a network in a file written by `torch.save`, without running any code in it.

    Args:
        path: a file with a state_dict, or with dicts around one, see `unwrap`.

    Raises:
        WeightsError: the file cannot be read that way, or holds something else.
    """
    try:
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes the unpickler may raise anything
        raise WeightsError(f"{path} is not a readable file of weights: {_reason(error)}") from error
    return unwrap(content, str(path))


def unwrap(content: Any, source: str) -> dict[str, Tensor]:
    """Find a network's state_dict in what a training script saved: alone, or in dicts beside other things.

    Raises:
        WeightsError: there is none; the message describes `source`.
    """
    found = list(_state_dicts(content, (), NESTED))
    found = [entry for entry in found if has_blocks(entry[1])] or found
    if not found:
        keys = f" with {', '.join(map(repr, list(content)[:5]))}" if isinstance(content, Mapping) else ""
        raise WeightsError(
            f"{source} holds a {type(content).__name__}{keys}; expected the tensors of a ResNet by name, as "
            "torch.save(network.state_dict(), path) writes them"
        )
    return min(found, key=lambda entry: _rank(entry[0]))[1]


def _state_dicts(
    content: Any, keys: tuple[str, ...], nested: int
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dict with named tensors, and the keys that lead to it."""
    if not isinstance(content, Mapping):
        return
    named = ((str(name), value) for name, value in content.items() if isinstance(name, str))
    if tensors := {name: value for name, value in named if isinstance(value, Tensor)}:
        yield keys, tensors
    for name, value in content.items() if nested else ():
        yield from _state_dicts(value, (*keys, str(name)), nested - 1)


def _rank(keys: tuple[str, ...]) -> tuple[bool, list[int]]:
    averaged = any(AVERAGED.search(key.lower()) for key in keys)
    return averaged, [WRAPPERS.index(key) if key in WRAPPERS else len(WRAPPERS) for key in keys]


def _harmless() -> list[Any]:
    """Harmless classes that checkpoints hold beside tensors: flags and NumPy's numbers."""
    number = np.float64(0)
    scalar = number.__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in "?bhilBHILefd"}
    return [argparse.Namespace, scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]


def _reason(error: Exception) -> str:
    """Why a file could not be read, and what to do if its content is at fault."""
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"it holds a {found[1]}, which could run code when it is read; expected only tensors, as "
            "torch.save(network.state_dict(), path) writes them"
        )
    return first_line(error)


def torchvision_weights(depth: int) -> dict[str, Tensor]:
    """torchvision's ImageNet weights (IMAGENET1K_V1), downloaded if they are not cached.

    Raises:
        WeightsError: there are none of this depth, or they cannot be fetched.
    """
    from torchvision.models import get_model

    if depth not in IMAGENET_DEPTHS:
        known = ", ".join(map(str, IMAGENET_DEPTHS))
        raise WeightsError(f"torchvision has no weights for a ResNet-{depth}; it has: {known}")
    try:
        return get_model(f"resnet{depth}", weights="IMAGENET1K_V1").state_dict()
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"torchvision's weights for ResNet-{depth} could not be fetched: {error}"
        ) from error
