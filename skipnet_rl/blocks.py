"""Residual blocks F^i whose transform and shortcut can be run separately.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385), figures 2 and 5. An
executed block is `relu(transform(x) + shortcut(x))`; a skipped image takes only the shortcut (SkipNet,
equation 1).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from skipnet_rl.errors import unknown_name
from skipnet_rl.layouts import MAPS

SHORTCUTS = ("projection", "pad", "pool")


class ZeroPadShortcut(nn.Module):
    """Parameter-free shortcut where the shape changes: subsample, then add channels of zeros.

    Half of the new channels come before the old ones and half after, as in published CIFAR weights. `"pad"`
    takes every stride-th pixel (option A of He et al.); `"pool"` averages over the stride (SkipNet,
    section 3).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, average: bool) -> None:
        super().__init__()
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before
        self.stride = stride
        self.average = average

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C_out, H/stride, W/stride]."""
        step = self.stride  # where the size is odd, the last row and column count, as in a convolution
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
    """Make the shortcut called `name`; the identity where input and output have the same shape."""
    if name not in SHORTCUTS:
        raise unknown_name("shortcut", name, SHORTCUTS)
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    if name == "projection":
        return ProjectionShortcut(in_channels, out_channels, stride)
    return ZeroPadShortcut(in_channels, out_channels, stride, average=name == "pool")


class Block(nn.Module):
    """Residual block F^i with two 3×3 convolutions."""

    expansion = 1  # output channels per channel of the 3×3 convolution
    layout = MAPS
    prefix = None  # nothing between the blocks
    computing = ("execute",)

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut(shortcut, in_channels, out_channels, stride)

    @property
    def kind(self) -> str:
        """Its layers as text."""
        return repr(self)

    @property
    def in_features(self) -> int:
        """Width of the pooled feature of its input."""
        return self.in_channels

    @property
    def out_features(self) -> int:
        """Width of the pooled feature of its output."""
        return self.out_channels

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm before the addition; if its weight and bias are zero, the block is its shortcut."""
        return self.bn2

    def transform(self, x: Tensor) -> Tensor:
        """The residual branch, in new memory: [B, C_in, H, W] → [B, C_out, H/stride, W/stride]."""
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))

    def execute(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """The executed block, given its shortcut: [B, C_in, H, W] → [B, C_out, H/stride, W/stride]."""
        # in place: the backward passes of convolution and batch norm do not need their outputs
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
        """The batch norm before the addition; if its weight and bias are zero, the block is its shortcut."""
        return self.bn3

    def transform(self, x: Tensor) -> Tensor:
        """The residual branch, in new memory: [B, C_in, H, W] → [B, C_out, H/stride, W/stride]."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x)), inplace=True)))
