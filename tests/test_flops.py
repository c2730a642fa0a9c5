"""MACs against hand formulas, written out."""

import itertools

import pytest
import torch
from torch import nn

from skipnet_rl import flops
from skipnet_rl.flops import FUSED, compute_blocks, count_macs, network_macs, on_meta
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.resnet import ResNet

# One block of two 3×3 convolutions C → C on an H×H image costs 2 * 9 * C² * H² MACs: with C * H = 512
# in every stage, 18 * 512² = 4,718,592. The first of a stage has 9 (C/2 * C + C * C) * H² = 3/4 of it.
BLOCK = 4_718_592
FIRST_OF_STAGE = 3_538_944
STEM = 9 * 3 * 16 * 32 * 32  # 442,368
CLASSIFIER = 64 * 10
PROJECTIONS = (16 * 32 * 16 * 16, 32 * 64 * 8 * 8)  # 131,072 each


def transforms_by_hand(blocks_per_stage: int) -> tuple[int, ...]:
    n = blocks_per_stage
    return (BLOCK,) * (n - 1) + ((FIRST_OF_STAGE,) + (BLOCK,) * (n - 1)) * 2


@pytest.mark.parametrize(("depth", "blocks_per_stage"), [(20, 3), (110, 18)])
@pytest.mark.parametrize("shortcut", ["projection", "pad", "pool"])
def test_network_macs_by_hand(depth, blocks_per_stage, shortcut):
    macs = network_macs(ResNet(depth, shortcut=shortcut))
    assert macs.fixed == STEM + BLOCK + CLASSIFIER
    assert macs.transforms == transforms_by_hand(blocks_per_stage)
    projections = {2 * blocks_per_stage - 1: PROJECTIONS[1], blocks_per_stage - 1: PROJECTIONS[0]}
    expected = [projections.get(t, 0) for t in range(3 * blocks_per_stage - 1)]
    assert list(macs.shortcuts) == (expected if shortcut == "projection" else [0] * len(expected))


def test_totals():
    # ResNet-20, option A: 442,368 + 7 * 4,718,592 + 2 * 3,538,944 + 640 = 40,551,040 (the 40.6 M of
    # published tables); ResNet-110: 442,368 + 52 * 4,718,592 + 2 * 3,538,944 + 640 = 252,887,680;
    # option B adds 2 * 131,072 = 262,144
    assert network_macs(ResNet(20, shortcut="pad")).total == 40_551_040
    assert network_macs(ResNet(20)).total == 40_813_184
    assert network_macs(ResNet(110, shortcut="pad")).total == 252_887_680
    assert network_macs(ResNet(110)).total == 253_149_824


def test_what_is_known_of_blocks_is_what_each_of_them_costs(monkeypatch):
    """A block is unlike others if its layers or its image's size are."""
    for net in (ResNet(20, shortcut="pool"), ResNet(34)):
        before, again = network_macs(net), network_macs(net)
        with monkeypatch.context() as patch:
            patch.setattr(flops, "Block", ())  # none is known, so that each is counted
            assert before == again == network_macs(net)


def test_number_of_classes_changes_the_classifier_alone():
    ten, hundred = (network_macs(ResNet(20, classes)) for classes in (10, 100))
    assert hundred.total - ten.total == 64 * 90
    assert hundred.transforms == ten.transforms


def test_every_route_by_hand():
    # ResNet-8, option B, decisions over blocks 2 and 3: both the first of their stages
    macs = network_macs(ResNet(8))
    routes = torch.tensor(list(itertools.product([0, 1], repeat=2)))
    always = STEM + BLOCK + CLASSIFIER + sum(PROJECTIONS)  # shortcuts run for skipped images too
    expected = [always + (a + b) * FIRST_OF_STAGE for a, b in routes.tolist()]
    assert macs.of_routes(routes).tolist() == expected
    assert macs.of_routes(routes, gates=1234).tolist() == [value + 1234 for value in expected]
    assert macs.of_routes(routes[-1:]).item() == macs.total


def test_a_route_costs_the_blocks_that_it_takes():
    """The third and sixth decided block of a ResNet-20 cost three quarters of the others."""
    macs = network_macs(ResNet(20))
    always = STEM + BLOCK + CLASSIFIER + sum(PROJECTIONS)
    for route, cost in (
        ([1, 0, 0, 1, 1, 0, 1, 0], 4 * BLOCK),
        ([0, 0, 1, 0, 0, 1, 0, 0], 2 * FIRST_OF_STAGE),
        ([0, 1, 1, 0, 0, 0, 0, 0], BLOCK + FIRST_OF_STAGE),
    ):
        assert macs.of_routes(torch.tensor([route]), gates=7).tolist() == [always + cost + 7]


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.int64])
def test_routes_of_any_type(kind):
    macs = network_macs(ResNet(20))
    assert macs.of_routes(torch.ones(3, 8, dtype=kind)).tolist() == [macs.total] * 3
    assert compute_blocks(torch.ones(3, 8, dtype=kind)).tolist() == [1.0] * 3


def test_compute_blocks_counts_the_first_block():
    # (executed + 1) / (N + 1) with N = 3: 0, 1 and 3 executed
    routes = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 1, 1]])
    assert compute_blocks(routes).tolist() == [0.25, 0.5, 1.0]


def test_block_costs():
    assert RoutingMDP(ResNet(20), cost="blocks").cost.tolist() == [1.0] * 8
    # six blocks of 4 and two of 3 parts, mean 30/8 = 3.75
    expected = torch.tensor([4, 4, 3, 4, 4, 3, 4, 4]) / 3.75
    torch.testing.assert_close(RoutingMDP(ResNet(20), cost="flops").cost, expected)


@pytest.mark.parametrize("depth", [8, 20, 110])
def test_mean_flops_cost_is_one(depth):
    """So alpha means the same with either cost."""
    assert RoutingMDP(ResNet(depth), cost="flops").cost.double().mean().item() == pytest.approx(1, abs=1e-6)


def test_unknown_cost():
    with pytest.raises(ValueError, match="unknown cost 'block'; did you mean 'blocks'"):
        RoutingMDP(ResNet(8), cost="block")


def test_count_macs_of_known_layers():
    # grouped, strided: 3*3 kernel, 4/2 inputs per output, 6 outputs, 4*4 positions
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    macs, result = count_macs(layer, torch.zeros(1, 4, 8, 8))
    assert macs == 9 * 2 * 6 * 16
    assert result.shape == (1, 6, 4, 4)
    assert count_macs(nn.Linear(7, 5), torch.zeros(1, 7))[0] == 35


def test_counting_does_not_change_the_network(tiny_net):
    before = {name: value.clone() for name, value in tiny_net.train().state_dict().items()}
    network_macs(tiny_net)
    assert tiny_net.training
    after = tiny_net.state_dict()
    assert all(after[name].device.type == "cpu" and torch.equal(after[name], before[name]) for name in before)
    copy = on_meta(tiny_net)
    assert not copy.training
    assert {p.device.type for p in copy.parameters()} == {"meta"}


@pytest.mark.parametrize("layers", [1, 2])
def test_an_lstm_by_hand(layers):
    """Four gates, each with an input and a state matrix; a fused kernel hides them from the counter."""
    lstm, steps, batch = nn.LSTM(5, 7, layers), 3, 2
    once = 4 * 7 * (5 + 7) + (layers - 1) * 4 * 7 * (7 + 7)
    for device in ("cpu", "meta"):
        macs, _ = count_macs(lstm.to(device), torch.empty(steps, batch, 5, device=device))
        assert macs == steps * batch * once
    shapes = [parameter.shape for parameter in lstm.parameters()]  # as cuDNN has them, in a list
    assert FUSED[torch.ops.aten._cudnn_rnn]((steps, batch, 5), shapes, 4) == 2 * steps * batch * once
