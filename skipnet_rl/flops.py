"""Count multiply-accumulates of blocks, shortcuts, gates and routes.

Convention: FLOPs = 2 × MACs of convolutions and linear layers. Batch norm, ReLU and pooling are not counted,
as in most published tables. `torch.utils.flop_counter` counts on the `meta` device, so nothing is computed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from skipnet_rl.blocks import Block
from skipnet_rl.network import Network, ResidualBlock

ModuleT = TypeVar("ModuleT", bound=nn.Module)
ResultT = TypeVar("ResultT")
Shape = Sequence[int]


def _recurrence(inputs: Shape, weights: Sequence[Shape]) -> int:
    """FLOPs of a fused recurrent layer on inputs [T, B, C]; biases are not counted."""
    return 2 * math.prod(inputs[:2]) * sum(math.prod(shape) for shape in weights if len(shape) == 2)


FUSED = {  # fused layers that PyTorch's counter does not know
    torch.ops.aten.mkldnn_rnn_layer: lambda inputs, w_ih, w_hh, *_, **__: _recurrence(inputs, (w_ih, w_hh)),
    torch.ops.aten._cudnn_rnn: lambda inputs, weights, *_, **__: _recurrence(inputs, weights),
}


def count_macs(function: Callable[..., ResultT], *args: Any) -> tuple[int, ResultT]:
    """Call a function; return the MACs it ran and its result."""
    with FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
        result = function(*args)
    return counter.get_total_flops() // 2, result


@dataclass(frozen=True)
class NetworkMacs:
    """MACs per image of a network's parts; `transforms` and `shortcuts` have one entry per decision."""

    fixed: int  # stem, first block, layers between blocks, classifier: always run
    transforms: tuple[int, ...]
    shortcuts: tuple[int, ...]  # run whether or not the block is executed

    @property
    def total(self) -> int:
        """The plain network, every block executed."""
        return self.fixed + sum(self.transforms) + sum(self.shortcuts)

    def of_routes(self, routes: Tensor, gates: int = 0) -> Tensor:
        """MACs per image: routes [B, N] of 0/1, MACs of all gates together → [B] float64."""
        transforms = torch.tensor(self.transforms, dtype=torch.float64, device="cpu")
        executed = routes.double() @ transforms.to(routes.device, non_blocking=True)
        return executed + self.fixed + sum(self.shortcuts) + gates


def network_macs(net: Network) -> NetworkMacs:
    """Count the MACs of a network's parts for one image."""
    meta = on_meta(net)
    image = torch.empty(1, 3, meta.image_size, meta.image_size, device="meta")
    stem, x = count_macs(meta.enter, image)
    shortcut, transform, x = _block_macs(meta.blocks[0], x)
    fixed, transforms, shortcuts = stem + shortcut + transform, [], []
    for block in meta.blocks[1:]:
        if block.prefix is not None:
            macs, x = count_macs(block.prefix, x)
            fixed += macs
        shortcut, transform, x = _block_macs(block, x)
        shortcuts.append(shortcut)
        transforms.append(transform)
    classifier, _ = count_macs(meta.classify, x)
    return NetworkMacs(fixed + classifier, tuple(transforms), tuple(shortcuts))


COUNTED: dict[Any, tuple[int, int, torch.Size]] = {}  # this project's blocks, by kind and input


def _block_macs(block: ResidualBlock, x: Tensor) -> tuple[int, int, Tensor]:
    """MACs of a block's shortcut and of its transform, and its output."""
    known = (block.kind, x.shape) if isinstance(block, Block) else None  # other projects' kinds may hide more
    if known not in COUNTED:
        shortcut, skipped = count_macs(block.shortcut, x)
        transform, output = count_macs(block.execute, x, skipped)
        if known is None:
            return shortcut, transform, output
        COUNTED[known] = shortcut, transform, output.shape
    shortcut, transform, shape = COUNTED[known]
    return shortcut, transform, x.new_empty(shape)


def compute_blocks(routes: Tensor) -> Tensor:
    """Share of all blocks that ran, the first included: [B, N] → [B] float64, (executed + 1) / (N + 1)."""
    return (routes.double().sum(dim=1) + 1) / (routes.shape[1] + 1)


def on_meta(module: ModuleT) -> ModuleT:
    """A shape-only copy in evaluation mode."""
    return copy.deepcopy(module).to("meta").eval()
