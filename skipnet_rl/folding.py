"""Copies of a network for inference: batch norm folded into the convolutions, optionally in bf16.

Evaluation, environments and export use such copies. Folding changes results only by rounding.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from skipnet_rl.adapted import AdaptedNetwork
from skipnet_rl.blocks import Block
from skipnet_rl.device import resolve_precision
from skipnet_rl.network import Network

ModuleT = TypeVar("ModuleT", bound=nn.Module)
NetworkT = TypeVar("NetworkT", bound=Network)


def for_inference(net: NetworkT, precision: str = "fp32") -> NetworkT:
    """Copy a network for inference: batch norms folded, channels-last memory, no gradients.

    Args:
        net: the network, on its device.
        precision: precision of the convolutions: `"fp32"`, `"bf16"`, or `"auto"` (bf16 where the hardware
            supports it). The classifier stays float32.

    Raises:
        ValueError: an unknown precision.
    """
    net = fold_batchnorm(net)
    if resolve_precision(precision, next(net.parameters()).device) == "bf16":
        net.to_bf16()
    return net.to(memory_format=torch.channels_last)


def fold_batchnorm(module: ModuleT) -> ModuleT:
    """Copy a module in evaluation mode, without gradients, batch norms folded into their convolutions.

    That is done where the batch norm alone is known to read the convolution: in this project's blocks, in
    `nn.Sequential` and in `AdaptedNetwork`. Other batch norms stay.
    """
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for conv, norm in module.pairs if isinstance(module, AdaptedNetwork) else _in_order(module):
        pair: Any = module.get_submodule(conv), module.get_submodule(norm)
        module.set_submodule(conv, fuse_conv_bn_eval(*pair))
        module.set_submodule(norm, nn.Identity())
    return module


def _in_order(module: nn.Module) -> list[tuple[str, str]]:
    """Names of each convolution and the batch norm right behind it, where they are called in that order."""
    pairs = []
    for path, parent in module.named_modules():
        if not isinstance(parent, (nn.Sequential, Block)):  # others may call their layers in any order
            continue
        children = [(f"{path}.{name}".lstrip("."), child) for name, child in parent.named_children()]
        for (before, conv), (name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                pairs.append((before, name))
    return pairs
