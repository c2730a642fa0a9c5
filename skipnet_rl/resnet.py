"""Residual networks as one flat list of blocks, each with its transform and its shortcut.

CIFAR ResNets of depth 6n+2: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
section 4.2 (arXiv 1512.03385). What SkipNet adds is a way to address a block alone, so a block
here is `relu(transform(x) + shortcut(x))` and both parts can be called.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from skipnet_rl.errors import unknown_name
from skipnet_rl.precision import autocast

CIFAR_DEPTHS = (20, 32, 38, 44, 56, 74, 110, 152)
STAGE_CHANNELS = (16, 32, 64)
SHORTCUTS = ("projection", "pad", "pool")


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
        x = F.avg_pool2d(x, self.stride) if self.average else x[:, :, :: self.stride, :: self.stride]
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
    """Basic residual block F^i of two 3×3 convolutions.

    `transform` and `shortcut` are separate because a skipped image takes the shortcut alone
    (SkipNet, equation 1).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut(shortcut, in_channels, out_channels, stride)

    def transform(self, x: Tensor) -> Tensor:
        """The residual before the addition: [B, C_in, H, W] → [B, C_out, H/stride, W/stride]."""
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    def forward(self, x: Tensor) -> Tensor:
        """The executed block: [B, C_in, H, W] → [B, C_out, H/stride, W/stride]."""
        return F.relu(self.transform(x) + self.shortcut(x))


class ResNet(nn.Module):
    """CIFAR ResNet of depth 6n+2 for 32×32 images: a stem, 3n blocks in one list, a classifier.

    Args:
        depth: 6n+2 with n ≥ 1 (20, 32, …, 110, 152).
        num_classes: K.
        shortcut: `"projection"`, `"pad"` or `"pool"`, used where the shape changes.

    Raises:
        ValueError: a depth that is not 6n+2, or an unknown shortcut.
    """

    image_size = 32

    def __init__(self, depth: int, num_classes: int = 10, shortcut: str = "projection") -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(
                f"depth {depth} is not 6n+2 with n >= 1; use one of {', '.join(map(str, CIFAR_DEPTHS))}"
            )
        self.depth, self.num_classes, self.shortcut = depth, num_classes, shortcut
        width = STAGE_CHANNELS[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks: nn.ModuleList = nn.ModuleList(_blocks(depth, shortcut))
        self.fc = nn.Linear(STAGE_CHANNELS[-1], num_classes)
        self._initialise()

    @property
    def stages(self) -> list[int]:
        """The stage (0, 1, 2) of each block, for plots."""
        return [STAGE_CHANNELS.index(block.out_channels) for block in self.blocks]

    def classify(self, x: Tensor) -> Tensor:
        """Logits of the last feature map, in the weights' precision: [B, C, H, W] → [B, K]."""
        with autocast("fp32", x.device):  # bf16 logits would round the loss
            return self.fc(x.to(self.fc.weight.dtype).mean(dim=(2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        """The plain network, every block executed: [B, 3, 32, 32] → logits [B, K]."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _blocks(depth: int, shortcut: str) -> Iterator[Block]:
    in_channels = STAGE_CHANNELS[0]
    for stage, channels in enumerate(STAGE_CHANNELS):
        for position in range((depth - 2) // 6):
            stride = 2 if stage > 0 and position == 0 else 1
            yield Block(in_channels, channels, stride, shortcut)
            in_channels = channels
