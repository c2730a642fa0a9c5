"""Chains against single networks, hand-worked answers and enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from test_mdp import batch, lively_net
from toys import Replay, spoken, two_colours, written

from skipnet_rl.belief import Threshold, margin
from skipnet_rl.chain import Chain, ChainMDP
from skipnet_rl.evaluate import evaluate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.member import Member
from skipnet_rl.policies import AlwaysExecute, FixedRoute, RandomSkip
from skipnet_rl.process import select
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import rollout


def lively_chain(mix=0.3, count=3):
    """ResNet-8, ResNet-14 with gates of its own and ResNet-8 again, in float64."""
    small, gated, other = lively_net(8), lively_net(14), lively_net(8)
    with torch.no_grad():
        other.fc.weight.mul_(-1)
    return Chain([Member(small), Member(gated, Picky()), Member(other)][:count], mix)


class Picky(torch.nn.Module):
    """Executes the blocks of each image as the sine of its features falls out, at 1,000 MACs."""

    def forward(self, mdp, state, hidden):
        return (100 * state.x.mean(dim=(1, 2, 3))).sin(), hidden

    def macs(self):
        return 1_000


def play(mdp, routes):
    images, labels = batch(len(routes))
    return rollout(mdp, AlwaysExecute(), images, labels, routes=routes)


@torch.no_grad()
def threshold_at_median(mdp, data):
    """The policy that asks the second network about half of some images."""
    return Threshold([margin(mdp.initial(*data.batch(torch.arange(len(data)))).answer).median() + 1e-3])


def every_route(decisions):
    return torch.tensor(list(itertools.product([False, True], repeat=decisions)))


def test_a_chain_by_hand():
    """Three networks, two classes, w = 0.5 and then 0; costs 10, 40 and 160 MACs.

    The first says 0.8 against 0.2, the second 0.2 against 0.8: their geometric mean is a tie. The third
    says 0.9 against 0.1, and nothing else counts then. Label 0, alpha = 1: C = 40 and 160 over 100.
    """
    data = two_colours(4)
    says = torch.tensor([[0.8, 0.2], [0.2, 0.8], [0.9, 0.1]]).expand(4, -1, -1)
    chain = Chain([spoken("a", 10), spoken("b", 40, number=1), spoken("c", 160, number=2)], mix=[0.5, 0])
    mdp = ChainMDP(chain)
    assert mdp.cost.tolist() == pytest.approx([0.4, 1.6]) and mdp.payment == pytest.approx([0.2, 0.8])
    records, labels = written(data, says, [10, 40, 160]).batch(torch.arange(4))
    routes = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]]).bool()
    episode = rollout(mdp, Replay(routes), records, labels * 0)
    right = [0.8, 0.5, 0.9, 0.9]
    assert episode.logits.softmax(dim=1)[:, 0].tolist() == pytest.approx(right)
    assert episode.loss.tolist() == pytest.approx([-math.log(p) for p in right], rel=1e-6)
    saved = torch.tensor([[0.2, 0.8], [0, 0.8], [0.2, 0], [0, 0]])
    saved[:, 1] += torch.tensor(right).log()
    torch.testing.assert_close(episode.rewards, saved)
    assert mdp.compute_flops(episode.state, routes).tolist() == [10 / 160, 50 / 160, 170 / 160, 210 / 160]
    assert [answer[1].exp()[0].item() for answer in episode.state.answers] == pytest.approx([0.8, 0.5, 0.5])


def test_skipping_everything_is_the_first_network():
    chain = lively_chain()
    images, labels = batch()
    alone = rollout(RoutingMDP(chain.members[0].net), AlwaysExecute(), images, labels)
    episode = play(ChainMDP(chain, alpha=0.0), torch.zeros(5, 2).bool())
    torch.testing.assert_close(episode.logits, alone.logits.log_softmax(dim=1))
    torch.testing.assert_close(episode.loss, alone.loss)
    torch.testing.assert_close(episode.returns, alone.returns)


@pytest.mark.parametrize("mix", [0.5, np.float32(0.5), np.array([0.5, 0.5])])
def test_one_weight_of_the_answer_so_far_is_that_of_every_decision(mix):
    assert lively_chain(mix).mix.tolist() == [0.5, 0.5]


def test_executing_everything_without_mixing_is_the_last_network():
    chain = lively_chain(mix=0.0)
    images, _ = batch()
    episode = play(ChainMDP(chain), torch.ones(5, 2).bool())
    torch.testing.assert_close(episode.logits, chain.members[2].net(images).log_softmax(dim=1))


def test_each_image_goes_its_own_way():
    """All routes in one batch against each of them alone, and against the networks' own answers."""
    chain = lively_chain(mix=[0.3, 0.6])
    mdp, routes = ChainMDP(chain), every_route(2)
    images, labels = batch(4)
    together = play(mdp, routes)
    for row, route in enumerate(routes):
        single = images[row : row + 1], labels[row : row + 1]
        alone = rollout(mdp, AlwaysExecute(), *single, routes=route[None])
        torch.testing.assert_close(together.logits[row], alone.logits[0])
        torch.testing.assert_close(together.rewards[row], alone.rewards[0])
        answer = chain.members[0](single[0]).log_probs
        for k, w in ((1, 0.3), (2, 0.6)):
            if route[k - 1]:
                answer = (w * answer + (1 - w) * chain.members[k](single[0]).log_probs).log_softmax(dim=1)
        torch.testing.assert_close(together.logits[row], answer[0])


def test_flops_count_inner_gates_and_inner_routes():
    chain = lively_chain()
    images, labels = batch(4)
    first, gated, last = chain.members
    inner = rollout(gated.mdp, gated.policy, images, labels).actions
    assert 0 < inner.mean() < 1 and len(inner.unique(dim=0)) > 1
    spent = gated.mdp.macs.of_routes(inner, gated.policy.macs())
    mdp, routes = ChainMDP(chain), every_route(2)
    found = mdp.compute_flops(play(mdp, routes).state, routes, policy_macs=1_000)
    whole = last.mdp.macs.total
    expected = first.mdp.macs.total + routes[:, 0] * spent + routes[:, 1] * whole + 1_000
    torch.testing.assert_close(found, expected / whole)


def test_costs_are_shares_of_the_mean_of_those_that_can_be_skipped():
    chain = lively_chain()
    macs = [chain.members[1].mdp.macs.total + chain.members[1].policy.macs(), chain.members[2].mdp.macs.total]
    assert ChainMDP(chain).cost.tolist() == pytest.approx([2 * each / sum(macs) for each in macs])
    assert ChainMDP(chain, cost="blocks").cost.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"cost.*did you mean 'flops'"):
        ChainMDP(chain, cost="flop")


def test_a_fixed_route_costs_what_it_executes():
    net = lively_net(14)
    route = torch.tensor([1, 0, 0, 1, 0])
    member = Member(net, FixedRoute(route))
    assert member.macs == member.mdp.macs.of_routes(route[None]).item() < member.whole_macs
    assert member(batch()[0]).macs.tolist() == [member.macs] * 5


def test_float_gate_of_zero_or_one_equals_the_bool_action():
    mdp, routes = ChainMDP(lively_chain(mix=[0.3, 0.6])), every_route(2)
    gathered, mixed = play(mdp, routes), play(mdp, routes.double())
    torch.testing.assert_close(mixed.logits, gathered.logits)
    torch.testing.assert_close(mixed.state.macs, gathered.state.macs)
    torch.testing.assert_close(mixed.rewards, gathered.rewards)


def test_a_soft_gate_costs_the_network_that_it_leans_to():
    mdp = ChainMDP(lively_chain(mix=0.4, count=2))
    state = mdp.initial(*batch(4))
    asked = mdp.transition(state, torch.ones(4, dtype=torch.bool))
    after = mdp.transition(state, torch.tensor([0.25, 0.75, 0.5, 1.0], dtype=torch.float64))
    assert (asked.macs > state.macs).all()
    expected = [state.macs[0], asked.macs[1], state.macs[2], asked.macs[3]]
    torch.testing.assert_close(after.macs, torch.stack(expected))


def test_the_answer_is_differentiable_in_gate_and_networks():
    mdp = ChainMDP(lively_chain(mix=0.4, count=2))
    images, labels = batch(3)
    gate = torch.tensor([0.2, 0.5, 0.9]).double().requires_grad_()

    def loss(gate):
        state = mdp.transition(mdp.initial(images, labels), gate)
        return mdp.loss(state).sum()

    assert torch.autograd.gradcheck(loss, (gate,))
    loss(gate).backward()
    assert all(member.net.fc.weight.grad.abs().sum() > 0 for member in mdp.net.members)


def test_observation_is_the_belief_and_the_decision():
    mdp = ChainMDP(lively_chain())
    state = mdp.initial(*batch())
    assert mdp.observation_size == 8
    for t in range(3):
        seen = mdp.observation(state)
        assert seen.shape == (5, 8) and seen.dtype == torch.float32
        assert seen[:, 6:].tolist() == [[float(t == 0), float(t == 1)]] * 5
        top = state.answer.topk(3, dim=1).values.float()
        torch.testing.assert_close(seen[:, :3], top)
        if t < 2:
            state = mdp.transition(state, torch.tensor([True, False, True, False, True]))


def test_select_episodes_of_a_batch():
    mdp = ChainMDP(lively_chain())
    state = mdp.transition(mdp.initial(*batch()), torch.tensor([True, False, True, False, True]))
    some = select(state, torch.tensor([False, True, True, False, False]))
    assert some.t == 1 and len(some.y) == 2
    torch.testing.assert_close(some.answer, state.answer[1:3])
    torch.testing.assert_close(some.macs, state.macs[1:3])


def test_evaluation_counts_what_each_image_took(tiny_net, tiny_images):
    chain = Chain([Member(tiny_net, Picky()), Member(lively_net(14).float())])
    mdp = ChainMDP(chain, alpha=0.3)
    policy = threshold_at_median(mdp, tiny_images)
    with torch.no_grad():
        episode = rollout(mdp, policy, *tiny_images.batch(torch.arange(12)))
    done = evaluate(mdp, policy, tiny_images, batch_size=5)
    assert torch.equal(done.routes, episode.actions > 0.5) and 0 < done.rate < 1
    torch.testing.assert_close(done.compute_flops, episode.state.macs / mdp.whole_macs)
    torch.testing.assert_close(done.returns, episode.returns, rtol=1e-4, atol=1e-4)
    assert done.compute_flops.unique().numel() > 2  # the first network's own routes differ


def test_temperature_divides_the_logits():
    net, (images, _) = lively_net(8), batch()
    with torch.no_grad():
        expected = (net(images) / 2.5).log_softmax(dim=1)
        for member in (Member(net, temperature=2.5), Member(net, temperature=2.5).for_inference()):
            torch.testing.assert_close(member(images).log_probs, expected)
    with pytest.raises(ValueError, match="temperature is 0"):
        Member(net, temperature=0)


def test_a_members_policy_is_counted_once():
    """Counting BlockDrop's policy takes longer than asking the network."""

    class Counted(Picky):
        calls = 0

        def macs(self):
            Counted.calls += 1
            return super().macs()

    images, _ = batch()
    chain = Chain([Member(lively_net(14), Counted()), Member(lively_net(8))]).eval()
    mdp = ChainMDP(chain)
    for each in (chain, chain, mdp.for_inference().net, mdp.for_inference().net):
        each(images)
    spent = chain.members[0].whole_macs + 1_000
    assert (Counted.calls, chain.members[0].macs) == (1, spent)


def test_a_chain_of_one_class_has_nothing_to_decide():
    with pytest.raises(ValueError, match="the networks know one class"):
        Chain([Member(ResNet(8, 1)), Member(ResNet(14, 1))])


def test_training_mode_and_the_original_stay_as_they_are():
    chain = lively_chain()
    chain.train()
    frozen = ChainMDP(chain).for_inference().net
    assert chain.training and chain.members[1].policy.training
    assert all(weight.requires_grad for weight in chain.parameters())
    assert not any(weight.requires_grad for weight in frozen.parameters())
    assert not frozen.members[1].policy.training


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Chain([spoken("a", 1)]), "a chain of 1 .*two or more"),
        (lambda: Chain([spoken("a", 1), spoken("b", 1, classes=3)]), r"num_classes: \[2, 3\]"),
        (lambda: Chain([spoken("a", 1), spoken("b", 1)], [0.5, 0.5]), "mix is .*expected 1 weight"),
        (lambda: Chain([spoken("a", 1), spoken("b", 1)], 1.5), "mix is 1.5"),
        (lambda: Chain([spoken("a", 1), spoken("b", 1)], math.nan), "mix is nan"),
    ],
)
def test_invalid_chains(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_random_deferral_has_finite_returns():
    mdp = ChainMDP(lively_chain())
    images, labels = batch(200)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        episode = rollout(mdp, RandomSkip(0.3), images, labels, "sample", draws)
    assert episode.log_probs.isfinite().all() and 0.2 < episode.actions.mean() < 0.4
