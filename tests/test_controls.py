"""What a chain's decisions are compared with, against enumeration."""

import pytest
import torch
from test_chain import every_route as routes_of
from test_thresholds import MACS, noisy
from toys import Replay, toy_chain

from skipnet_rl.chain import ChainMDP
from skipnet_rl.controls import every_route
from skipnet_rl.evaluate import evaluate
from skipnet_rl.thresholds import tune


def test_every_route_is_played_on_every_image():
    chain, records = noisy(3, size=40)
    mdp = ChainMDP(chain.mixed(0.2))
    played = every_route(mdp, records)
    assert played.routes.tolist() == routes_of(2).tolist()
    taken = torch.randint(0, 2, (40, 2), generator=torch.Generator().manual_seed(0)).bool()
    done = evaluate(mdp, Replay(taken), records, routes=taken)
    number = taken.long() @ torch.tensor([2, 1])
    index = torch.arange(40)
    assert torch.equal(played.correct[number, index], done.correct)
    assert torch.equal(played.compute_flops[number, index], done.compute_flops)


def test_routes_at_random_are_the_mean_over_permutations():
    """Half of the toy's images are asked about: at random the unsure half is right every other time."""
    chain, records = toy_chain(8)
    taken = torch.tensor([[False], [False], [True], [True]] * 2)
    chance = every_route(ChainMDP(chain), records).dealt_out(taken)
    assert chance.tolist() == [1, 1, 0.5, 0.5] * 2


def test_one_route_for_all_costs_no_more():
    chain, records = noisy(3, size=20)
    played = every_route(ChainMDP(chain), records)
    shares = [10 / 160, 170 / 160, 50 / 160, 210 / 160]  # of routes 00, 01, 10 and 11
    assert played.compute_flops.mean(dim=1).tolist() == pytest.approx(shares)
    assert played.fixed(0.4).tolist() == [0, 2] and played.fixed(2).tolist() == [0, 1, 2, 3]


def test_deciding_by_the_image_is_worth_something_on_the_toy():
    chain, records = toy_chain()
    mdp = ChainMDP(chain)
    (tuned,) = tune(records, MACS[0] * 10, [0.7], weights=[0.0])
    done, played = evaluate(mdp, tuned.policy(), records), every_route(mdp, records)
    assert done.accuracy == 1 and played.dealt_out(done.routes).mean() == 0.75
    assert played.correct[played.fixed(0.7)].double().mean(dim=1).tolist() == [0.5]
