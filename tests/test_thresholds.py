"""Tuned thresholds against their replay, against enumeration and against a cascade that defers by p1."""

import itertools
import math

import pytest
import torch
from toys import spoken, toy_chain, two_colours, written

from skipnet_rl.belief import Threshold, margin
from skipnet_rl.chain import Chain, ChainMDP
from skipnet_rl.evaluate import evaluate
from skipnet_rl.recording import Records
from skipnet_rl.thresholds import tune

MACS = [10, 40, 160]


def noisy(networks=3, size=200, classes=4, seed=0):
    """Networks of increasing accuracy and confidence."""
    draws = torch.Generator().manual_seed(seed)
    data = two_colours(size)
    right = torch.nn.functional.one_hot(data.labels, classes).double()[:, None]
    noise = torch.randn(size, networks, classes, generator=draws).double()
    logits = 4 * torch.arange(1, networks + 1)[:, None] ** 0.5 * right + 3 * noise
    records = written(data, logits.softmax(dim=2), MACS[:networks])
    members = [spoken(f"network {k}", MACS[k], classes, k) for k in range(networks)]
    return Chain(members), records


def replay(chain, records, tuned):
    return evaluate(ChainMDP(chain.mixed(tuned.mix)), tuned.policy(), records)


@pytest.mark.parametrize("networks", [2, 3])
@pytest.mark.parametrize("by", ["margin", "confidence"])
def test_what_was_promised_is_what_is_played(networks, by):
    chain, records = noisy(networks)
    whole, budgets = MACS[networks - 1], [0.3, 0.5, 0.8, 2.0]
    found = tune(records, whole, budgets, by=by, weights=[0.0, 0.4], shares=[0.6, 0.3])
    assert [tuned.budget for tuned in found] == budgets
    for tuned in found:
        done = replay(chain, records, tuned)
        assert done.accuracy == pytest.approx(tuned.accuracy, abs=1e-12)
        assert done.compute_flops.mean().item() == pytest.approx(tuned.macs / whole)
        assert done.compute_flops.mean().item() <= tuned.budget * (1 + 1e-9)
    accuracies = [tuned.accuracy for tuned in found]
    assert accuracies == sorted(accuracies)
    assert found[-1].accuracy > replay(chain, records, found[0]).accuracy


def test_two_networks_against_every_threshold():
    """No threshold at any mixing weight is better within the budget."""
    chain, records = noisy(2)
    weights = [0.0, 0.3, 0.6]
    (tuned,) = tune(records, 40, [0.6], weights=weights)
    sureness = margin(records.answers[:, 0, :-1]).sort().values
    count = int(0.35 * len(records))  # of the images may be asked about: 10 + 40 · 0.35 is 0.6 of 40
    best = max(
        evaluate(ChainMDP(chain.mixed(weight)), Threshold([float(sureness[count])]), records).accuracy
        for weight in weights
    )
    assert tuned.accuracy == best and len(tuned.mix) == len(tuned.thresholds) == 1


def test_ties_are_asked_about_together():
    chain, records = toy_chain(64)  # 32 images are as unsure as each other
    some, all_unsure = tune(records, 100, [0.3, 0.6], weights=[0.0])
    assert some.thresholds == (-math.inf,) and some.accuracy == 0.5
    assert replay(chain, records, all_unsure).accuracy == all_unsure.accuracy == 1
    assert all_unsure.macs == 10 + 50


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.777, 1.0])
def test_without_mixing_it_is_a_cascade_to_the_image(share):
    """The images of the smallest p1 get the second network's answer, as many as the budget pays for."""
    chain, records = noisy(2)
    first, second = (each[:, :-1].exp() for each in records.answers.unbind(dim=1))
    ascending = first.amax(dim=1).argsort()
    deferred = torch.zeros(len(records), dtype=torch.bool)
    deferred[ascending[: int(share * len(records) + 1e-9)]] = True
    answer = torch.where(deferred, second.argmax(dim=1), first.argmax(dim=1))
    (tuned,) = tune(records, 40, [(10 + 40 * share) / 40], by="confidence", weights=[0.0])
    done = replay(chain, records, tuned)
    assert torch.equal(done.correct, answer == records.labels)
    assert torch.equal(done.routes[:, 0], deferred)
    assert done.compute_flops.mean().item() == pytest.approx((10 + 40 * deferred.double().mean().item()) / 40)


def test_long_chains_are_searched_on_a_coarser_grid():
    chain, records = noisy(3, size=60)
    log_probs = records.answers[:, 2:].clone()
    records = Records(records.source, torch.cat([records.answers, log_probs], dim=1))
    (tuned,) = tune(records, 160, [1.0])
    assert len(tuned.mix) == len(tuned.thresholds) == 3
    members = [spoken(str(k), [*MACS, 160][k], 4, k) for k in range(4)]
    assert replay(Chain(members), records, tuned).accuracy == pytest.approx(tuned.accuracy)


def test_a_budget_below_the_first_network():
    _, records = noisy(2)
    with pytest.raises(ValueError, match=r"budget 0.2 is out of reach: the first network costs 0.2500"):
        tune(records, 40, [0.2, 0.5])


def test_weights_and_shares_are_those_of_the_grid():
    _, records = noisy(3)
    weights, shares = [0.1, 0.5], [0.5, 0.2]
    (tuned,) = tune(records, 160, [0.7], weights=weights, shares=shares)
    assert tuned.mix in list(itertools.product(weights, repeat=2))
    asked = (margin(records.answers[:, 0, :-1]) < tuned.thresholds[0]).double().mean().item()
    assert asked in (0.0, *shares)
