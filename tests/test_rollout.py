"""Rollouts and rewards-to-go against the plain network, the paper's formula and all routes at once."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import Replay

from skipnet_rl.gates import RecurrentGate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute, RandomSkip
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import Trajectory, choose, rewards_to_go, rollout


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    return images.contiguous(memory_format=torch.channels_last)


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([3, 1, 4, 1])


def test_all_execute_equals_the_plain_network(tiny_net, images, labels):
    episode = rollout(RoutingMDP(tiny_net, alpha=0.3), AlwaysExecute(), images, labels)
    plain = tiny_net(images)
    assert torch.equal(episode.logits, plain)
    assert torch.equal(episode.actions, torch.ones(4, 8))
    assert torch.equal(episode.predictions, plain.argmax(1))
    loss = F.cross_entropy(plain, labels, reduction="none")
    torch.testing.assert_close(episode.loss, loss)
    assert not episode.rewards[:, :-1].any()  # nothing was saved
    torch.testing.assert_close(episode.returns, -loss.detach())


@pytest.mark.parametrize("cost", ["blocks", "flops"])
@pytest.mark.parametrize("alpha", [0, 0.1, 1, 7.5])
def test_return_is_minus_the_papers_loss(tiny_net, images, labels, alpha, cost):
    mdp = RoutingMDP(tiny_net, alpha, cost)
    draws = torch.Generator().manual_seed(1)
    episode = rollout(mdp, RandomSkip(0.6), images, labels, "sample", draws)
    assert 0 < episode.actions.mean() < 1
    # blocks 2-3, 5-6, 8-9 have 4/3 of the work of blocks 4 and 7, which halve the image
    price = torch.tensor([4.0, 4, 3, 4, 4, 3, 4, 4]) / 3.75 if cost == "flops" else torch.ones(8)
    saved = ((1 - episode.actions) * price).sum(1)
    paper = F.cross_entropy(episode.logits, labels, reduction="none") - alpha / 8 * saved
    torch.testing.assert_close(episode.returns, -paper.detach(), rtol=1e-5, atol=1e-5)


def test_replay_repeats_an_episode(tiny_net, images, labels):
    mdp = RoutingMDP(tiny_net, 0.5)
    sampled = rollout(mdp, RandomSkip(0.5), images, labels, "sample", torch.Generator().manual_seed(2))
    again = rollout(mdp, Replay(sampled.actions), images, labels)
    assert torch.equal(again.actions, sampled.actions)
    assert torch.equal(again.logits, sampled.logits)
    assert torch.equal(again.rewards, sampled.rewards)


def test_each_image_takes_its_own_route(tiny_net, images, labels):
    mdp = RoutingMDP(tiny_net, 0.5)
    routes = torch.rand(4, 8, generator=torch.Generator().manual_seed(3)) < 0.5
    together = rollout(mdp, Replay(routes), images, labels)
    for i in range(4):
        alone = rollout(mdp, Replay(routes[i : i + 1]), images[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(together.logits[i], alone.logits[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.rewards[i], alone.rewards[0], rtol=1e-4, atol=1e-4)


def test_choose_greedy():
    logits = torch.tensor([-math.inf, -0.1, 0.0, 0.1, math.inf])
    assert choose(logits, "greedy").tolist() == [False, False, False, True, True]


def test_choose_sample_has_the_right_frequency():
    logits = torch.full((200_000,), math.log(3.0))  # p = 3/4
    drawn = choose(logits, "sample", torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.bool
    assert drawn.float().mean().item() == pytest.approx(0.75, abs=5e-3)  # five standard errors
    assert torch.equal(drawn, choose(logits, "sample", torch.Generator().manual_seed(0)))
    certain = torch.tensor([-math.inf, math.inf]).repeat(1000)
    assert torch.equal(choose(certain, "sample", torch.Generator().manual_seed(0)), certain > 0)


def test_straight_through_value_and_gradient():
    """Exactly 0 or 1, lest a skipped block leaks into the result; the gradient is p (1 - p)."""
    logits = torch.linspace(-8, 8, 4001, requires_grad=True)
    gates = choose(logits, "straight-through")
    assert torch.equal(gates.detach(), (logits > 0).float())
    (gradient,) = torch.autograd.grad(gates.sum(), logits)
    p = 1 / (1 + torch.exp(-logits.detach().double()))
    torch.testing.assert_close(gradient.double(), p * (1 - p), rtol=1e-4, atol=1e-7)


def test_unknown_mode_names_the_nearest(tiny_net):
    with pytest.raises(ValueError, match="unknown rollout mode 'gready'; did you mean 'greedy'"):
        choose(torch.zeros(1), "gready")


class Theta:
    """A policy with one free log-odd per decision."""

    def __init__(self, theta: torch.Tensor) -> None:
        self.theta = theta

    def __call__(self, mdp, state, hidden):
        return self.theta[state.t].expand(len(state.y)), None


def small_net(depth: int = 8) -> ResNet:
    """A network in evaluation mode whose blocks all matter."""
    torch.manual_seed(0)
    net = ResNet(depth)
    net.train()(torch.randn(16, 3, 32, 32))  # running statistics that are not 0 and 1
    return net.eval()


def test_straight_through_gradient_equals_finite_differences_times_sigmoids(images, labels):
    """d loss / d logit_t = (d loss / d gate_t) p (1 - p), the first factor by finite differences.

    Decision 1 is executed and decision 0 skipped; only the gate of decision t moves.
    """
    net = small_net()
    mdp = RoutingMDP(net)
    theta = torch.tensor([-0.4, 1.2], requires_grad=True)
    episode = rollout(mdp, Theta(theta), images, labels, "straight-through")
    assert torch.equal(episode.actions.detach(), torch.tensor([[0.0, 1.0]] * 4))
    (exact,) = torch.autograd.grad(episode.loss.mean(), theta)

    def loss(gates):
        state = mdp.initial(images, labels)
        for gate in gates:
            state = mdp.transition(state, torch.full((4,), gate))
        return mdp.loss(state).mean().item()

    step = 1e-2  # float32: a smaller one is lost in rounding
    for t in range(2):
        above, below = [0.0, 1.0], [0.0, 1.0]
        above[t] += step
        below[t] -= step
        p = torch.sigmoid(theta[t]).item()
        difference = (loss(above) - loss(below)) / (2 * step)
        assert exact[t].item() == pytest.approx(difference * p * (1 - p), rel=0.03)


def test_rewards_to_go_is_the_papers_formula():
    """r_i = -[L - alpha/N Σ_{j≥i} R_j], by an explicit double loop."""
    generator = torch.Generator().manual_seed(0)
    saving = torch.rand(6, 5, generator=generator, dtype=torch.float64)  # alpha/N R_j
    loss = torch.rand(6, generator=generator, dtype=torch.float64) * 3
    rewards = saving.clone()
    rewards[:, -1] -= loss
    result = rewards_to_go(rewards)
    for b in range(6):
        for i in range(5):
            later = sum(saving[b, j].item() for j in range(i, 5))
            assert result[b, i].item() == pytest.approx(-(loss[b].item() - later), abs=1e-12)


def trajectory(gate_logits, actions):
    zeros = torch.zeros(len(actions))
    return Trajectory(gate_logits, actions, actions * 0, zeros[:, None], zeros.long(), zeros)


def test_log_probs_by_hand():
    # log-odds ln 3: p = 3/4. Execute: ln(3/4); skip: ln(1/4). Log-odds 0: ln(1/2) either way.
    gate_logits = torch.tensor([[math.log(3), math.log(3), 0.0]], requires_grad=True)
    log_probs = trajectory(gate_logits, torch.tensor([[1.0, 0.0, 0.0]])).log_probs
    expected = [math.log(3 / 4), math.log(1 / 4), math.log(1 / 2)]
    torch.testing.assert_close(log_probs[0].detach(), torch.tensor(expected))
    (gradient,) = torch.autograd.grad(log_probs.sum(), gate_logits)
    # d ln p / d logit = a - p
    torch.testing.assert_close(gradient, torch.tensor([[0.25, -0.75, -0.5]]))


def test_log_probs_of_certain_policies():
    inf = math.inf
    certain = trajectory(torch.tensor([[inf, -inf, inf, -inf]]), torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    assert certain.log_probs.tolist() == [[0.0, 0.0, -inf, -inf]]


def test_correct_compares_with_labels():
    logits = torch.tensor([[0.0, 2.0], [3.0, 1.0], [0.0, 5.0]])
    zeros = torch.zeros(3, 1)
    episode = Trajectory(zeros, zeros, zeros, logits, torch.tensor([1, 1, 0]), zeros[:, 0])
    assert episode.predictions.tolist() == [1, 0, 1]
    assert episode.correct.tolist() == [True, False, False]


def test_a_block_that_all_skip_gets_no_gradient_from_the_loss(images, labels):
    net = small_net()
    episode = rollout(RoutingMDP(net), Replay(torch.tensor([[0, 1]] * 4)), images, labels)
    episode.loss.mean().backward()
    assert net.blocks[1].conv1.weight.grad is None or not net.blocks[1].conv1.weight.grad.any()
    assert net.blocks[1].shortcut[0].weight.grad.any()
    assert net.blocks[2].conv1.weight.grad.any()


class LinearGate(nn.Module):
    """Log-odds linear in the observation, in float64."""

    def __init__(self, size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.weight = nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64) * 0.5)

    def forward(self, mdp, state, hidden):
        return mdp.observation(state).detach().double() @ self.weight, None


@pytest.mark.parametrize("depth", [8, 14])
def test_score_function_is_the_exact_gradient_of_the_expected_return(depth, images, labels):
    """∇E[return] over all 4 (32) routes against E[Σ_t ∇log p(a_t) · rewards-to-go_t], with no sampling.

    The gate reads features, so its probabilities depend on the actions before; two images with two
    labels catch anything that mixes up the batch.
    """
    mdp = RoutingMDP(small_net(depth), alpha=2.0)
    gate = LinearGate(mdp.observation_size)
    images, labels = images[:2], labels[:2]
    expected_return, estimate = torch.zeros((), dtype=torch.float64), torch.zeros_like(gate.weight)

    class Forced:
        """Take a fixed route, but report the gate's log-odds."""

        def __init__(self, route):
            self.route = route

        def __call__(self, mdp, state, hidden):
            self.logits = [*(hidden or []), gate(mdp, state, None)[0]]
            return torch.full((2,), math.inf if self.route[state.t] else -math.inf), self.logits

    for route in itertools.product([0, 1], repeat=mdp.num_decisions):
        policy = Forced(route)
        forced = rollout(mdp, policy, images, labels)
        gate_logits = torch.stack(policy.logits, 1)
        episode = Trajectory(gate_logits, forced.actions, forced.rewards, forced.logits, labels, forced.loss)
        assert episode.actions.tolist() == [[float(a) for a in route]] * 2
        p = torch.sigmoid(gate_logits)
        chances = torch.where(torch.tensor(route).bool(), p, 1 - p).prod(dim=1)  # [B] of this route
        rewards = episode.rewards.double()
        expected_return = expected_return + (chances * rewards.sum(1)).mean()
        score = (chances.detach() * (episode.log_probs * rewards_to_go(rewards)).sum(1)).mean()
        estimate += torch.autograd.grad(score, gate.weight, retain_graph=True)[0]
    (exact,) = torch.autograd.grad(expected_return, gate.weight)
    assert exact.norm() > 1e-3
    torch.testing.assert_close(estimate, exact, rtol=1e-9, atol=1e-12)


def test_gradients_reach_gate_and_backbone(tiny_net, images, labels):
    torch.manual_seed(0)
    gate = RecurrentGate(tiny_net, initial_rate=0.5)
    episode = rollout(RoutingMDP(tiny_net), gate, images, labels, "sample", torch.Generator().manual_seed(0))
    episode.loss.mean().backward(retain_graph=True)
    assert tiny_net.stem[0].weight.grad.any()
    assert gate.head.weight.grad is None  # a sampled action passes no gradient
    episode.log_probs.sum().backward()
    assert gate.head.weight.grad.any()


def test_the_answer_is_computed_once_an_episode(tiny_net, tiny_images, monkeypatch):
    calls = []
    classify = ResNet.classify
    monkeypatch.setattr(ResNet, "classify", lambda net, x: calls.append(len(x)) or classify(net, x))
    images, labels = tiny_images.batch(torch.arange(12))
    episode = rollout(RoutingMDP(tiny_net), AlwaysExecute(), images, labels)
    assert calls == [12] and torch.equal(episode.rewards[:, -1], -episode.loss.detach())
