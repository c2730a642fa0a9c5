"""Copies of a network for inference: batch norm folded into the convolutions, optionally in bf16.

Evaluation, environments and export use such copies. Folding changes results only by rounding.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from skipnet_rl.device import resolve_precision
from skipnet_rl.resnet import ResNet

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def for_inference(net: ResNet, precision: str = "fp32") -> ResNet:
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
        net.stem.bfloat16()
        for block in net.blocks:
            block.bfloat16()
    return net.to(memory_format=torch.channels_last)


def fold_batchnorm(module: ModuleT) -> ModuleT:
    """Copy a module in evaluation mode, without gradients, each batch norm folded into its convolution."""
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for parent in list(module.modules()):
        before: tuple[str, nn.Module] = ("", parent)
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and isinstance(before[1], nn.Conv2d):
                setattr(parent, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(parent, name, nn.Identity())
            before = (name, child)
    return module
