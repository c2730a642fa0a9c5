"""Layouts of features: which dimension holds the channels, how to pool them, how to gather rows.

A feature is a map [B, C, H, W], a map with the channels last [B, H, W, C], or tokens [B, T, D]. Each layout
knows the pooled feature that gates and observations see, and how to bring the channels to the end, where
gathering and scattering rows of a batch is fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class Layout(ABC):
    """Order of a feature's dimensions."""

    name: str  # for messages
    dimensions = 4

    @abstractmethod
    def pool(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The pooled feature, [B, width] in `dtype`."""

    @abstractmethod
    def width(self, shape: Sequence[int]) -> int:
        """Width of the pooled feature, for a feature of that shape."""

    def inward(self, x: Tensor) -> Tensor:
        """A view with the channels at the end."""
        return x

    def outward(self, x: Tensor) -> Tensor:
        """The inverse of `inward`."""
        return x


class Maps(Layout):
    """Feature maps [B, C, H, W]; the pooled feature is the mean over the places."""

    name = "maps [B, C, H, W]"

    def pool(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Mean over the places: [B, C, H, W] → [B, C]."""
        return pool(x, dtype)

    def width(self, shape: Sequence[int]) -> int:
        """C."""
        return shape[1]

    def inward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, H, W, C]."""
        return x.permute(0, 2, 3, 1)

    def outward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] → [B, C, H, W]."""
        return x.permute(0, 3, 1, 2)


class ChannelsLast(Layout):
    """Feature maps [B, H, W, C], as in Swin; the pooled feature is the mean over the places."""

    name = "maps with the channels last [B, H, W, C]"

    def pool(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Mean over the places: [B, H, W, C] → [B, C]."""
        _, height, width, _ = x.shape
        return x.sum(dim=(1, 2)).to(dtype) / (height * width)

    def width(self, shape: Sequence[int]) -> int:
        """C."""
        return shape[-1]


class Tokens(Layout):
    """Tokens [B, T, D]; the first `leading` of them belong to no place in the image.

    The pooled feature is the mean over the places, of width D. A class token is put before that mean, which
    makes 2 D: what has been gathered about the class so far, and what the image still shows.

    Args:
        leading: number of tokens before those of the image: the class token, then others, such as those of a
            distilled DeiT and registers.
        class_token: whether the first of them is a class token.
    """

    name = "tokens [B, T, D]"
    dimensions = 3

    def __init__(self, leading: int = 0, class_token: bool = False) -> None:
        self.leading, self.class_token = leading, class_token

    def pool(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Class token, if there is one, and mean over the places: [B, T, D] → [B, 2 D] or [B, D]."""
        mean = x[:, self.leading :].sum(dim=1).to(dtype) / (x.shape[1] - self.leading)
        return torch.cat([x[:, 0].to(dtype), mean], dim=1) if self.class_token else mean

    def width(self, shape: Sequence[int]) -> int:
        """D or 2 D."""
        return shape[-1] * (2 if self.class_token else 1)


MAPS = Maps()


def pool(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Global average of each channel: [B, C, H, W] → [B, C] in `dtype`.

    A bf16 map is summed in float32 and the sum is rounded: converting the whole map first took a sixth of an
    episode on a CPU. The sum is over the channels-last view so that its gradient has the memory layout of the
    other gradients of x.
    """
    _, _, height, width = x.shape
    return x.permute(0, 2, 3, 1).sum(dim=(1, 2)).to(dtype) / (height * width)


def take(x: Tensor, index: Tensor, layout: Layout = MAPS) -> Tensor:
    """Rows `index` of x [B, …]; maps stay in channels-last memory, which `x[index]` would leave."""
    return layout.outward(layout.inward(x).index_select(0, index))


def put(x: Tensor, index: Tensor, rows: Tensor, inplace: bool, layout: Layout = MAPS) -> Tensor:
    """Write `rows` at `index` into x [B, …] or into a copy; maps stay in channels-last memory."""
    x, rows = layout.inward(x), layout.inward(rows)
    if not inplace:
        return layout.outward(x.index_copy(0, index, rows))
    if not (x.requires_grad or rows.requires_grad) and (_in_words(x) and _in_words(rows)):
        # the same bytes as 64-bit integers: on a CPU the cost of copying is per element
        x.view(torch.int64).index_copy_(0, index, rows.view(torch.int64))
    else:
        x.index_copy_(0, index, rows)
    return layout.outward(x)


def share_memory(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors share their memory, as a tensor and a view of it do."""
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def _in_words(x: Tensor) -> bool:
    """Whether each row of channels lies in memory as whole 64-bit words."""
    size = x.element_size()
    # a dimension of one place may have any stride and counts as contiguous
    return x.is_contiguous() and all(step * size % 8 == 0 for step in (x.shape[-1], *x.stride()[:-1]))
