"""Beliefs against closed forms, also for confident answers; policies that decide by belief."""

import math

import pytest
import torch
from toys import toy_chain

from skipnet_rl.belief import BeliefGate, Threshold, belief, belief_size, doubt, entropy, margin
from skipnet_rl.chain import ChainMDP
from skipnet_rl.policies import policy_macs


def test_belief_by_hand():
    probabilities = torch.tensor([[0.1, 0.6, 0.25, 0.05]]).double()
    expected = [
        math.log(0.6),
        math.log(0.25),
        math.log(0.1),
        math.log(0.6 / 0.25),
        -sum(p * math.log(p) for p in (0.1, 0.6, 0.25, 0.05)),
        math.log(0.4),
    ]
    torch.testing.assert_close(belief(probabilities.log()), torch.tensor([expected]).double())
    assert belief(probabilities.log()).shape[1] == belief_size(4) == 6


def test_two_classes_have_two_log_probabilities():
    answer = torch.tensor([[0.2, 0.8]]).double().log()
    assert belief(answer).shape[1] == belief_size(2) == 5


def test_a_sure_answer_does_not_saturate():
    """Logits 0 and nine times -80: 1 - p1 is 9 e^-80, where float32 arithmetic on p1 would give 0."""
    logits = torch.tensor([[0.0] + [-80.0] * 9, [0.0] + [-90.0] * 9])
    answer = logits.double().log_softmax(dim=1)
    torch.testing.assert_close(doubt(answer), torch.tensor([math.log(9) - 80, math.log(9) - 90]).double())
    torch.testing.assert_close(margin(answer), torch.tensor([80.0, 90.0]).double())
    seen = belief(answer).float()
    assert seen.isfinite().all() and (seen[0] != seen[1]).any()
    assert (1 - logits.softmax(dim=1).amax(dim=1) == 0).all()


def test_entropy_of_a_uniform_answer_is_log_k():
    answer = torch.full((1, 10), -math.log(10)).double()
    torch.testing.assert_close(entropy(answer), torch.tensor([math.log(10)]).double())
    torch.testing.assert_close(doubt(answer), torch.tensor([math.log(0.9)]).double())
    assert margin(answer).item() == 0


def test_threshold_asks_below_its_confidence():
    chain, records = toy_chain(8)
    mdp = ChainMDP(chain)
    state = mdp.initial(*records.batch(torch.arange(8)))
    sure = [True, True, False, False] * 2
    # margins are log(0.99 / 0.01) = 4.6 and log(0.55 / 0.45) = 0.2; -log(1 - p1) is 4.6 and 0.8
    for by, least, threshold in (("margin", 0.2, 1.0), ("confidence", 0.7, 2.0)):
        assert (Threshold([threshold], by)(mdp, state, None)[0] > 0).tolist() == [not each for each in sure]
        assert not (Threshold([least], by)(mdp, state, None)[0] > 0).any()
        assert not (Threshold([-math.inf], by)(mdp, state, None)[0] > 0).any()
        assert (Threshold([math.inf], by)(mdp, state, None)[0] > 0).all()
    assert policy_macs(Threshold([1.0])) == 0


def test_threshold_on_an_exact_tie_does_not_ask():
    chain, records = toy_chain(4)
    mdp = ChainMDP(chain)
    state = mdp.initial(*records.batch(torch.arange(4)))
    exact = margin(state.answer)[2].item()
    assert not (Threshold([exact])(mdp, state, None)[0] > 0).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], "margins"), "unknown measure of sureness 'margins'; did you mean 'margin'"),
        (([math.nan],), "one number per decision"),
        (([[1.0]],), "one number per decision"),
    ],
)
def test_invalid_thresholds(arguments, message):
    with pytest.raises(ValueError, match=message):
        Threshold(*arguments)


def test_belief_gate_by_hand():
    """A tenth of the belief, and the decision's one-hot as it is."""
    chain, _ = toy_chain(4)
    mdp = ChainMDP(chain)
    gate = BeliefGate(mdp, width=1)
    for parameter, value in zip(gate.parameters(), (1.0, 0.5, 2.0, -0.25), strict=True):
        torch.nn.init.constant_(parameter, value)
    observation = torch.zeros(2, mdp.observation_size)
    observation[0, :2] = torch.tensor([-4.0, -6.0])
    observation[1, -1] = 1
    expected = [2 * math.tanh(-0.4 - 0.6 + 0.5) - 0.25, 2 * math.tanh(1 + 0.5) - 0.25]
    assert gate.decide(observation).tolist() == pytest.approx(expected)


def test_belief_gate_starts_at_one_half_and_counts_its_macs():
    chain, records = toy_chain(4)
    mdp = ChainMDP(chain)
    gate = BeliefGate(mdp)
    logit, _ = gate(mdp, mdp.initial(*records.batch(torch.arange(4))), None)
    assert logit.tolist() == [0] * 4
    assert policy_macs(gate) == 6 * 16 + 16  # five numbers of two classes and the one-hot of one decision
    gate.num_decisions = 3
    assert gate.macs_per_decision() == [6 * 16 + 16] * 3
