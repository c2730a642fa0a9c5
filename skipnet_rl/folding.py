"""A network that is only looked at: batch norm folded into the convolutions, weights in bf16 on request.

What the environments run, and what is exported. Folding changes results by rounding alone.
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
    """A copy for evaluation alone: batch norms folded, channels-last, without gradients.

    Args:
        net: the network, on its device.
        precision: of the convolutions: `"fp32"`, `"bf16"`, or `"auto"`: bf16 where the hardware has it.
            The classifier stays float32.

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
    """A copy in evaluation mode, without gradients, each batch norm part of the convolution before it."""
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for parent in list(module.modules()):
        before: tuple[str, nn.Module] = ("", parent)
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and isinstance(before[1], nn.Conv2d):
                setattr(parent, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(parent, name, nn.Identity())
            before = (name, child)
    return module
