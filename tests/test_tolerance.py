"""Cost of skips, measured against routes played one by one."""

import pytest
import torch
from toys import toy_net, two_colours

from skipnet_rl.data import load_images
from skipnet_rl.evaluate import evaluate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute, FixedRoute
from skipnet_rl.problem import load_network
from skipnet_rl.tolerance import SKIPPED, Tolerance, absence_costs, falling_rates, measure_tolerance


@pytest.fixture(scope="module")
def images():
    return load_images("rendered-digits", "val").first(40)


@pytest.fixture(scope="module")
def mdp():
    return RoutingMDP(load_network("auto", 20, 10, "rendered-digits"))


def test_absence_costs_are_those_of_routes_without_one_block(mdp, images):
    shown: list[tuple[int, int]] = []
    found = absence_costs(mdp, images, batch_size=16, progress=lambda *counts: shown.append(counts))
    assert shown[-1] == (len(images), len(images)) and len(shown) == -(-len(images) // 16)
    whole = evaluate(mdp, AlwaysExecute(), images).loss.double().mean()
    for t in range(mdp.num_decisions):
        route = torch.ones(mdp.num_decisions)
        route[t] = 0
        alone = evaluate(mdp, FixedRoute(route), images).loss.double().mean() - whole
        assert found[t].item() == pytest.approx(alone.item(), abs=1e-5)
    assert found.max() > 0.1, "no block matters: the test could not fail"


def test_absence_costs_do_not_change_the_network(mdp, images):
    before = {name: value.clone() for name, value in mdp.net.state_dict().items()}
    absence_costs(mdp, images.first(4))
    assert all(torch.equal(before[name], value) for name, value in mdp.net.state_dict().items())


def test_tolerance_tells_the_networks_apart(images):
    """ResNet-110's weights were trained with skips, ResNet-20's were not."""
    plain, skips = (
        measure_tolerance(RoutingMDP(load_network("auto", depth, 10, "rendered-digits")), images)
        for depth in (20, 110)
    )
    assert not plain.prepared and skips.prepared
    assert plain.whole >= 0.95 and plain.skipping < plain.whole
    assert "of 40 validation images" in str(plain) and f"{plain.skipping:.1%} with" in str(plain)


def test_tolerance_of_the_toy_is_what_its_one_needed_block_costs():
    """One image in ten skips the needed block and is then right half of the time."""
    data = two_colours(256)
    found = measure_tolerance(RoutingMDP(toy_net(data)), data)
    assert found.images == len(data) and found.whole == 1.0
    assert found.skipping == pytest.approx(0.95, abs=0.04) and found.skipping < 1
    assert found.seconds_per_image > 0


def test_the_skips_depend_on_the_seed_alone(tiny_net, tiny_images):
    shown: list[tuple[int, int]] = []

    def measured(seed, progress=lambda done, total: None):
        found = measure_tolerance(RoutingMDP(tiny_net), tiny_images, seed=seed, progress=progress)
        return found.whole, found.skipping

    before = torch.get_rng_state()
    assert measured(3) == measured(3, lambda *counts: shown.append(counts))
    assert torch.equal(torch.get_rng_state(), before)
    assert shown == [(12, 24), (24, 24)]
    assert len({measured(seed) for seed in range(6)}) > 1


@pytest.mark.parametrize(
    "whole, skipping, prepared", [(0.9, 0.86, True), (0.9, 0.84, False), (0.5, 0.6, True), (0.05, 0.0, True)]
)
def test_prepared(whole, skipping, prepared):
    assert Tolerance(100, whole, skipping, 0.0).prepared == prepared


@pytest.mark.parametrize(
    "right, images, above",  # Wilson's interval of 2 in 10 begins at 0.057, of 20 in 100 at 0.133
    [(2, 10, False), (20, 100, True), (10, 100, False), (0, 100, False)],
)
def test_above_chance_is_beyond_doubt(right, images, above):
    assert Tolerance(images, right / images, 0.0, 0.0).above_chance(10) == above


@pytest.mark.parametrize(
    "payment, left_out",
    [
        ([0.0] * 4, [1]),  # at least one
        ([0.03] * 4, [1]),
        ([0.05] * 4, [1, 3]),  # four times that is 0.2, which block 3 costs
        ([9.0] * 4, [1, 3]),  # half of them at most
        ([0.0, 0.0, 0.6, 0.0], [2]),  # a dear block may be worth its absence
        ([0.2, 0.0, 0.6, 0.06], [0, 2]),  # the most is gained by leaving out these two
    ],
)
def test_falling_rates_lower_those_of_dispensable_blocks_alone(payment, left_out):
    costs = torch.tensor([0.5, 0.1, 2.0, 0.2], dtype=torch.float64)
    assert falling_rates(costs, payment, 0.0).tolist() == [1, 1, 1, 1]
    halfway, end = falling_rates(costs, payment, 0.5), falling_rates(costs, payment, 1.0)
    for block in range(4):
        assert end[block] == pytest.approx(SKIPPED if block in left_out else 1)
        assert halfway[block] == pytest.approx((1 + SKIPPED) / 2 if block in left_out else 1)


def test_blocks_that_help_by_their_absence_are_left_out_for_nothing():
    costs = torch.tensor([0.6, -0.2, -0.1, 5.0, 5.0, 5.0])
    assert (falling_rates(costs, [0.0] * 6, 1.0) < 1).tolist() == [False, True, True, False, False, False]


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_invalid_progress(progress):
    with pytest.raises(ValueError, match="expected a number between 0 and 1"):
        falling_rates(torch.ones(3), [0.0] * 3, progress)
