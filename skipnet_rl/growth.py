"""A deeper network that starts where a shallower one ended.

Net2DeeperNet: Chen, Goodfellow, Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016
(arXiv 1511.05641), section 2.4. In a residual network it needs no identity layers: a new block whose last
batch norm has zero weight and bias is its shortcut, and what enters it is not negative, so that its ReLU
changes nothing.
"""

from __future__ import annotations

import dataclasses

from torch import nn

from skipnet_rl.resnet import ResNet


def grow(small: ResNet, net: ResNet) -> None:
    """Fill a network so that it computes, to the bit, what a shallower one does.

    In each stage the blocks of the shallower network are spread evenly, the first in its place; those between
    them keep their random convolutions, from which they learn, and begin as their shortcuts.

    Args:
        small: the network to take the weights from.
        net: the new network to fill.

    Raises:
        ValueError: they differ in more than the number of blocks, or a stage would lose some.
    """
    old, new = small.architecture.blocks, net.architecture.blocks
    alike = (small.num_classes, small.shortcut) == (net.num_classes, net.shortcut)
    alike = alike and dataclasses.replace(small.architecture, blocks=new) == net.architecture
    if not alike or any(count > more for count, more in zip(old, new, strict=True)):
        raise ValueError(
            f"a ResNet-{small.depth} cannot grow to a ResNet-{net.depth}: expected the same classes, "
            "shortcut and channels, and no fewer blocks in any stage; start from a shallower one"
        )
    net.stem.load_state_dict(small.stem.state_dict())
    net.fc.load_state_dict(small.fc.state_dict())
    for block in net.blocks:
        nn.init.zeros_(block.last_norm.weight)
        nn.init.zeros_(block.last_norm.bias)
    begin = start = 0
    for count, more in zip(old, new, strict=True):
        for position in range(count):
            target = net.blocks[begin + position * more // count]
            target.load_state_dict(small.blocks[start + position].state_dict())
        begin, start = begin + more, start + count
