"""Policies without training: their log-odds by value."""

import math

import pytest
import torch

from skipnet_rl.mdp import RoutingMDP, State
from skipnet_rl.policies import AlwaysExecute, RandomSkip, Replay, StochasticDepth
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
def test_rates_that_are_no_probabilities(rate):
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
def test_survival_that_is_no_probability(last):
    with pytest.raises(ValueError, match="survival of the last block is .* expected 0 < p <= 1"):
        StochasticDepth(last, torch.Generator())


def test_replay_plays_the_column_of_the_decision(mdp):
    routes = torch.tensor([[1, 0, 1], [0, 0, 1]])
    inf = math.inf
    played = [Replay(routes)(mdp, state(t, 2), None)[0].tolist() for t in range(3)]
    assert played == [[inf, -inf], [-inf, -inf], [inf, inf]]
