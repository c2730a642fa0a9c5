"""Residual networks as one flat list of blocks, so that each block can be addressed by its number.

CIFAR ResNets of depth 6n+2 and ImageNet ResNets: He et al., "Deep Residual Learning for Image Recognition",
CVPR 2016 (arXiv 1512.03385), section 4.2 and table 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from skipnet_rl.blocks import Block, Bottleneck
from skipnet_rl.device import autocast
from skipnet_rl.layouts import pool
from skipnet_rl.modules import module_list
from skipnet_rl.network import Network

CIFAR_DEPTHS = (14, 20, 32, 38, 44, 56, 74, 110, 152)
IMAGENET_DEPTHS = (34, 50, 101)
SHORTCUT = "projection"  # of a new network, unless another kind is asked for


@dataclass(frozen=True)
class Architecture:
    """Sizes that define a ResNet.

    Attributes:
        image_size: side of the images, in pixels.
        channels: channels of the 3×3 convolutions in each stage; the stem has as many as the first stage.
        blocks: number of blocks in each stage.
        block: class of the blocks.
        large_stem: the stem is a 7×7 convolution and a max pool, both of stride 2, not one 3×3 convolution.
    """

    image_size: int
    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    block: type[Block] = Block
    large_stem: bool = False

    @classmethod
    def of_depth(cls, depth: int) -> Architecture:
        """The architecture of a depth: 34, 50 and 101 are ImageNet's, any other 6n+2 is CIFAR's.

        Raises:
            ValueError: a depth that is not an integer, or unknown.
        """
        if not isinstance(depth, Integral):
            raise ValueError(f"depth is {depth!r}; expected an integer, such as 110")
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


class ResNet(Network):
    """Stem, blocks in one list, classifier.

    Args:
        depth: 34, 50, 101 (ImageNet, 224×224) or 6n+2 (CIFAR, 32×32: 14, 20, …, 110, 152), or an
            `Architecture`.
        num_classes: K.
        shortcut: `"projection"`, `"pad"` or `"pool"`, where a block changes the shape.

    Raises:
        ValueError: an unknown depth or shortcut.
    """

    def __init__(self, depth: int | Architecture, num_classes: int = 10, shortcut: str = SHORTCUT) -> None:
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
        """Side of the images, in pixels."""
        return self.architecture.image_size

    @property
    def stages(self) -> list[int]:
        """The stage (0, 1, …) of each block."""
        return [stage for stage, count in enumerate(self.architecture.blocks) for _ in range(count)]

    @property
    def name(self) -> str:
        """`"ResNet-110"`."""
        return f"ResNet-{self.depth}"

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the classifier."""
        return self.fc.weight.dtype

    def about(self) -> dict[str, Any]:
        """Depth and shortcut."""
        return {"depth": self.depth, "shortcut": self.shortcut}

    def input_shapes(self) -> list[tuple[int, ...]]:
        """(C, H, W) of each block's input for images of `image_size`."""
        size = -(-self.image_size // (4 if self.architecture.large_stem else 1))
        shapes: list[tuple[int, ...]] = []
        for block in self.blocks:
            shapes.append((block.in_channels, size, size))
            size = (size - 1) // block.stride + 1
        return shapes

    def enter(self, images: Tensor) -> Tensor:
        """The stem; images of any precision: [B, 3, H, W] → [B, C, H, W]."""
        return self.stem(images.to(next(self.stem.parameters()).dtype))

    def classify(self, x: Tensor) -> Tensor:
        """Logits from the last feature map, in the classifier's precision: [B, C, H, W] → [B, K]."""
        dtype = self.fc.weight.dtype
        with autocast("fp32", x.device):  # bf16 logits would make the loss coarse
            return self.fc(pool(x.to(dtype), dtype))

    def to_bf16(self) -> None:
        """Convert stem and blocks to bf16."""
        self.stem.bfloat16()
        for block in self.blocks:
            block.bfloat16()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


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
