"""Residual networks as one flat list of blocks, each with its transform and its shortcut.

CIFAR ResNets of depth 6n+2 and ImageNet ResNets: He et al., "Deep Residual Learning for Image
Recognition", CVPR 2016 (arXiv 1512.03385), section 4.2 and table 1. What SkipNet adds is a way to
address a block alone, so a block here is `relu(transform(x) + shortcut(x))` and both parts can be
called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skipnet_rl.errors import unknown_name
from skipnet_rl.precision import autocast

CIFAR_DEPTHS = (14, 20, 32, 38, 44, 56, 74, 110, 152)
IMAGENET_DEPTHS = (34, 50, 101)
SHORTCUTS = ("projection", "pad", "pool")

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def module_list(modules: Iterable[ModuleT]) -> Sequence[ModuleT]:
    """`nn.ModuleList`, for the type checker a sequence of the modules' own class."""
    return cast("Sequence[ModuleT]", nn.ModuleList(modules))


class ZeroPadShortcut(nn.Module):
    """Parameter-free shortcut where the shape changes: subsample, then surround with zero channels.

    New channels stand in equal parts before and after the old ones, as published CIFAR weights have it.
    `"pad"` takes every stride-th pixel (option A of He et al.); `"pool"` averages over the
    stride instead (SkipNet, section 3.1: "pooled to match the dimension").
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, average: bool) -> None:
        super().__init__()
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before
        self.stride = stride
        self.average = average

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C_out, H/stride, W/stride]."""
        step = self.stride  # of an odd size, the last row and column stand alone, as for a convolution
        x = F.avg_pool2d(x, step, ceil_mode=True) if self.average else x[:, :, ::step, ::step]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class ProjectionShortcut(nn.Sequential):
    """1×1 convolution and batch norm where the shape changes (option B of He et al.)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )


def make_shortcut(name: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The shortcut called `name`; the identity where input and output shapes agree."""
    if name not in SHORTCUTS:
        raise unknown_name("shortcut", name, SHORTCUTS)
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    if name == "projection":
        return ProjectionShortcut(in_channels, out_channels, stride)
    return ZeroPadShortcut(in_channels, out_channels, stride, average=name == "pool")


class Block(nn.Module):
    """Residual block F^i with two 3×3 convolutions.

    `transform` and `shortcut` are separate because a skipped image takes the shortcut alone
    (SkipNet, equation 1).
    """

    expansion = 1  # output channels per channel of the 3×3 convolution

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut(shortcut, in_channels, out_channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm before the addition; with a zero weight the block is its shortcut."""
        return self.bn2

    def transform(self, x: Tensor) -> Tensor:
        """The residual before the addition: [B, C_in, H, W] → [B, C_out, H/stride, W/stride], not aliased."""
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))

    def execute(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """The executed block, its shortcut given: [B, C_in, H, W] → [B, C_out, H/stride, W/stride]."""
        # in place: neither the convolution nor the batch norm needs its own output to go backward
        return F.relu(self.transform(x).add_(shortcut), inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """The executed block: [B, C_in, H, W] → [B, C_out, H/stride, W/stride]."""
        return self.execute(x, self.shortcut(x))


class Bottleneck(Block):
    """Residual block of 1×1, 3×3 and 1×1 convolutions; the stride is on the 3×3, as in torchvision."""

    expansion = 4

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        nn.Module.__init__(self)
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        width = out_channels // self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut(shortcut, in_channels, out_channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm before the addition; with a zero weight the block is its shortcut."""
        return self.bn3

    def transform(self, x: Tensor) -> Tensor:
        """The residual before the addition: [B, C_in, H, W] → [B, C_out, H/stride, W/stride], not aliased."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x)), inplace=True)))


@dataclass(frozen=True)
class Architecture:
    """What tells one ResNet from another.

    Attributes:
        image_size: side of the images it is made for.
        channels: of the 3×3 convolutions in each stage; the stem has as many as the first.
        blocks: number of blocks in each stage.
        block: kind of block.
        large_stem: 7×7 convolution and max pool, each of stride 2, in place of one 3×3 convolution.
    """

    image_size: int
    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    block: type[Block] = Block
    large_stem: bool = False

    @classmethod
    def of_depth(cls, depth: int) -> Architecture:
        """34, 50 and 101 are ImageNet's, every other 6n+2 is CIFAR's.

        Raises:
            ValueError: neither.
        """
        if depth in IMAGENET_DEPTHS:
            blocks = (3, 4, 23, 3) if depth == 101 else (3, 4, 6, 3)
            kind = Block if depth == 34 else Bottleneck
            return cls(224, (64, 128, 256, 512), blocks, kind, large_stem=True)
        if depth < 8 or (depth - 2) % 6:
            known = ", ".join(map(str, (*CIFAR_DEPTHS, *IMAGENET_DEPTHS)))
            raise ValueError(f"depth {depth} is not 6n+2 with n >= 1; use one of {known}")
        return cls(32, (16, 32, 64), ((depth - 2) // 6,) * 3)

    @property
    def depth(self) -> int:
        """Number of layers with weights, shortcuts not counted."""
        return 2 + sum(self.blocks) * (3 if self.block is Bottleneck else 2)


class ResNet(nn.Module):
    """A stem, all blocks in one list, a classifier.

    Args:
        depth: 34, 50, 101 (ImageNet, 224×224) or 6n+2 (CIFAR, 32×32: 14, 20, …, 110, 152), or an
            `Architecture` of your own.
        num_classes: K.
        shortcut: `"projection"`, `"pad"` or `"pool"`, used where the shape changes.

    Raises:
        ValueError: an unknown depth or shortcut.
    """

    def __init__(
        self, depth: int | Architecture, num_classes: int = 10, shortcut: str = "projection"
    ) -> None:
        super().__init__()
        plan = depth if isinstance(depth, Architecture) else Architecture.of_depth(depth)
        self.architecture, self.num_classes, self.shortcut = plan, num_classes, shortcut
        self.stem = _stem(plan)
        self.blocks = module_list(_blocks(plan, shortcut))
        self.fc = nn.Linear(plan.channels[-1] * plan.block.expansion, num_classes)
        self._initialise()

    @property
    def depth(self) -> int:
        """Number of layers with weights, shortcuts not counted."""
        return self.architecture.depth

    @property
    def image_size(self) -> int:
        """Side of the images it is made for."""
        return self.architecture.image_size

    @property
    def stages(self) -> list[int]:
        """The stage (0, 1, …) of each block."""
        return [stage for stage, count in enumerate(self.architecture.blocks) for _ in range(count)]

    def input_shapes(self) -> list[tuple[int, int, int]]:
        """(C, H, W) of each block's input for images of `image_size`."""
        size = -(-self.image_size // (4 if self.architecture.large_stem else 1))
        shapes = []
        for block in self.blocks:
            shapes.append((block.in_channels, size, size))
            size = (size - 1) // block.stride + 1
        return shapes

    def enter(self, images: Tensor) -> Tensor:
        """The stem, which takes images in any precision: [B, 3, H, W] → [B, C, H, W]."""
        return self.stem(images.to(next(self.stem.parameters()).dtype))

    def classify(self, x: Tensor) -> Tensor:
        """Logits of the last feature map, in the weights' precision: [B, C, H, W] → [B, K]."""
        dtype = self.fc.weight.dtype
        with autocast("fp32", x.device):  # bf16 logits would round the loss
            return self.fc(pool(x.to(dtype), dtype))

    def forward(self, images: Tensor) -> Tensor:
        """The plain network, every block executed: [B, 3, H, W] → logits [B, K]."""
        x = self.enter(images)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def pool(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Global average of each channel: [B, C, H, W] → [B, C] in `dtype`.

    Of a bf16 map the sum is accumulated in float32 and then rounded: converting the whole map first cost a
    sixth of an episode on a CPU. It is a sum over the channels-last view so that its gradient lies in memory
    as the other gradients of x do.
    """
    _, _, height, width = x.shape
    return x.permute(0, 2, 3, 1).sum(dim=(1, 2)).to(dtype) / (height * width)


def _stem(plan: Architecture) -> nn.Sequential:
    width = plan.channels[0]
    if plan.large_stem:
        conv = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _blocks(plan: Architecture, shortcut: str) -> Iterator[Block]:
    in_channels = plan.channels[0]
    for stage, (width, count) in enumerate(zip(plan.channels, plan.blocks, strict=True)):
        channels = width * plan.block.expansion
        for position in range(count):
            stride = 2 if stage > 0 and position == 0 else 1
            yield plan.block(in_channels, channels, stride, shortcut)
            in_channels = channels
