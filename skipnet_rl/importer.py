"""Weights from elsewhere: torchvision's ResNets and the common naming of CIFAR ResNets.

Both call their layers `conv1`, `bn1`, `layer{stage}.{i}.{conv1, bn1, …}` and `fc` (or `linear`),
with `downsample` (or `shortcut`) for a projection. Here all blocks are one list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skipnet_rl.errors import WeightsError
from skipnet_rl.resnet import IMAGENET_DEPTHS, ResNet

LAYER = re.compile(r"layer(\d+)\.(\d+)\.(.+)")
OUTSIDE = {"conv1": "stem.0", "bn1": "stem.1", "linear": "fc", "fc": "fc"}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file written by `torch.save`, without running any code in it.

    Args:
        path: a plain state_dict, or a dict that has it under the key `state_dict`.

    Raises:
        WeightsError: the file cannot be read that way, or holds something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes the unpickler raises whatever it stumbles over
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is not a readable file of weights: {reason}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not _is_state_dict(content):
        raise WeightsError(f"{path} holds a {type(content).__name__}; expected a state_dict of tensors")
    return dict(content)


def rename(state: Mapping[str, Tensor], net: ResNet) -> dict[str, Tensor]:
    """Names of the common convention as those of a network here; names of here stay as they are.

    A `module.` in front (of `nn.DataParallel`) is dropped.
    """
    counts = net.architecture.blocks
    first = [0, *accumulate(counts)]  # the first block of each stage
    renamed = {}
    for original, tensor in state.items():
        name = original.removeprefix("module.")
        if layer := LAYER.fullmatch(name):
            stage, position, rest = int(layer[1]) - 1, int(layer[2]), layer[3]
            if 0 <= stage < len(counts) and position < counts[stage]:  # else it does not fit, and says so
                rest = rest.replace("downsample.", "shortcut.")
                name = f"blocks.{first[stage] + position}.{rest}"
        else:
            head, _, rest = name.partition(".")
            name = f"{OUTSIDE[head]}.{rest}" if head in OUTSIDE else name
        renamed[name] = tensor
    return renamed


def torchvision_weights(net: ResNet) -> dict[str, Tensor]:
    """torchvision's ImageNet weights (IMAGENET1K_V1), downloaded where they are not cached.

    Raises:
        WeightsError: there are none for this network, or they cannot be fetched.
    """
    from torchvision.models import get_model

    if net.depth not in IMAGENET_DEPTHS or not net.architecture.large_stem:
        known = ", ".join(map(str, IMAGENET_DEPTHS))
        raise WeightsError(f"torchvision has no weights for this ResNet-{net.depth}; it has: {known}")
    try:
        return get_model(f"resnet{net.depth}", weights="IMAGENET1K_V1").state_dict()
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"torchvision's weights for ResNet-{net.depth} did not come: {error}") from error


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )
