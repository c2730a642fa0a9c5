"""Policies without training: their log-odds by value."""

import math
import warnings

import pytest
import torch
from toys import Replay

from skipnet_rl.gates import make_gate
from skipnet_rl.mdp import RoutingMDP, State
from skipnet_rl.policies import (
    AlwaysExecute,
    Biased,
    Exploring,
    FixedRoute,
    RandomSkip,
    StochasticDepth,
    ValueBaseline,
    policy_macs,
)
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import rollout


@pytest.fixture
def mdp(tiny_net) -> RoutingMDP:
    return RoutingMDP(tiny_net)


def state(t: int = 0, size: int = 3) -> State:
    return State(torch.zeros(size, 16, 32, 32), torch.zeros(size).long(), t)


def test_always_execute(mdp):
    logit, hidden = AlwaysExecute()(mdp, state(), None)
    assert logit.tolist() == [math.inf] * 3
    assert hidden is None


def test_a_fixed_route_is_its_own(mdp):
    route = torch.tensor([True, False, True, False, True, False, True, False])
    policy = FixedRoute(route)
    route[0] = False
    assert policy(mdp, state(0, 2), None)[0].tolist() == [math.inf] * 2
    assert policy(mdp, state(1, 2), None)[0].tolist() == [-math.inf] * 2


def test_random_skip_has_the_log_odds_of_its_rate(mdp):
    logit, _ = RandomSkip(0.75)(mdp, state(), None)
    assert logit.tolist() == pytest.approx([math.log(3)] * 3)


@pytest.mark.parametrize(("rate", "action"), [(0.0, 0.0), (1.0, 1.0)])
def test_random_skip_at_the_ends_is_certain(mdp, rate, action):
    draws = torch.Generator().manual_seed(0)
    images, labels = torch.zeros(16, 3, 32, 32), torch.zeros(16).long()
    episode = rollout(mdp, RandomSkip(rate), images, labels, "sample", draws)
    assert (episode.actions == action).all()
    assert not episode.log_probs.any()  # ln 1


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_invalid_rates(rate):
    with pytest.raises(ValueError, match="rate is .* expected a probability"):
        RandomSkip(rate)


def test_survival_falls_linearly():
    # Huang et al., equation 4: p_l = 1 - l/L (1 - p_L), blocks counted from one. ResNet-20 has L = 9;
    # with p_L = 0.5 block 2 (decision 0) survives with 1 - 2/9 * 0.5 = 0.8889, block 9 with 0.5
    mdp = RoutingMDP(ResNet(20))
    policy = StochasticDepth(0.5, torch.Generator())
    assert policy.survival(mdp, 0) == pytest.approx(8 / 9)
    assert policy.survival(mdp, 3) == pytest.approx(1 - 5 / 18)
    assert policy.survival(mdp, 7) == pytest.approx(0.5)


def test_stochastic_depth_draws_once_per_block(mdp):
    policy = StochasticDepth(0.5, torch.Generator().manual_seed(0))
    last, first = state(7), state(0)
    kept = torch.stack([policy(mdp, last, None)[0] for _ in range(2000)])  # decision 7: p = 0.5
    assert kept.isinf().all()
    assert (kept == kept[:, :1]).all()  # alike for the whole batch
    assert (kept[:, 0] > 0).float().mean().item() == pytest.approx(0.5, abs=0.06)  # five standard errors
    early = torch.stack([policy(mdp, first, None)[0] for _ in range(2000)])
    assert (early[:, 0] > 0).float().mean().item() == pytest.approx(8 / 9, abs=0.04)


def test_stochastic_depth_repeats_with_its_generator(mdp):
    def episode(seed):
        policy = StochasticDepth(0.3, torch.Generator().manual_seed(seed))
        return rollout(mdp, policy, torch.zeros(2, 3, 32, 32), torch.zeros(2).long()).actions

    assert torch.equal(episode(1), episode(1))
    assert any(not torch.equal(episode(1), episode(seed)) for seed in range(2, 8))


@pytest.mark.parametrize("last", [0, -0.5, 1.5])
def test_invalid_survival(last):
    with pytest.raises(ValueError, match="survival of the last block is .* expected 0 < p <= 1"):
        StochasticDepth(last, torch.Generator())


def test_replay_plays_the_column_of_the_decision(mdp):
    routes = torch.tensor([[1, 0, 1], [0, 0, 1]])
    inf = math.inf
    played = [Replay(routes)(mdp, state(t, 2), None)[0].tolist() for t in range(3)]
    assert played == [[inf, -inf], [-inf, -inf], [inf, inf]]


def test_biased_adds_to_the_log_odds(mdp, tiny_net):
    gate = make_gate("rnn", tiny_net)
    logit, _ = gate(mdp, state(), None)
    more, memory = Biased(gate, 1.5)(mdp, state(), None)
    torch.testing.assert_close(more, logit + 1.5)
    assert len(memory) == 2
    assert policy_macs(Biased(gate, 1.5)) == gate.macs() > 0
    assert policy_macs(Biased(AlwaysExecute(), -1.0)) == 0
    with pytest.raises(ValueError, match="bias is nan"):
        Biased(gate, math.nan)


def test_a_policy_without_macs_is_warned_of():
    with pytest.warns(UserWarning, match="Linear has no macs"):
        assert policy_macs(torch.nn.Linear(3, 1)) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert policy_macs(torch.nn.Identity()) == policy_macs(AlwaysExecute()) == 0


def test_a_bias_trades_blocks_monotonically(mdp, tiny_net):
    torch.manual_seed(0)
    gate = make_gate("ff2", tiny_net)
    torch.nn.init.normal_(gate.heads[3].weight, std=2.0)
    images, labels = torch.randn(8, 3, 32, 32), torch.zeros(8).long()
    with torch.no_grad():
        rates = [
            rollout(mdp, Biased(gate.eval(), bias), images, labels).actions.mean().item()
            for bias in (-50, -3, 0, 50)
        ]
    assert rates[0] == 0 and rates[-1] == 1
    assert rates == sorted(rates) and len(set(rates)) > 2


def test_exploring_keeps_within_its_floor(mdp):
    class Sure:
        def __call__(self, mdp, state, hidden):
            return torch.tensor([-1000.0, 0.0, math.log(3), 1000.0]), None

    logit, _ = Exploring(Sure(), 0.1)(mdp, state(size=4), None)
    torch.testing.assert_close(torch.sigmoid(logit), torch.tensor([0.1, 0.5, 0.1 + 0.8 * 0.75, 0.9]))
    untouched, _ = Exploring(Sure(), 0.0)(mdp, state(size=4), None)
    assert untouched.tolist() == [-1000.0, 0.0, pytest.approx(math.log(3)), 1000.0]
    for floor in (-0.1, 0.5, math.nan):
        with pytest.raises(ValueError, match="exploration floor"):
            Exploring(Sure(), floor)


def test_value_baseline_starts_at_zero_and_leaves_the_backbone_alone(mdp, tiny_net):
    critic = ValueBaseline(mdp)
    images, labels = torch.randn(3, 3, 32, 32), torch.zeros(3).long()
    draws = torch.Generator().manual_seed(0)
    episode = rollout(mdp, RandomSkip(0.5), images, labels, "sample", draws, critic=critic)
    assert episode.values.shape == (3, 8) and not episode.values.any()
    episode.values.sum().backward()
    assert critic.heads[7].weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in tiny_net.parameters())


def test_routes_can_be_given(mdp, tiny_net):
    """The gate's log-odds along routes that it did not choose."""
    gate = make_gate("rnn", tiny_net)
    images, labels = torch.randn(2, 3, 32, 32), torch.zeros(2).long()
    routes = torch.tensor([[1, 0] * 4, [0, 0, 0, 1] * 2]).bool()
    with torch.no_grad():
        given = rollout(mdp, gate, images, labels, routes=routes)
        replayed = rollout(mdp, Replay(routes), images, labels)
    assert torch.equal(given.actions.bool(), routes)
    assert torch.equal(given.logits, replayed.logits)
    assert given.gate_logits.isfinite().all()
