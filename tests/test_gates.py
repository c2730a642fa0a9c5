"""The recurrent gate against PyTorch's sequence LSTM and a closed form of its cost."""

import pytest
import torch
from torch import nn

from skipnet_rl.flops import network_macs
from skipnet_rl.gates import RecurrentGate, make_gate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import rollout


def sequence_logits(gate: RecurrentGate, pooled: list[torch.Tensor]) -> torch.Tensor:
    """The same gate as one `nn.LSTM` over all decisions: [B, N]."""
    lstm = nn.LSTM(gate.size, gate.size)
    weights = gate.lstm.state_dict()
    lstm.load_state_dict({f"{name}_l0": value for name, value in weights.items()})
    projected = [torch.relu(layer(x)) for layer, x in zip(gate.projections, pooled, strict=True)]
    memory, _ = lstm(torch.stack(projected))
    return gate.head(memory).squeeze(2).T


def test_gate_is_one_lstm_along_the_depth(tiny_net):
    torch.manual_seed(0)
    gate = RecurrentGate(tiny_net)
    nn.init.normal_(gate.head.weight)  # a small head would hide mistakes
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    seen = []

    def watching(mdp, state, hidden):
        seen.append(state.x.mean(dim=(2, 3)))
        return gate(mdp, state, hidden)

    with torch.no_grad():
        episode = rollout(RoutingMDP(tiny_net), watching, images, torch.zeros(3).long())
        expected = sequence_logits(gate, seen)
    torch.testing.assert_close(episode.gate_logits, expected, rtol=1e-4, atol=1e-5)
    assert expected.std(dim=0).min() > 0  # each image has its own logits
    with torch.no_grad():
        again = rollout(RoutingMDP(tiny_net), gate, images, torch.zeros(3).long())
    assert torch.equal(again.gate_logits, episode.gate_logits)  # the memory starts anew


def test_an_images_gate_does_not_depend_on_its_neighbours(tiny_net):
    torch.manual_seed(0)
    gate = RecurrentGate(tiny_net)
    nn.init.normal_(gate.head.weight)
    images = torch.randn(3, 3, 32, 32)
    labels = torch.zeros(3).long()
    with torch.no_grad():
        together = rollout(RoutingMDP(tiny_net), gate, images, labels)
        alone = rollout(RoutingMDP(tiny_net), gate, images[1:2], labels[1:2])
    torch.testing.assert_close(together.gate_logits[1:2], alone.gate_logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_gate_starts_at_its_initial_rate(tiny_net, rate):
    torch.manual_seed(0)
    gate = RecurrentGate(tiny_net, initial_rate=rate)
    images = torch.randn(4, 3, 32, 32)
    episode = rollout(RoutingMDP(tiny_net), gate, images, torch.zeros(4).long())
    assert torch.sigmoid(episode.gate_logits).mean().item() == pytest.approx(rate, abs=0.05)


def test_default_gate_executes_everything_at_first(tiny_net):
    torch.manual_seed(0)
    gate = make_gate("rnn", tiny_net)
    episode = rollout(RoutingMDP(tiny_net), gate, torch.randn(4, 3, 32, 32), torch.zeros(4).long())
    assert (episode.actions == 1).all()


@pytest.mark.parametrize("depth", [20, 110])
def test_macs_by_hand(depth):
    # Per decision: projection C * 10; LSTM: four gates of 10, each from 10 inputs and 10 memories,
    # 4 * 10 * (10 + 10) = 800; head 10. Block i reads the channels of block i - 1: with n = (depth - 2) / 6
    # blocks per stage, n decisions read 16 channels (n - 1 in stage 1, and the first of stage 2),
    # n read 32 and n - 1 read 64.
    n = (depth - 2) // 6
    expected = 10 * (16 * n + 32 * n + 64 * (n - 1)) + 810 * (3 * n - 1)
    net = ResNet(depth)
    assert RecurrentGate(net).macs() == expected
    # ResNet-110: 62,450 in 53 decisions: 1,178 per decision, 0.025 % of a block's 4,718,592
    share = expected / sum(network_macs(net).transforms)
    assert 0.0002 < share < 0.0004


def test_wider_gate_costs_more():
    # ResNet-8, decisions with 16 and 32 inputs; size 4: 4 * 48 + 2 * (4 * 4 * 8 + 4) = 456
    assert RecurrentGate(ResNet(8), size=4).macs() == 456


def test_gate_decides_in_float32_under_autocast(tiny_net):
    torch.manual_seed(0)
    gate = RecurrentGate(tiny_net)
    pooled = torch.randn(4, 16)
    with torch.no_grad():
        expected, _ = gate.decide(pooled, 0, None)
        with torch.autocast("cpu", torch.bfloat16):
            logit, (memory, _) = gate.decide(pooled, 0, None)
    assert logit.dtype == memory.dtype == torch.float32
    assert torch.equal(logit, expected)


def test_unknown_gate_names_the_nearest(tiny_net):
    with pytest.raises(ValueError, match="unknown gate 'rrn'; did you mean 'rnn'"):
        make_gate("rrn", tiny_net)
