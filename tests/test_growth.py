"""A grown network predicts what the shallower one does, and its new blocks learn."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from skipnet_rl.blocks import SHORTCUTS, Bottleneck
from skipnet_rl.growth import grow
from skipnet_rl.resnet import Architecture, ResNet


def trained(net: ResNet) -> ResNet:
    """Statistics, weights and biases of batch norms as training leaves them: none is zero or one."""
    for name, value in (*net.named_parameters(), *net.named_buffers()):
        if value.is_floating_point() and value.ndim == 1:
            value.data.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else value.data.normal_()
    return net


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize(("depth", "deeper"), [(8, 14), (20, 26), (14, 44), (14, 14)])
def test_a_grown_network_predicts_the_same(depth, deeper, shortcut, training):
    torch.manual_seed(0)
    small, net = trained(ResNet(depth, 5, shortcut)), trained(ResNet(deeper, 5, shortcut))
    grow(small, net)
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(small.train(training)(images), net.train(training)(images))


def test_new_blocks_lie_between_the_old_ones_and_learn():
    torch.manual_seed(0)
    small, net = trained(ResNet(20)), ResNet(38)
    grow(small, net)
    new = [not block.last_norm.weight.any() for block in net.blocks]
    assert new == [False, True] * 9  # each stage of three has become one of six
    F.cross_entropy(net(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    assert all(block.last_norm.weight.grad.any() for block in net.blocks)


def test_bottlenecks_grow_too():
    """Like a ResNet-50 to a ResNet-101: stages grow by different numbers, some not at all."""
    torch.manual_seed(0)
    plan = Architecture(64, (8, 16, 16, 32), (1, 2, 2, 1), Bottleneck, large_stem=True)
    small, net = trained(ResNet(plan, 5)), ResNet(dataclasses.replace(plan, blocks=(1, 2, 7, 1)), 5)
    grow(small, net)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(small.eval()(images), net.eval()(images))


@pytest.mark.parametrize(
    "other",
    [
        ResNet(14),
        ResNet(34),
        ResNet(dataclasses.replace(Architecture.of_depth(26), channels=(8, 16, 32))),
        ResNet(26, 100),
        ResNet(26, shortcut="pad"),
    ],
    ids=["shallower", "of ImageNet", "narrower", "of other classes", "of another shortcut"],
)
def test_incompatible_networks_do_not_grow(other):
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match="a ResNet-20 cannot grow to a ResNet-"):
        grow(ResNet(20), other)
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
