"""The decision process against hand-worked numbers, per-image loops and finite differences."""

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skipnet_rl.blocks import SHORTCUTS
from skipnet_rl.mdp import Action, RoutingMDP, State, put, take
from skipnet_rl.resnet import Architecture, ResNet

ROUTES = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 1, 0]]).bool()


def lively_net(depth: int = 14, shortcut: str = "projection") -> ResNet:
    """A float64 network in evaluation mode whose batch norms are not the identity."""
    torch.manual_seed(0)
    net = ResNet(depth, shortcut=shortcut)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    return net.double().eval()


def batch(size: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images [B, 3, 32, 32] in float64 and labels [B]."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 32, 32, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 10, (size,), generator=generator)


def features(mdp: RoutingMDP, images: Tensor, labels: Tensor, routes: Tensor) -> Tensor:
    """The last feature map after routes [B, N], bool or float."""
    state = mdp.initial(images, labels)
    for t in range(mdp.num_decisions):
        state = mdp.transition(state, routes[:, t])
    assert mdp.terminal(state)
    return state.x


def by_hand(net: ResNet, image: Tensor, route: Tensor) -> Tensor:
    """One image, one block after the other; a skipped block is its shortcut."""
    x = net.blocks[0](net.stem(image[None]))
    for block, execute in zip(net.blocks[1:], route.tolist(), strict=True):
        x = block(x) if execute else block.shortcut(x)
    return x


def pad_routes(net: ResNet, size: int = 5) -> Tensor:
    """ROUTES repeated to the network's N."""
    decisions = len(net.blocks) - 1
    return ROUTES.repeat(1, decisions // 4 + 1)[:size, :decisions]


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_mixed_batch_equals_each_image_alone(shortcut):
    net = lively_net(14, shortcut)
    images, labels = batch()
    routes = pad_routes(net)
    with torch.no_grad():
        together = features(RoutingMDP(net), images, labels, routes)
        alone = torch.cat([by_hand(net, image, route) for image, route in zip(images, routes, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(together, features(RoutingMDP(net), images, labels, ~routes), atol=1e-3)


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_all_execute_equals_the_plain_network(shortcut):
    net = lively_net(14, shortcut).float()
    images, labels = batch()
    images = images.float()
    mdp = RoutingMDP(net)
    state = mdp.initial(images, labels)
    while not mdp.terminal(state):
        state = mdp.transition(state, torch.ones(5, dtype=torch.bool))
    assert torch.equal(mdp.logits(state), net(images))
    torch.testing.assert_close(mdp.loss(state), F.cross_entropy(net(images), labels, reduction="none"))


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_float_gate_of_zero_or_one_equals_the_bool_action(shortcut):
    net = lively_net(14, shortcut)
    images, labels = batch()
    routes = pad_routes(net)
    mdp = RoutingMDP(net)
    with torch.no_grad():
        gathered = features(mdp, images, labels, routes)
        mixed = features(mdp, images, labels, routes.double())
    torch.testing.assert_close(mixed, gathered, rtol=1e-10, atol=1e-10)


def test_soft_gate_mixes_executed_and_skipped():
    net = lively_net(8)
    images, labels = batch(2)
    mdp = RoutingMDP(net)
    state = mdp.initial(images, labels)
    gate = torch.tensor([0.25, 0.6], dtype=torch.float64)
    mixed = mdp.transition(state, gate).x
    block = net.blocks[1]
    executed, skipped = block(state.x), block.shortcut(state.x)
    torch.testing.assert_close(mixed[0], 0.25 * executed[0] + 0.75 * skipped[0])
    torch.testing.assert_close(mixed[1], 0.6 * executed[1] + 0.4 * skipped[1])


def test_mixed_batch_in_channels_last_and_bfloat16():
    """Gather and scatter keep values, type and memory format of every kind of input."""
    net = lively_net(8).float()
    images, labels = batch(4)
    routes = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]]).bool()
    plain = features(RoutingMDP(net), images.float(), labels, routes)
    last = images.float().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(features(RoutingMDP(net), last, labels, routes), plain, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        half = features(RoutingMDP(net), last, labels, routes)
        alone = [by_hand(net, image, route) for image, route in zip(last, routes, strict=True)]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, torch.cat(alone), rtol=0.05, atol=0.05)


def test_take_and_put_by_value():
    x = torch.arange(24.0).view(4, 1, 2, 3)
    rows = take(x, torch.tensor([2, 0]))
    assert torch.equal(rows, torch.stack([x[2], x[0]]))
    filled = put(x, torch.tensor([2, 0]), rows * 0 - 1, inplace=False)
    assert filled[:, 0, 0, 0].tolist() == [-1, 6, -1, 18]
    assert x[2, 0, 0, 0] == 12  # a copy
    assert torch.equal(put(x, torch.tensor([2, 0]), rows * 0 - 1, inplace=True), filled)
    assert torch.equal(x, filled)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("channels", [3, 4])
def test_put_in_place_whatever_the_layout(dtype, channels):
    index = torch.tensor([3, 1])
    for layouts in itertools.product((torch.contiguous_format, torch.channels_last), repeat=2):
        x, rows = (
            torch.randn(count, channels, 2, 2, dtype=dtype).contiguous(memory_format=layout)
            for count, layout in zip((4, 2), layouts, strict=True)
        )
        expected = x.clone()
        expected[index] = rows
        assert torch.equal(put(x, index, rows, inplace=True), expected)
        weight = torch.ones((), dtype=dtype, requires_grad=True)
        filled = put(x * 1, index, rows * weight, inplace=True)
        filled.sum().backward()
        assert torch.equal(filled, expected)
        assert weight.grad.item() == pytest.approx(rows.sum().item(), rel=0.05, abs=0.05)


def test_transition_keeps_the_state_unless_inplace():
    mdp = RoutingMDP(lively_net(8, "projection"))
    with torch.no_grad():
        first = mdp.initial(*batch(4))
        x = first.x.clone()
        some = torch.tensor([True, False, True, False])
        copied = mdp.transition(first, some)
        assert torch.equal(first.x, x)
        assert torch.equal(mdp.transition(first, some, inplace=True).x, copied.x)


def test_a_skipped_projection_has_negative_features():
    """A skipped block has no ReLU, so observations are not bounded by zero."""
    net = lively_net(8, "projection")
    images, labels = batch(2)
    mdp = RoutingMDP(net)
    state = mdp.initial(images, labels)
    assert (state.x >= 0).all()
    skipped = mdp.transition(state, torch.zeros(2, dtype=torch.bool))
    assert (skipped.x < 0).any()
    assert (mdp.observation(skipped)[:, : mdp.feature_width] < 0).any()
    assert (mdp.transition(state, torch.ones(2, dtype=torch.bool)).x >= 0).all()


def test_skipped_images_never_enter_the_convolutions():
    net = lively_net(14)
    rows = []
    for block in net.blocks[1:]:
        block.conv1.register_forward_hook(lambda _m, inputs, _y: rows.append(len(inputs[0])))
        block.conv2.register_forward_hook(lambda _m, inputs, _y: rows.append(len(inputs[0])))
    images, labels = batch()
    routes = torch.tensor(
        [[0, 1, 1, 0, 1], [0, 1, 0, 0, 1], [0, 1, 0, 0, 0], [0, 1, 0, 1, 0], [0, 1, 0, 1, 1]]
    ).bool()
    features(RoutingMDP(net), images, labels, routes)
    # columns: nobody (no call at all), all five, one, two, three
    assert rows == [5, 5, 1, 1, 2, 2, 3, 3]


def gradients(net: ResNet, value: Tensor) -> dict[str, Tensor | None]:
    """d value / d parameter by name."""
    names, parameters = zip(*net.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(value, parameters, allow_unused=True), strict=True))


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_gradients_are_those_of_the_images_that_executed(shortcut):
    net = lively_net(14, shortcut)
    images, labels = batch()
    routes = pad_routes(net)
    routes[:, 2] = False  # nobody executes block 3
    weight = torch.randn(5, 64, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = gradients(net, (weight * features(RoutingMDP(net), images, labels, routes)).sum())
    alone = [by_hand(net, image, route) for image, route in zip(images, routes, strict=True)]
    expected = gradients(net, (weight * torch.cat(alone)).sum())
    for name, gradient in together.items():
        if name.startswith("fc."):
            continue
        if name.startswith("blocks.3.") and "shortcut" not in name:
            assert gradient is None or not gradient.any(), f"{name} was skipped by the whole batch"
            continue
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=name)
        assert gradient.any(), name


def test_a_block_executed_by_one_image_ignores_the_others():
    net = lively_net(8)
    images, labels = batch(3)
    routes = torch.tensor([[1, 0], [0, 0], [1, 1]]).bool()  # block 2: image 2 alone
    other = images.clone()
    other[:2] = torch.randn_like(other[:2])

    def gradient(pixels):
        last = features(RoutingMDP(net), pixels, labels, routes)
        return gradients(net, (last**2).sum())

    first, second = gradient(images), gradient(other)
    torch.testing.assert_close(
        first["blocks.2.conv1.weight"], second["blocks.2.conv1.weight"], rtol=1e-9, atol=1e-9
    )
    assert not torch.allclose(first["blocks.1.conv1.weight"], second["blocks.1.conv1.weight"], rtol=1e-3)


def test_float_gate_gradient_equals_finite_differences():
    net = lively_net(8)
    images, labels = batch(2)
    mdp = RoutingMDP(net)
    weight = torch.randn(2, 64, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def value(gates):
        return (weight * features(mdp, images, labels, gates)).sum()

    gates = torch.tensor([[0.3, 0.8], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(value(gates), gates)
    step = 1e-6
    with torch.no_grad():
        for i in range(2):
            for t in range(2):
                shift = torch.zeros_like(gates)
                shift[i, t] = step
                difference = (value(gates + shift) - value(gates - shift)) / (2 * step)
                assert exact[i, t].item() == pytest.approx(difference.item(), rel=1e-5)


@pytest.mark.parametrize(
    "action", [[True] * 4, [False] * 4, [True, False, True, False], [0.0, 1.0, 0.5, 1.0]]
)
def test_a_projections_batch_norm_moves_once_per_forward(action):
    net = lively_net(8).train()
    images, labels = batch(4)
    mdp = RoutingMDP(net)
    state = mdp.initial(images, labels)
    convolution, norm = copy.deepcopy(net.blocks[1].shortcut)
    before = norm.num_batches_tracked.item()
    mdp.transition(state, torch.tensor(action))
    product = convolution(state.x)
    mean, variance = product.mean(dim=(0, 2, 3)), product.var(dim=(0, 2, 3))  # unbiased: PyTorch keeps that
    moved = net.blocks[1].shortcut[1]
    assert moved.num_batches_tracked.item() == before + 1
    torch.testing.assert_close(moved.running_mean, 0.9 * norm.running_mean + 0.1 * mean)
    torch.testing.assert_close(moved.running_var, 0.9 * norm.running_var + 0.1 * variance)


def test_a_blocks_own_batch_norm_sees_the_executed_images_alone():
    net = lively_net(8).train()
    images, labels = batch(4)
    mdp = RoutingMDP(net)
    state = mdp.initial(images, labels)
    before = copy.deepcopy(net.blocks[1].bn1)
    mdp.transition(state, torch.tensor([True, False, False, True]))
    mean = net.blocks[1].conv1(state.x[[0, 3]]).mean(dim=(0, 2, 3))
    torch.testing.assert_close(net.blocks[1].bn1.running_mean, 0.9 * before.running_mean + 0.1 * mean)
    assert net.blocks[1].bn1.num_batches_tracked == before.num_batches_tracked + 1
    mdp.transition(state, torch.zeros(4, dtype=torch.bool))
    assert net.blocks[1].bn1.num_batches_tracked == before.num_batches_tracked + 1  # skipped: not moved


def test_initial_is_stem_and_first_block():
    net = lively_net(8)
    images, labels = batch(2)
    state = RoutingMDP(net).initial(images, labels)
    torch.testing.assert_close(state.x, net.blocks[0](net.stem(images)), rtol=0, atol=0)
    assert state.t == 0
    assert torch.equal(state.y, labels)


def test_observation_by_hand():
    """Pooled feature, zeros up to the widest stage (64), one place per decision (N = 2)."""
    mdp = RoutingMDP(lively_net(8))
    assert mdp.observation_size == 66
    x = torch.zeros(2, 16, 2, 2)
    x[0, 3] = torch.tensor([[1.0, 2.0], [3.0, 6.0]])  # mean 3
    x[1, 15] = -4.0
    expected = torch.zeros(2, 66)
    expected[0, 3], expected[1, 15] = 3.0, -4.0
    expected[:, 64] = 1  # decision 0
    assert torch.equal(mdp.observation(State(x, torch.zeros(2).long(), 0)), expected)
    wide = torch.full((1, 64, 1, 1), 0.5)
    assert mdp.observation(State(wide, torch.zeros(1).long(), 1)).tolist() == [[0.5] * 64 + [0.0, 1.0]]
    assert mdp.observation(State(wide, torch.zeros(1).long(), 2)).tolist() == [[0.5] * 64 + [0.0, 0.0]]


def constant_classifier(depth: int = 8) -> ResNet:
    """Two classes with probabilities 3/4 and 1/4, whatever the image."""
    net = lively_net(depth).float()
    net.fc = nn.Linear(64, 2)
    nn.init.zeros_(net.fc.weight)
    net.fc.bias.data = torch.tensor([math.log(3.0), 0.0])
    return net


def pay(mdp: RoutingMDP, labels: Tensor, routes: Tensor) -> Tensor:
    """Rewards [B, N] of routes."""
    state = mdp.initial(torch.zeros(len(labels), 3, 32, 32), labels)
    rewards = []
    for t in range(mdp.num_decisions):
        next_state = mdp.transition(state, routes[:, t].bool())
        rewards.append(mdp.reward(state, routes[:, t].bool(), next_state))
        state = next_state
    return torch.stack(rewards, 1)


def test_rewards_of_three_blocks_by_hand():
    # N = 2, alpha = 1: a skip pays 1/2. The loss is -ln(3/4) = 0.287682 for label 0 and
    # -ln(1/4) = 1.386294 for label 1.
    #   route 0 1, label 0:  1/2, 0 - 0.287682     return  0.212318
    #   route 1 0, label 1:  0, 1/2 - 1.386294     return -0.886294
    #   route 0 0, label 1:  1/2, 1/2 - 1.386294   return -0.386294
    #   route 1 1, label 0:  0, -0.287682          return -0.287682
    mdp = RoutingMDP(constant_classifier(), alpha=1.0)
    routes = torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1]])
    rewards = pay(mdp, torch.tensor([0, 1, 1, 0]), routes)
    expected = torch.tensor([[0.5, -0.287682], [0, -0.886294], [0.5, -0.886294], [0, -0.287682]])
    torch.testing.assert_close(rewards, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(
        rewards.sum(1), torch.tensor([0.212318, -0.886294, -0.386294, -0.287682]), rtol=0, atol=2e-6
    )


def test_custom_costs_scale_the_reward():
    # alpha/N C = 1/2 (0.5, 1.5) = (0.25, 0.75); two skips, label 0: 0.25, 0.75 - 0.287682 = 0.462318
    mdp = RoutingMDP(constant_classifier(), alpha=1.0, cost=torch.tensor([0.5, 1.5]))
    rewards = pay(mdp, torch.tensor([0]), torch.tensor([[0, 0]]))
    torch.testing.assert_close(rewards, torch.tensor([[0.25, 0.462318]]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("cost", ["blocks", "flops"])
@pytest.mark.parametrize("alpha", [0, 0.1, 1, 7.5])
def test_return_is_minus_the_papers_loss(alpha, cost):
    """L(y', y) - alpha/N Σ (1 - g_i) C_i, its loss from a per-image loop."""
    net = lively_net(14).float()
    mdp = RoutingMDP(net, alpha, cost)
    images, labels = batch()
    routes = torch.rand(5, 5, generator=torch.Generator().manual_seed(3)) < 0.5
    # MACs of decisions 0 … 4 are as 4 : 3 : 4 : 3 : 4 (a block that halves the image and doubles the
    # channels has 3/4 of the others' work), mean 18/5
    price = torch.tensor([4.0, 3, 4, 3, 4]) / 3.6 if cost == "flops" else torch.ones(5)
    state, total = mdp.initial(images.float(), labels), torch.zeros(5)
    for t in range(5):
        next_state = mdp.transition(state, routes[:, t])
        total += mdp.reward(state, routes[:, t], next_state)
        state = next_state
    for i in range(5):
        with torch.no_grad():
            last = by_hand(net, images[i].float(), routes[i])
            loss = F.cross_entropy(net.classify(last), labels[i : i + 1]).item()
        saved = sum(price[t].item() for t in range(5) if not routes[i, t])
        assert total[i].item() == pytest.approx(-(loss - alpha / 5 * saved), abs=1e-4)


def test_reward_has_no_gradient():
    net = lively_net(8).float()
    mdp = RoutingMDP(net)
    state = mdp.initial(batch(2)[0].float(), torch.tensor([0, 1]))
    state = mdp.transition(state, torch.ones(2, dtype=torch.bool))
    end = mdp.transition(state, torch.ones(2, dtype=torch.bool))
    assert not mdp.reward(state, torch.ones(2), end).requires_grad
    assert mdp.loss(end).requires_grad


def test_terminal_after_n_decisions():
    mdp = RoutingMDP(lively_net(8))
    x, y = torch.zeros(1, 16, 32, 32), torch.zeros(1).long()
    assert mdp.num_decisions == 2
    assert [mdp.terminal(State(x, y, t)) for t in range(3)] == [False, False, True]
    assert mdp.block(0) is mdp.net.blocks[1]


def test_actions_are_integers():
    assert (Action.SKIP, Action.EXECUTE) == (0, 1)


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf, "0.1", None])
def test_invalid_alpha(alpha):
    with pytest.raises(ValueError, match="alpha is .* expected a finite number >= 0"):
        RoutingMDP(ResNet(8), alpha)


def test_invalid_costs():
    with pytest.raises(ValueError, match=r"cost has shape \(3,\); expected \(2,\)"):
        RoutingMDP(ResNet(8), cost=torch.ones(3))
    with pytest.raises(ValueError, match="unknown cost 'flop'; did you mean 'flops'"):
        RoutingMDP(ResNet(8), cost="flop")
    with pytest.raises(ValueError, match=r"cost is \[nan, 1.0\]; expected finite numbers"):
        RoutingMDP(ResNet(8), cost=torch.tensor([math.nan, 1.0]))
    with pytest.raises(ValueError, match=r"cost is \[inf, 1.0\]; expected finite numbers"):
        RoutingMDP(ResNet(8), cost=torch.tensor([math.inf, 1.0]))
    assert RoutingMDP(ResNet(8), alpha=1.0, cost=[1, 3]).payment == [0.5, 1.5]
    assert RoutingMDP(ResNet(8), alpha=1.0, cost=[0, 3]).payment == [0, 1.5]


def test_another_payment_leaves_the_process_as_it_is():
    mdp = RoutingMDP(ResNet(8), alpha=1.0)
    other = mdp.with_payment(4.0, [1, 3])
    assert (other.alpha, other.payment, other.net) == (4.0, [2, 6], mdp.net)
    assert (mdp.alpha, mdp.payment) == (1.0, [0.5, 0.5])


@pytest.mark.parametrize(
    "of_network, of_rewards",
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_rewards_are_as_precise_as_the_network_and_no_less_than_float32(of_network, of_rewards):
    mdp = RoutingMDP(ResNet(8).to(of_network), alpha=1.0, cost=[0.2, 1])
    state = State(torch.zeros(1, 16, 2, 2), torch.zeros(1).long(), 0)
    skip = torch.zeros(1, dtype=torch.bool)
    reward = mdp.reward(state, skip, state._replace(t=1))
    assert reward.dtype == of_rewards
    assert torch.equal(reward, torch.tensor([mdp.payment[0]], dtype=of_rewards))


def test_one_block_leaves_nothing_to_decide():
    with pytest.raises(ValueError, match="one block, which always runs; expected at least two"):
        RoutingMDP(ResNet(Architecture(32, (16,), (1,))))
