"""Evaluations against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from skipnet_rl.evaluate import (
    Evaluation,
    evaluate,
    load_records,
    most_frequent,
    save_evaluations,
    usual_batch_size,
)
from skipnet_rl.flops import network_macs
from skipnet_rl.gates import RecurrentGate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute, Biased, Exploring, RandomSkip, policy_macs
from skipnet_rl.rollout import rollout


def test_summary_by_hand():
    # four images, N = 2; executed 0, 1, 1, 2: mean 1, variance (1 + 0 + 0 + 1) / 4 = 1/2;
    # blocks (1 + 2 + 2 + 3) / 4 / 3 = 2/3; three of four right, with z² = 3.841459: the middle of the
    # interval is (3 + z²/2) / (4 + z²) = 0.627527, its half width z √(3/4 + z²/4) / (4 + z²) = 0.326885
    result = Evaluation(
        routes=torch.tensor([[0, 0], [0, 1], [0, 1], [1, 1]]).bool(),
        predictions=torch.tensor([1, 2, 3, 4]),
        correct=torch.tensor([True, True, False, True]),
        confidence=torch.tensor([0.6, 0.4, 0.5, 0.6]),
        loss=torch.tensor([0.5, 1.0, 2.0, 0.5]),
        returns=torch.tensor([0.0, -1.0, -2.0, 1.0]),
        compute_flops=torch.tensor([0.25, 0.5, 0.5, 1.0]).double(),
    )
    assert result.rate == 0.5
    assert result.accuracy == 0.75
    expected = {
        "name": "some policy",
        "accuracy": 0.75,
        "accuracy_ci95": pytest.approx([0.300642, 0.954413], abs=1e-6),
        "loss": 1.0,
        "return": -0.5,
        "executed_blocks_mean": 1.0,
        "executed_blocks_std": pytest.approx(math.sqrt(0.5)),
        "compute_blocks": pytest.approx(2 / 3),
        "compute_flops": 0.5625,
        "compute_flops_std": pytest.approx(math.sqrt(0.07421875)),  # mean of squares 0.390625 - 0.5625²
        "policy_flops": 0.0,
        "unique_routes": 3,
        "executed_blocks_histogram": [1, 2, 1],
        "execution_rate": [0.25, 0.75],
    }
    assert result.summary("some policy") == expected


def test_every_image_once_in_order(tiny_net, tiny_images):
    mdp = RoutingMDP(tiny_net, alpha=0.5)
    result = evaluate(mdp, AlwaysExecute(), tiny_images, batch_size=5)  # 5 + 5 + 2
    with torch.no_grad():
        logits = tiny_net(tiny_images.normalise(tiny_images.images))
    assert torch.equal(result.predictions, logits.argmax(1))
    assert torch.equal(result.correct, logits.argmax(1) == tiny_images.labels)
    loss = torch.nn.functional.cross_entropy(logits, tiny_images.labels, reduction="none")
    torch.testing.assert_close(result.loss, loss, rtol=1e-4, atol=1e-4)
    highest = logits.double().softmax(1).max(1)
    torch.testing.assert_close(result.confidence, highest.values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.returns, -loss, rtol=1e-4, atol=1e-4)
    assert result.routes.all()
    assert result.compute_flops.tolist() == [1.0] * 12


def test_results_do_not_depend_on_the_batch_size(tiny_net, tiny_images):
    torch.manual_seed(0)
    gate = RecurrentGate(tiny_net, initial_rate=0.5)
    torch.nn.init.normal_(gate.head.weight)
    mdp = RoutingMDP(tiny_net, alpha=0.5)
    one, many = (evaluate(mdp, gate, tiny_images, batch_size=size) for size in (1, 7))
    assert 0 < one.rate < 1
    assert torch.equal(one.routes, many.routes)
    assert torch.equal(one.predictions, many.predictions)
    torch.testing.assert_close(one.loss, many.loss, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.returns, many.returns, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.compute_flops, many.compute_flops)


@pytest.mark.parametrize(
    "device, size, expected", [("cpu", 32, 125), ("cuda", 32, 1_000), ("cuda", 64, 1_000), ("cuda", 224, 125)]
)
def test_large_images_are_evaluated_in_small_batches(device, size, expected):
    assert usual_batch_size(torch.device(device), size) == expected


def test_gates_are_counted_in_flops(tiny_net, tiny_images):
    torch.manual_seed(0)
    gate = RecurrentGate(tiny_net)  # executes everything at first
    result = evaluate(RoutingMDP(tiny_net), gate, tiny_images)
    assert result.routes.all()
    # ResNet-20, option B: 40,813,184 MACs; its eight gate decisions 9,200
    assert result.compute_flops.tolist() == pytest.approx([1 + 9_200 / 40_813_184] * 12, abs=1e-12)
    assert result.policy_flops == pytest.approx(9_200 / 40_813_184)
    for wrapped in (Biased(gate, 0.0), Exploring(gate, 0.05)):
        assert policy_macs(wrapped) == policy_macs(gate)


def test_the_most_frequent_route():
    routes = torch.tensor([[1, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 0]]).bool()
    assert most_frequent(routes).tolist() == [True, True, False]
    assert most_frequent(routes[1:]).tolist() == [False, False, True]  # of three the smallest number


def test_no_images_is_an_error(tiny_net, tiny_images):
    with pytest.raises(ValueError, match="has no images; expected at least one"):
        evaluate(RoutingMDP(tiny_net), AlwaysExecute(), tiny_images.first(0))


def test_damaged_records_are_named_errors(tiny_net, tiny_images, tmp_path):
    """Every third byte changed: the file reads as it was, or the error is a named one."""
    path = tmp_path / "routes.npz"
    done = evaluate(RoutingMDP(tiny_net), AlwaysExecute(), tiny_images)
    save_evaluations(path, {"all blocks": done})
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            load_records(path)
        except ValueError:
            refused += 1
    assert refused > len(whole) / 10
    np.save(tmp_path / "routes.npy", np.zeros(3))
    with pytest.raises(ValueError, match="does not hold routes"):
        load_records(tmp_path / "routes.npy")


def test_skipped_blocks_are_saved_in_flops(tiny_net, tiny_images):
    result = evaluate(RoutingMDP(tiny_net, alpha=1.0), RandomSkip(0.0), tiny_images, mode="sample")
    # of 40,813,184 stay the stem, the first block, the classifier and the two projections:
    # 442,368 + 4,718,592 + 640 + 262,144 = 5,423,744
    assert result.compute_flops.tolist() == pytest.approx([5_423_744 / 40_813_184] * 12, abs=1e-12)
    torch.testing.assert_close(result.returns, 1 - result.loss, rtol=1e-5, atol=1e-5)  # alpha saved in full
    assert network_macs(tiny_net).total == 40_813_184


def test_macs_are_counted_once(tiny_net, tiny_images, monkeypatch):
    """Counting takes half a second for a ResNet-110 and as much for its gates."""
    gate, counted = RecurrentGate(tiny_net), []
    each = gate.macs_per_decision()
    monkeypatch.setattr("skipnet_rl.mdp.network_macs", lambda net: counted.append(net) or network_macs(net))
    mdp = RoutingMDP(tiny_net, cost="flops")
    monkeypatch.setattr(gate, "macs_per_decision", lambda: counted.append(gate) or each)
    flops = [evaluate(mdp, gate, tiny_images).compute_flops.tolist() for _ in range(2)]
    assert counted == [tiny_net, gate]
    assert flops[0] == flops[1] == pytest.approx([1 + sum(each) / 40_813_184] * 12, abs=1e-12)


def test_sampling_repeats_with_its_generator(tiny_net, tiny_images):
    mdp = RoutingMDP(tiny_net)

    def routes(seed):
        draws = torch.Generator().manual_seed(seed)
        return evaluate(mdp, RandomSkip(0.5), tiny_images, mode="sample", generator=draws).routes

    assert torch.equal(routes(1), routes(1))
    assert not torch.equal(routes(1), routes(2))


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_restored_and_weights_unchanged(tiny_net, tiny_images, training):
    gate = RecurrentGate(tiny_net)
    tiny_net.train(training)
    gate.train(not training)
    before = {name: value.clone() for name, value in tiny_net.state_dict().items()}
    evaluate(RoutingMDP(tiny_net), gate, tiny_images)
    assert tiny_net.training == training
    assert tiny_net.blocks[3].bn1.training == training
    assert gate.training != training
    assert all(torch.equal(value, before[name]) for name, value in tiny_net.state_dict().items())


def test_evaluation_is_in_evaluation_mode(tiny_net, tiny_images):
    """Running statistics: an image's result does not depend on the other images of its batch."""
    tiny_net.train()
    result = evaluate(RoutingMDP(tiny_net), AlwaysExecute(), tiny_images)
    images, labels = tiny_images.batch(torch.arange(12))
    tiny_net.eval()
    with torch.no_grad():
        expected = rollout(RoutingMDP(tiny_net), AlwaysExecute(), images, labels)
    torch.testing.assert_close(result.loss, expected.loss)


def test_bfloat16_is_close_to_float32(tiny_net, tiny_images):
    mdp = RoutingMDP(tiny_net)
    full, half = (evaluate(mdp, AlwaysExecute(), tiny_images, precision=p) for p in ("fp32", "bf16"))
    assert half.loss.dtype == torch.float32
    assert not torch.equal(full.loss, half.loss)  # it did run in bf16
    torch.testing.assert_close(full.loss, half.loss, rtol=0.1, atol=0.1)
