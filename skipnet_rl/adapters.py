"""The block families that `adapt` knows: the shortcut that an image takes past a block of each class.

An adapter takes a block and returns its shortcut: a submodule of the block, `nn.Identity()` where a skipped
image stays as it is, or None for a block that always runs. Families are found by the name of the class, so
that no library is imported for the table; a subclass belongs to its base's family unless it has its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from skipnet_rl.errors import in_short
from skipnet_rl.layouts import MAPS, ChannelsLast, Layout, Tokens

Adapter = Callable[[nn.Module], nn.Module | None]
LAYOUTS: dict[str, Callable[[int, bool], Layout]] = {  # made from the arguments of `Tokens`
    "maps": lambda leading, class_token: MAPS,
    "channels-last": lambda leading, class_token: ChannelsLast(),
    "tokens": Tokens,
}


class Family(NamedTuple):
    """How the blocks of a class are skipped, and the layout of their features."""

    adapter: Adapter
    layout: str


def identity(block: nn.Module) -> nn.Module:
    """A skipped image stays as it is; `adapt` lets blocks that change the shape always run."""
    return nn.Identity()


def projection(name: str) -> Adapter:
    """Make the adapter whose shortcut is the submodule of that name, or the identity if there is none."""

    def shortcut(block: nn.Module) -> nn.Module:
        """The submodule, or the identity."""
        return getattr(block, name, None) or nn.Identity()

    return shortcut


def residual_if(flag: str) -> Adapter:
    """Make the adapter whose shortcut is the identity if that flag of the block is set, else None."""

    def shortcut(block: nn.Module) -> nn.Module | None:
        """The identity, or None."""
        return nn.Identity() if getattr(block, flag) else None

    return shortcut


TABLE: dict[str, Family] = {
    "torchvision.models.resnet.BasicBlock": Family(projection("downsample"), "maps"),
    "torchvision.models.resnet.Bottleneck": Family(projection("downsample"), "maps"),
    "torchvision.models.regnet.ResBottleneckBlock": Family(projection("proj"), "maps"),
    "torchvision.models.mobilenetv2.InvertedResidual": Family(residual_if("use_res_connect"), "maps"),
    "torchvision.models.mobilenetv3.InvertedResidual": Family(residual_if("use_res_connect"), "maps"),
    "torchvision.models.efficientnet.MBConv": Family(residual_if("use_res_connect"), "maps"),
    "torchvision.models.efficientnet.FusedMBConv": Family(residual_if("use_res_connect"), "maps"),
    "torchvision.models.mnasnet._InvertedResidual": Family(residual_if("apply_residual"), "maps"),
    "torchvision.models.convnext.CNBlock": Family(identity, "maps"),
    "torchvision.models.vision_transformer.EncoderBlock": Family(identity, "tokens"),
    "torchvision.models.swin_transformer.SwinTransformerBlock": Family(identity, "channels-last"),
    "torchvision.models.maxvit.MBConv": Family(projection("proj"), "maps"),
    "torchvision.models.maxvit.PartitionAttentionLayer": Family(identity, "maps"),
    "timm.models.resnet.BasicBlock": Family(projection("downsample"), "maps"),
    "timm.models.resnet.Bottleneck": Family(projection("downsample"), "maps"),
    "timm.models.regnet.Bottleneck": Family(projection("downsample"), "maps"),
    "timm.models.convnext.ConvNeXtBlock": Family(projection("shortcut"), "maps"),
    "timm.models.vision_transformer.Block": Family(identity, "tokens"),
    "timm.models.swin_transformer.SwinTransformerBlock": Family(identity, "channels-last"),
    "timm.models.swin_transformer_v2.SwinTransformerV2Block": Family(identity, "channels-last"),
    "timm.models.mlp_mixer.MixerBlock": Family(identity, "tokens"),
    "timm.models.mlp_mixer.ResBlock": Family(identity, "tokens"),
    "timm.models.mlp_mixer.SpatialGatingBlock": Family(identity, "tokens"),
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv": Family(residual_if("has_skip"), "maps"),
    "timm.models._efficientnet_blocks.InvertedResidual": Family(residual_if("has_skip"), "maps"),
    "timm.models._efficientnet_blocks.EdgeResidual": Family(residual_if("has_skip"), "maps"),
}


def register(block: type[nn.Module], adapter: Adapter = identity, layout: str = "maps") -> None:
    """Add a class of blocks to the table, or replace its entry.

    Args:
        block: the class; its `forward` takes one feature and returns one.
        adapter: from a block to its shortcut, see the module.
        layout: `"maps"` [B, C, H, W], `"channels-last"` [B, H, W, C] or `"tokens"` [B, T, D].

    Raises:
        TypeError: `block` is not a class of modules, or `adapter` cannot be called.
        ValueError: an unknown layout.
    """
    if not (isinstance(block, type) and issubclass(block, nn.Module)):
        raise TypeError(
            f"block is {in_short(block)}; expected the class of the blocks, as in register(BlockClass)"
        )
    if not callable(adapter):
        raise TypeError(
            f"adapter is {adapter!r}; expected a function from a block to its shortcut; leave it out for the "
            "identity"
        )
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    TABLE[qualified(block)] = Family(adapter, layout)


def family_of(module: nn.Module) -> Family | None:
    """The family of a block; None for any other module."""
    names = (qualified(kind) for kind in type(module).__mro__)
    return next((TABLE[name] for name in names if name in TABLE), None)


def qualified(kind: type) -> str:
    """Module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"
