"""Two networks: the second one is asked about the images of which the first is not sure."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import load_first

from agents import cascade
from agents.common import subjects
from agents.evaluate import Subject
from scripts import results
from skipnet_rl.data import load_images
from skipnet_rl.data.imageset import ImageSet
from skipnet_rl.deferral import Answers, defer, threshold_for
from skipnet_rl.evaluate import evaluate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.problem import load_network
from skipnet_rl.resnet import ResNet
from skipnet_rl.statistics import wilson_interval
from skipnet_rl.weights import open_weights

SMALL, LARGE, GATED = (
    "resnet20-rendered-digits",
    "resnet110-rendered-digits",
    "resnet110-rendered-digits-hrl",
)
COST = results.mega_flops(20) / results.mega_flops(110)


@pytest.fixture
def few_images(monkeypatch):
    """Fifty images of each split."""
    for module in (cascade, subjects):
        monkeypatch.setattr(module, "load_images", load_first(50))


def options(out: Path, *pairs, **given):
    return cascade.Options(pairs=pairs or ((SMALL, LARGE),), **given, out=out)


def answers(confidence, correct, flops=None):
    flops = torch.full((len(confidence),), 1e6) if flops is None else torch.tensor(flops)
    return Answers(torch.tensor(confidence), torch.tensor(correct, dtype=torch.bool), flops)


def test_by_hand():
    """Eight images, the two least confident ones deferred: the second network puts one of them right."""
    first = answers([0.9, 0.5, 0.6, 0.8, 0.7, 0.7, 0.7, 0.7], [1, 0, 0, 1, 1, 1, 0, 1])
    second = answers([0.1] * 8, [0, 1, 0, 0, 0, 0, 0, 0], [2e6, 3e6, 5e6, 2e6, 2e6, 2e6, 2e6, 2e6])
    assert threshold_for(first, second, 1.9e6) == pytest.approx(0.5)
    correct, found = defer(first, second, threshold_for(first, second, 2e6))
    assert correct.tolist() == [True, True, False, True, True, True, False, True]
    assert found["deferred"] == 0.25 and found["accuracy"] == 0.75
    assert found["mega_flops"] == pytest.approx(1 + (3 + 5) / 8)
    assert found["accuracy_ci95"] == list(wilson_interval(6, 8))
    assert found["random_accuracy"] == pytest.approx(0.75 * 5 / 8 + 0.25 * 1 / 8)


@pytest.mark.parametrize(
    ("flops", "threshold", "deferred"),
    [(1e6, 0, 0), (1.49e6, 0, 0), (1.5e6, 0.5, 1), (2e6, 0.6, 3), (3e6, 1, 4)],
)
def test_a_threshold_defers_what_is_paid_for_and_what_ties_with_it(flops, threshold, deferred):
    confidence = [0.9, 0.5, 0.6, 0.6]
    first, second = answers(confidence, [0] * 4), answers(confidence, [0] * 4, [2e6] * 4)
    assert threshold_for(first, second, flops) == pytest.approx(threshold)
    assert (first.confidence <= threshold_for(first, second, flops)).sum() == deferred


def test_the_threshold_is_the_validation_images(few_images, tmp_path, monkeypatch):
    """Where the test images are less confident, more of them are deferred than the budget says."""
    small, large = ([1e6 * results.mega_flops(depth)] * 4 for depth in (20, 110))
    known = {
        ("val", 20): answers([0.2, 0.4, 0.6, 0.8], [0, 1, 1, 1], small),
        ("val", 110): answers([0.9] * 4, [1, 1, 1, 0], large),
        ("test", 20): answers([0.1, 0.3, 0.3, 0.9], [0, 0, 1, 0], small),
        ("test", 110): answers([0.9] * 4, [1, 1, 1, 1], large),
    }
    monkeypatch.setattr(
        cascade, "answers", lambda subject, images: known[images.split, subject.mdp.net.depth]
    )
    found = cascade.main(options(tmp_path, budgets=(COST + 0.5,)))
    (pair,) = found["cascades"]
    assert (pair["first"], pair["second"]) == (SMALL, LARGE)
    assert pair["depths"] == [20, 110] and pair["gates"] is False
    (row,) = pair["rows"]
    assert row["threshold"] == pytest.approx(0.4)
    assert row["val_compute_flops"] == pytest.approx(COST + 0.5) and row["val_accuracy"] == 1
    assert row["deferred"] == 0.75 and row["compute_flops"] == pytest.approx(COST + 0.75)
    assert row["accuracy"] == 0.75 and row["random_accuracy"] == pytest.approx(0.25 * 0.25 + 0.75)
    assert row["mega_flops"] == pytest.approx(row["compute_flops"] * results.mega_flops(110))
    at_random, first, second = row["over"].values()
    assert list(row["over"]) == ["random deferral", SMALL, LARGE]
    assert at_random["accuracy"] == pytest.approx(0.75 - 0.8125)
    assert first["accuracy"] == 0.5 and second["accuracy"] == -0.25
    # differences 1, 1, 0, 0 and 0, 0, 0, -1; Student's t of 3 degrees of freedom is 3.1824
    assert first["ci95"] == pytest.approx(3.1824 * math.sqrt(1 / 3) / 2, rel=1e-4)
    assert second["ci95"] == pytest.approx(3.1824 * 0.5 / 2, rel=1e-4)
    assert row["single"] == SMALL  # the other one alone would cost more
    text = cascade.table(found)
    assert f"| {SMALL} | 461.4 | 91.1 | 75.0 | 100.00 | 75.00 ± 32.69 | -6.25 ± " in text
    assert f"| -25.00 ± 79.56 | +50.00 ± 91.87 | {SMALL} |" in text


def test_its_two_ends_are_the_two_networks(few_images, tmp_path):
    found = cascade.main(options(tmp_path, budgets=(COST + 1, COST + 0.001, 0.3)))
    first, between, last = found["cascades"][0]["rows"]  # in the order of their cost
    test = load_images("rendered-digits", "test").first(50)
    nets = (load_network("auto", depth, 10, "rendered-digits") for depth in (20, 110))
    small, large = (evaluate(RoutingMDP(net), AlwaysExecute(), test).accuracy for net in nets)
    assert (first["deferred"], first["threshold"]) == (0, 0) and first["accuracy"] == pytest.approx(small)
    assert (last["deferred"], last["threshold"]) == (1, 1) and last["accuracy"] == pytest.approx(large)
    assert 0 < between["deferred"] < 0.5
    stored = json.loads((tmp_path / cascade.FILE).read_text())
    assert stored["cascades"] == found["cascades"]
    assert stored["command"].startswith("python -m agents.cascade")


def test_a_first_network_with_gates_costs_what_its_routes_cost(few_images, tmp_path):
    """A budget that a pair cannot have is left out of it."""
    pairs = ((GATED, LARGE), (SMALL, LARGE), (LARGE, SMALL))
    found = cascade.main(options(tmp_path, *pairs, budgets=(0.3, 0.6, 7)))
    (row,), (cheap, other), (behind,) = (each["rows"] for each in found["cascades"])
    assert [each["gates"] for each in found["cascades"]] == [True, False, False]
    gated = open_weights(GATED)
    alone = evaluate(gated.mdp(), gated.policy, load_images("rendered-digits", "test").first(50))
    assert row["compute_flops"] == pytest.approx(alone.compute_flops.mean().item() + row["deferred"])
    assert row["budget"] == other["budget"] == 0.6 and 0 < row["deferred"] < 0.3
    every = ["random deferral", GATED, LARGE, SMALL]
    assert list(cheap["over"]) == list(behind["over"]) == every and behind["budget"] == 7
    assert list(row["over"]) == [*every, f"from {SMALL}"] and list(other["over"]) == [*every, f"from {GATED}"]
    there, back = row["over"][f"from {SMALL}"], other["over"][f"from {GATED}"]
    assert there["accuracy"] == pytest.approx(row["accuracy"] - other["accuracy"]) == -back["accuracy"]
    tables = cascade.table(found).split("\n\n")
    firsts = [[line.split(" | ")[0][2:] for line in text.splitlines()[2:]] for text in tables]
    assert firsts == [[GATED, SMALL, SMALL], [LARGE]]  # a table for each second network


def test_images_are_brought_to_the_size_of_the_network():
    """As the environments do it; a network for images of 32 pixels, and images of 16."""
    pixels = torch.arange(6 * 3 * 16 * 16).mul(7).remainder(256).view(6, 3, 16, 16).byte()
    images = ImageSet("x", "val", pixels, torch.arange(6) % 2, ("a", "b"), (0.5,) * 3, (0.5,) * 3, flip=True)
    net = ResNet(8, 2).eval()
    subject = Subject("", {}, RoutingMDP(net), AlwaysExecute(), images, None)
    expected = evaluate(subject.mdp, subject.policy, images.sized(32))
    assert torch.equal(cascade.answers(subject, images).confidence, expected.confidence)
    assert not torch.equal(evaluate(subject.mdp, subject.policy, images).confidence, expected.confidence)


def test_the_best_alone_is_chosen_on_the_validation_images():
    """By the test images it would be "b"; "second" alone costs too much."""
    right = {
        "val": {"a": [1, 1], "b": [1, 0], "second": [1, 1]},
        "test": {"a": [0, 0], "b": [1, 1], "second": [1, 1]},
    }
    on_val, on_test = (
        {
            name: answers([0.4, 0.8], each, [4e6 if name == "second" else 1e6] * 2)
            for name, each in right[split].items()
        }
        for split in ("val", "test")
    )
    pair = ("b", "second")
    (row,) = cascade.rows_of(pair, {pair: {0.75: 0.4}}, on_val, on_test, 4e6)
    assert row["mega_flops"] == pytest.approx(3) and row["single"] == "a"


def test_only_the_default_pairs_have_others_beside_them():
    assert set(cascade.BESIDE) < set(cascade.Options().networks)
    assert options(Path("out")).networks == [SMALL, LARGE]
    assert options(Path("out"), beside=(GATED, SMALL)).networks == [SMALL, LARGE, GATED]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pairs": ()}, "no pairs given"),
        (
            {"budgets": (0.1, 1.2)},
            f"{SMALL} and {LARGE} can have none of the budgets; expected 0.1612 to 1.1612",
        ),
    ],
)
def test_refused(given, message, few_images, tmp_path):
    with pytest.raises(ValueError, match=message):
        cascade.main(replace(options(tmp_path / "out"), **given))
    assert not (tmp_path / "out").exists()


def test_the_picture_of_the_results_has_them(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(results.plots, "save_figure", lambda figure, path: drawn.append(figure))
    monkeypatch.setattr(results, "read", lambda out: [{"name": "SP", "distillation": 0.0}])
    monkeypatch.setattr(results, "table", lambda rows: "")
    row = {"mega_flops": 60.0, "accuracy": 0.916, "accuracy_ci95": 0.005}  # as older files have it
    cascades = [{"depths": [14, 38], "gates": gates, "rows": [row]} for gates in (False, True)]
    results.draw(tmp_path)
    for dataset in ("cifar10", "rendered-digits"):
        (tmp_path / cascade.FILE).write_text(
            json.dumps({"dataset": dataset, "n_images": 9, "cascades": cascades})
        )
        if dataset == "cifar10":
            results.draw(tmp_path)
        else:
            with pytest.raises(ValueError, match="is for rendered-digits, the rows beside it for cifar10"):
                results.draw(tmp_path)
    before, after = ([text.get_text() for text in figure.legends[0].get_texts()] for figure in drawn)
    assert after == [
        *before,
        "ResNet-14, then ResNet-38, ours",
        "ResNet-14 with gates, then ResNet-38, ours",
    ]
    shipped = {"plain networks, ours", "ResNet-38 with gates, ours", "ResNet-110 with gates, ours"}
    assert shipped | {"one route for all images"} < set(before)
    lines = [[line.get_xydata().tolist() for line in figure.axes[0].lines] for figure in drawn]
    added = [line for line in lines[1] if line not in lines[0]]
    assert sum(line == [[60.0, pytest.approx(91.6)]] for line in added) == 2


@pytest.mark.parametrize(
    "budgets, missing",
    [
        ((0.25, 0.5), []),
        ((0.1, 0.25, 0.5), ["0.1"]),
        ((2, 0.5, 0.1, 2), ["0.1, 2"]),
        ((), []),
    ],
)
def test_budgets_that_are_left_out_are_said(budgets, missing):
    had = {("a", "b"): {0.25: 0.0, 0.5: 0.0}, ("c", "b"): {budget: 1.0 for budget in budgets}}
    expected = [f"a and b cannot have budget {each}; left out" for each in missing]
    assert cascade.left_out(had, budgets) == expected
