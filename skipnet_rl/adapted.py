"""Models of other projects as networks whose blocks can be skipped one by one.

The forward pass of the model is cut before and after each block (`tracing`), so that with every block
executed the network calls the same layers in the same order as the model, and gives its logits bit for bit.
Layers between two blocks (a downsampling, a block that changes the shape and has no shortcut) always run,
before the decision about the next block.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from skipnet_rl.device import autocast
from skipnet_rl.layouts import Layout
from skipnet_rl.network import Network
from skipnet_rl.tracing import Part


class AdaptedBlock:
    """A residual block of a model; it holds the model's own module.

    Attributes:
        model: the block as it is in the model.
        bypass: the submodule that a skipped image takes; None if the image stays as it is.
        layout: order of the dimensions of its input and output.
        in_shape, out_shape: shapes for one image, [1, …].
        prefix: see `network.ResidualBlock`.
    """

    def __init__(
        self,
        model: nn.Module,
        bypass: nn.Module | None,
        rest: Part | None,
        layout: Layout,
        shapes: tuple[Sequence[int], Sequence[int]],
    ) -> None:
        self.model, self.bypass, self._rest, self.layout = model, bypass, rest, layout
        self.in_shape, self.out_shape = shapes
        self.prefix: Between | None = None

    @property
    def computing(self) -> tuple[str, ...]:
        """See `network.ResidualBlock`."""
        return ("execute",) if self._rest is None else ("execute", "forward")

    @property
    def kind(self) -> Hashable:
        """Its layers as text, its input's shape, and its code behind a shortcut, which no other block has."""
        return repr(self.model), tuple(self.in_shape), self._rest

    @property
    def in_features(self) -> int:
        """Width of the pooled feature of its input."""
        return self.layout.width(self.in_shape)

    @property
    def out_features(self) -> int:
        """Width of the pooled feature of its output."""
        return self.layout.width(self.out_shape)

    def shortcut(self, x: Tensor) -> Tensor:
        """What a skipped image gets."""
        return x if self.bypass is None else self.bypass(x)

    def execute(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """The executed block, given its shortcut."""
        return self.model(x) if self._rest is None else self._rest(self, x, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """The executed block, as the model has it."""
        return self.model(x)

    def __call__(self, x: Tensor) -> Tensor:
        """The executed block."""
        return self.execute(x, x) if self._rest is None else self.forward(x)


class Between:
    """A part of a network as a function of one feature."""

    def __init__(self, owner: AdaptedNetwork, part: Part) -> None:
        self.owner, self.part = owner, part

    def __call__(self, x: Tensor) -> Tensor:
        """Run the part with the network's layers."""
        return self.part(self.owner, x)


class AdaptedNetwork(Network):
    """Another project's model, cut into stem, blocks and classifier; `adapt` makes it.

    It has the model's parameters, under the prefix `model.`, so training it trains the model. It can be
    pickled.

    Attributes:
        model: the model.
        pairs: names of each convolution and of the batch norm that alone reads its output.
        origin: how to build the model again, see `models.ModelName.about`; {} for a model of unknown origin.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Iterable[AdaptedBlock],
        parts: Sequence[Part | None],
        image_size: int,
        num_classes: int,
        pairs: Sequence[tuple[str, str]],
    ) -> None:
        super().__init__()
        self.model = model
        self.blocks = list(blocks)
        stem, *between, head = parts
        assert head is not None, "a classifier has layers after its last block"
        self._stem, self._head = stem, head
        for block, part in zip(self.blocks[1:], between, strict=True):
            block.prefix = Between(self, part) if part else None
        self._image_size, self.num_classes, self.pairs = image_size, num_classes, pairs
        self.origin: dict[str, Any] = {}
        self.training = model.training  # only this module's flag: parts of the model may be frozen

    @property
    def name(self) -> str:
        """The name that the model was built from, else the name of its class."""
        return self.origin.get("model", type(self.model).__name__)

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        return self._image_size

    @property
    def stages(self) -> list[int]:
        """The stage of each block: consecutive blocks with outputs of one shape are a stage."""
        shapes = [block.out_shape for block in self.blocks]
        stages = [0]
        for before, after in zip(shapes, shapes[1:], strict=False):
            stages.append(stages[-1] + (before != after))
        return stages

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the classifier."""
        return _precision([*reversed(self._tensors(self._head)), *self.parameters()])

    def about(self) -> dict[str, Any]:
        """How to build the model again, see `origin`."""
        return dict(self.origin)

    def input_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each block's input for one image of `image_size`, without the batch."""
        return [tuple(block.in_shape[1:]) for block in self.blocks]

    def enter(self, images: Tensor) -> Tensor:
        """The layers before the first block: [B, 3, H, W] → features [B, …]."""
        stem = [] if self._stem is None else self._tensors(self._stem)
        images = images.to(_precision([*stem, *self.blocks[0].model.parameters(), *self.parameters()]))
        return images if self._stem is None else self._stem(self, images)

    def classify(self, x: Tensor) -> Tensor:
        """The layers after the last block, in the classifier's precision: [B, …] → logits [B, K]."""
        with autocast("fp32", x.device):  # bf16 logits would make the loss coarse
            return self._head(self, x.to(self.dtype))

    def to_bf16(self) -> None:
        """Convert everything but the layers after the last block to bf16."""
        own = set(self._tensors(self._head))
        for tensor in [*self.parameters(), *self.buffers()]:
            if tensor not in own and tensor.is_floating_point():
                tensor.data = tensor.data.bfloat16()

    def _tensors(self, part: Part) -> list[Tensor]:
        """Parameters and buffers that a part of the network computes with, in the order of their use."""
        found: list[Tensor] = []
        for name in part.layers:
            layer: Any = reduce(getattr, name.split("."), self)
            found += [layer] if isinstance(layer, Tensor) else [*layer.parameters(), *layer.buffers()]
        return found


def _precision(tensors: Iterable[Tensor]) -> torch.dtype:
    """Type of the first tensor of floating-point numbers."""
    return next(each.dtype for each in tensors if each.is_floating_point())
