"""The backbone against torchvision's blocks, hand formulas and weights that others trained."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from skipnet_rl.blocks import SHORTCUTS, Block, Bottleneck, make_shortcut
from skipnet_rl.flops import network_macs
from skipnet_rl.resnet import Architecture, ResNet


def as_torchvision(net: ResNet) -> nn.Sequential:
    """The same network made of torchvision's residual blocks."""
    blocks = []
    for block in net.blocks:
        downsample = None if isinstance(block.shortcut, nn.Identity) else block.shortcut
        other = BasicBlock(block.in_channels, block.out_channels, block.stride, downsample)
        for name in ("conv1", "bn1", "conv2", "bn2"):
            setattr(other, name, getattr(block, name))
        blocks.append(other)
    return nn.Sequential(net.stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.fc)


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_forward_equals_torchvisions_blocks(shortcut):
    torch.manual_seed(0)
    net = ResNet(14, 7, shortcut)  # in training mode, so that each batch norm does something
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(net(images), as_torchvision(net)(images), rtol=1e-5, atol=1e-5)


def test_forward_equals_torchvisions_blocks_in_evaluation_mode(tiny_net):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = as_torchvision(tiny_net).eval()(images)
        torch.testing.assert_close(tiny_net(images), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(tiny_net.train()(images), expected, atol=1e-2)  # the statistics matter


def test_number_of_parameters():
    # ResNet-20, option A. Convolutions: stem 3*16*9 = 432; stage 1: 6*16*16*9 = 13,824;
    # stage 2: 16*32*9 + 5*32*32*9 = 50,688; stage 3: 32*64*9 + 5*64*64*9 = 202,752. Batch norms:
    # 2*(7*16 + 6*32 + 6*64) = 1,376. Classifier: 64*10 + 10 = 650. Together 269,722 (0.27M in table 6
    # of He et al.). Option B adds 16*32 + 2*32 and 32*64 + 2*64 = 2,752.
    def count(shortcut):
        return sum(parameter.numel() for parameter in ResNet(20, shortcut=shortcut).parameters())

    assert {name: count(name) for name in SHORTCUTS} == {
        "projection": 272_474,
        "pad": 269_722,
        "pool": 269_722,
    }


def test_stages_and_shapes_of_the_flat_list():
    net = ResNet(20)
    assert net.stages == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    shapes = [(block.in_channels, block.out_channels, block.stride) for block in net.blocks]
    assert shapes == [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2


def test_pad_shortcut_by_value():
    x = torch.arange(2 * 2 * 4 * 4).float().view(2, 2, 4, 4)
    y = make_shortcut("pad", 2, 5, 2)(x)
    # image 0, channel 0 is rows 0-3, 4-7, 8-11, 12-15: pixels (0,0) (0,2) (2,0) (2,2) are 0, 2, 8, 10
    assert y.shape == (2, 5, 2, 2)
    # three new channels: one before the old ones, two after
    assert y[0, 1].tolist() == [[0, 2], [8, 10]]
    assert y[1, 2].tolist() == [[48, 50], [56, 58]]
    assert not y[:, [0, 3, 4]].any()


def test_pool_shortcut_by_value():
    x = torch.arange(16).float().view(1, 1, 4, 4)
    y = make_shortcut("pool", 1, 3, 2)(x)
    # means of [0 1 4 5], [2 3 6 7], [8 9 12 13], [10 11 14 15]
    assert y[0, 1].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert not y[:, [0, 2]].any()


def test_pool_shortcut_of_an_odd_size_averages_what_there_is():
    y = make_shortcut("pool", 1, 1, 2)(torch.arange(9).float().view(1, 1, 3, 3))
    assert y[0, 0].tolist() == [[2.0, 3.5], [6.5, 8.0]]  # of [0 1 3 4], [2 5], [6 7], [8]


def test_projection_shortcut_is_a_strided_product_then_batch_norm():
    torch.manual_seed(0)
    shortcut = make_shortcut("projection", 3, 5, 2).double()
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    product = torch.einsum("oc,bchw->bohw", shortcut[0].weight[:, :, 0, 0], x[:, :, ::2, ::2])
    mean = product.mean(dim=(0, 2, 3), keepdim=True)
    variance = product.var(dim=(0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(shortcut(x), (product - mean) / (variance + 1e-5).sqrt())


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_shortcut_is_the_identity_where_shapes_agree(shortcut):
    x = torch.randn(2, 16, 8, 8)
    assert make_shortcut(shortcut, 16, 16, 1)(x) is x


def test_block_is_relu_of_transform_plus_shortcut():
    torch.manual_seed(0)
    block = Block(4, 8, 2, "projection").eval()
    x = torch.randn(3, 4, 8, 8)
    residual, shortcut = block.transform(x), block.shortcut(x)
    assert (residual < 0).any()  # the activation comes after the addition alone
    torch.testing.assert_close(block(x), torch.clamp(residual + shortcut, min=0), rtol=0, atol=0)


def test_initialisation_keeps_the_variance():
    # He et al. 2015, fan out: deviation sqrt(2 / (64 * 9)) = 0.0589, here of 36,864 draws (error 0.4 %)
    torch.manual_seed(0)
    weight = ResNet(8).blocks[-1].conv2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 576), rel=0.03)


@pytest.mark.parametrize("depth", ["20", None, 20.0])
def test_a_depth_is_an_integer(depth):
    with pytest.raises(ValueError, match=f"depth is {depth!r}; expected an integer"):
        ResNet(depth)


@pytest.mark.parametrize("depth", [2, 7, 19, 21, 111])
def test_depths_that_are_not_6n_plus_2(depth):
    with pytest.raises(ValueError, match=rf"depth {depth} is not 6n\+2 .* use one of 14, 20"):
        ResNet(depth)


def test_unknown_shortcut_names_the_nearest():
    with pytest.raises(ValueError, match="unknown shortcut 'projektion'; did you mean 'projection'"):
        ResNet(8, shortcut="projektion")


def test_logits_are_float32_under_autocast(tiny_net):
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        state = tiny_net.blocks[0](tiny_net.stem(images))
        for block in tiny_net.blocks[1:]:
            state = block(state)
        logits = tiny_net(images)
    assert state.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    pooled = state.double().mean(dim=(2, 3))
    exact = F.linear(pooled, tiny_net.fc.weight.double(), tiny_net.fc.bias.double())
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)  # bf16 would be off by 1e-2


@pytest.mark.parametrize("depth", [34, 50, 101])
def test_imagenet_resnets_as_one_flat_list(depth):
    net = ResNet(depth, 1000)
    counts = {34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}[depth]
    assert [net.stages.count(stage) for stage in range(4)] == counts
    assert net.depth == depth and net.image_size == 224
    parameters = {34: 21_797_672, 50: 25_557_032, 101: 44_549_160}  # as torchvision's model pages state
    assert sum(p.numel() for p in net.parameters()) == parameters[depth]
    multiply_adds = {34: 3.66e9, 50: 4.09e9, 101: 7.80e9}  # ditto
    assert network_macs(net).total == pytest.approx(multiply_adds[depth], rel=0.005)


def shapes_that_come(net: ResNet) -> list[tuple[int, ...]]:
    """Shape of each block's input for an image of the network's size."""
    net.eval()
    seen = []
    with torch.no_grad():
        x = net.stem(torch.zeros(1, 3, net.image_size, net.image_size))
        for block in net.blocks:
            seen.append(tuple(x.shape[1:]))
            x = block(x)
    return seen


@pytest.mark.parametrize("depth", [20, 34, 50])
def test_input_shapes_are_those_that_come(depth):
    net = ResNet(depth)
    assert net.input_shapes() == shapes_that_come(net)
    assert net.depth == depth


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("large_stem", [False, True])
@pytest.mark.parametrize("size", [28, 30, 33])
def test_shapes_of_sizes_that_do_not_halve(size, large_stem, shortcut):
    plan = Architecture(size, (4, 8, 8, 16), (1, 1, 1, 1), large_stem=large_stem)
    net = ResNet(plan, shortcut=shortcut)
    assert net.input_shapes() == shapes_that_come(net)


def test_a_zero_last_norm_makes_the_block_its_shortcut():
    torch.manual_seed(0)
    for block in (Block(4, 4, 1, "projection"), Bottleneck(8, 8, 1, "projection")):
        nn.init.zeros_(block.last_norm.weight)
        x = torch.rand(2, block.in_channels, 6, 6)
        assert torch.equal(block(x), x)
