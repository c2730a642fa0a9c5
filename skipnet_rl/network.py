"""What a decision process needs to know of a network: a stem, blocks that can be skipped, a classifier.

`resnet.ResNet` is built from such blocks; `adapted.AdaptedNetwork` makes them from another project's model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from skipnet_rl.layouts import Layout


class ResidualBlock(Protocol):
    """A block that is either executed or bypassed through its shortcut."""

    @property
    def computing(self) -> tuple[str, ...]:
        """Names of the methods that run its layers."""
        ...

    @property
    def kind(self) -> Hashable:
        """Equal for blocks that differ only in their weights."""
        ...

    @property
    def layout(self) -> Layout:
        """Order of the dimensions of its input and output."""
        ...

    @property
    def in_features(self) -> int:
        """Width of the pooled feature of its input."""
        ...

    @property
    def out_features(self) -> int:
        """Width of the pooled feature of its output."""
        ...

    @property
    def prefix(self) -> Callable[[Tensor], Tensor] | None:
        """Layers that always run, before the block's decision; None if there are none."""
        ...

    def shortcut(self, x: Tensor) -> Tensor:
        """What a skipped image gets: x itself, or x fitted to the shape of the output."""
        ...

    def execute(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """The executed block, given its shortcut."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """The executed block."""
        ...


class Network(nn.Module):
    """Base of the networks whose forward pass is a decision process.

    Attributes:
        blocks: in the order in which they run; the first always runs, each other is a decision.
        num_classes: K.
    """

    blocks: Sequence[Any]
    num_classes: int

    @property
    @abstractmethod
    def name(self) -> str:
        """Name to display."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side of the images, in pixels."""

    @property
    @abstractmethod
    def stages(self) -> list[int]:
        """The stage (0, 1, …) of each block: blocks of one stage have outputs of one shape."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Floating-point type of the classifier."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Entries of a weights file's header from which the network can be built again."""

    @abstractmethod
    def input_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each block's input for one image of `image_size`, without the batch."""

    @abstractmethod
    def enter(self, images: Tensor) -> Tensor:
        """The layers before the first block; images of any precision: [B, 3, H, W] → features [B, …]."""

    @abstractmethod
    def classify(self, x: Tensor) -> Tensor:
        """Logits from the last features, in the classifier's precision: [B, …] → [B, K]."""

    @abstractmethod
    def to_bf16(self) -> None:
        """Convert everything but the classifier to bf16."""

    def forward(self, images: Tensor) -> Tensor:
        """The plain network, every block executed: [B, 3, H, W] → logits [B, K]."""
        x = self.enter(images)
        for block in self.blocks:
            if block.prefix is not None:
                x = block.prefix(x)
            x = block(x)
        return self.classify(x)
