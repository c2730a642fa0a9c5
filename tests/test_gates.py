"""Gates against PyTorch's sequence LSTM, layers put together by hand, and closed forms of their cost."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skipnet_rl.data import load_images
from skipnet_rl.flops import network_macs
from skipnet_rl.gates import GATES, RecurrentGate, make_gate
from skipnet_rl.mdp import RoutingMDP, State
from skipnet_rl.problem import load_network
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import rollout


def sequence_logits(gate: RecurrentGate, pooled: list[torch.Tensor]) -> torch.Tensor:
    """The gate as one `nn.LSTM` over all decisions: [B, N]."""
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


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_gate_starts_at_its_initial_rate(tiny_net, rate, name):
    torch.manual_seed(0)
    gate = GATES[name](tiny_net, initial_rate=rate)
    images = torch.randn(4, 3, 32, 32)
    episode = rollout(RoutingMDP(tiny_net), gate, images, torch.zeros(4).long())
    assert torch.sigmoid(episode.gate_logits).mean().item() == pytest.approx(rate, abs=0.05)


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("rate", [0.0, 1.0, 90])
def test_invalid_initial_rates(tiny_net, name, rate):
    with pytest.raises(ValueError, match=f"initial_rate is {rate}; expected a probability"):
        GATES[name](tiny_net, initial_rate=rate)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "t"), [("ff1", 0), ("ff1", 2), ("ff2", 0), ("ff2", 5)])
def test_feed_forward_gates_by_hand(tiny_net, name, t, training):
    """The paper's layers; decisions 2 and 5 are about blocks that halve the resolution."""
    torch.manual_seed(0)
    gate = make_gate(name, tiny_net).train(training)
    channels, size, _ = tiny_net.input_shapes()[t + 1]
    x = torch.rand(4, channels, size, size)
    layers = dict(gate.features[t].named_children())
    maps, strides = x, {"ff1": (1, 2), "ff2": (2,)}[name]
    if name == "ff1":
        maps = x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
    first = 1 if name == "ff1" else 0
    for number, stride in enumerate(strides):
        conv, norm = layers[str(first + 3 * number)], layers[str(first + 3 * number + 1)]
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        maps = F.conv2d(maps, conv.weight, stride=stride, padding=1)
        mean = maps.mean(dim=(0, 2, 3)) if training else norm.running_mean
        variance = maps.var(dim=(0, 2, 3), correction=0) if training else norm.running_var
        maps = (maps - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + norm.eps).sqrt()
        maps = torch.clamp(maps + norm.bias.view(-1, 1, 1), min=0)
    scores = maps.mean(dim=(2, 3)) @ gate.heads[t].weight.T + gate.heads[t].bias
    logit, memory = gate(RoutingMDP(tiny_net), State(x, torch.zeros(4).long(), t), None)
    torch.testing.assert_close(logit, scores[:, 1] - scores[:, 0], rtol=1e-4, atol=1e-4)
    assert memory is None
    assert logit.std() > 0


@pytest.mark.parametrize("name", ["ff1", "ff2"])
def test_feed_forward_macs_by_hand(name):
    # Block i of shape C, H keeps its shape in 2 * 9 C² H² MACs. ff2: one convolution to (H/2)², 9 C² H²/4.
    # ff1: one on (H/2)² and one on (H/4)². Each head: 2 C.
    net = ResNet(20)
    expected = []
    for channels, size, _ in net.input_shapes()[1:]:
        places = size**2 / 4 + (size**2 / 16 if name == "ff1" else 0)
        expected.append(9 * channels**2 * places + 2 * channels)
    assert make_gate(name, net).macs_per_decision() == expected
    assert make_gate(name, net).macs() == sum(expected)


@pytest.mark.parametrize("name", GATES)
def test_every_gate_learns_from_every_relaxation(tiny_net, name):
    """Straight-through and soft hand the cross-entropy's gradient to the gate; greedy and sampled none."""
    torch.manual_seed(0)
    gate = make_gate(name, tiny_net)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    for mode in ("straight-through", "soft", "greedy", "sample"):
        episode = rollout(RoutingMDP(tiny_net), gate, images, labels, mode)
        found = torch.autograd.grad(episode.loss.sum(), list(gate.parameters()), allow_unused=True)
        reached = any(g is not None and g.abs().sum() > 0 for g in found)
        assert reached == (mode in ("straight-through", "soft")), mode


def test_soft_gates_mix_both_paths(tiny_net):
    torch.manual_seed(0)
    gate = make_gate("ff2", tiny_net).eval()
    images, labels = torch.randn(3, 3, 32, 32), torch.zeros(3).long()
    with torch.no_grad():
        episode = rollout(RoutingMDP(tiny_net), gate, images, labels, "soft")
        x = tiny_net.blocks[0](tiny_net.stem(images))
        for t, block in enumerate(tiny_net.blocks[1:]):
            p = torch.sigmoid(gate.decide(x, t)).view(-1, 1, 1, 1)
            x = p * block(x) + (1 - p) * block.shortcut(x)
        torch.testing.assert_close(episode.logits, tiny_net.classify(x), rtol=1e-4, atol=1e-5)
    assert ((episode.actions > 0) & (episode.actions < 1)).all()


@pytest.mark.parametrize("name", GATES)
def test_default_gate_executes_everything_at_first(tiny_net, name):
    torch.manual_seed(0)
    gate = make_gate(name, tiny_net)
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


def spread_over_images(gain: float, name: str = "rnn") -> tuple[float, float]:
    """Mean of an untrained gate's log-odds, and their standard deviation over images."""
    images, labels = load_images("rendered-digits", "test").batch(torch.arange(200))
    mdp = RoutingMDP(load_network("auto", 20, 10, "rendered-digits"))
    torch.manual_seed(0)
    gate = make_gate(name, mdp.net, gain).eval()
    with torch.no_grad():
        logits = rollout(mdp, gate, images, labels, routes=torch.ones(200, 8, dtype=torch.bool)).gate_logits
    return logits.mean().item(), logits.std(dim=0).mean().item()


def test_without_a_gain_untrained_gates_ignore_the_image():
    """As docs/gates.md says."""
    (_, blind), (mean, sighted) = spread_over_images(1.0), spread_over_images(6.0)
    assert blind == pytest.approx(0.002, abs=0.0005)
    assert sighted == pytest.approx(0.3, abs=0.05)
    assert mean == pytest.approx(2.7, abs=0.1)
    assert spread_over_images(1.0, "ff1")[1] == pytest.approx(0.03, abs=0.005)
    assert spread_over_images(1.0, "ff2")[1] == pytest.approx(0.02, abs=0.005)


@pytest.mark.parametrize("name", GATES)
def test_a_gain_scales_the_first_weights(name, tiny_net):
    gates = []
    for gain in (1.0, 3.0):
        torch.manual_seed(0)
        gates.append(make_gate(name, tiny_net, gain))
    for (key, plain), amplified in zip(gates[0].named_parameters(), gates[1].parameters(), strict=True):
        scaled = key.startswith("head") or key == "lstm.weight_ih" or key.startswith("projections")
        factor = 3.0 if scaled and key.endswith(("weight", "weight_ih")) else 1.0
        torch.testing.assert_close(amplified, factor * plain, msg=key)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"gain is .*expected a positive number"):
            make_gate(name, tiny_net, bad)
