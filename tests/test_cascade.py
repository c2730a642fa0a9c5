"""A small network, and a large one for the images on which the small one is not confident."""

import json
import math

import pytest
import torch

from scripts import cascade, results
from scripts.cascade import Answers, threshold_for
from skipnet_rl.data import load_images
from skipnet_rl.evaluate import evaluate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.weights import build_backbone

DIGITS = {"small": "resnet20-rendered-digits", "large": "resnet110-rendered-digits", "beside": ()}
COST = results.mega_flops(20) / results.mega_flops(110)


def few(*given):
    return load_images(*given).first(100)


def answers(confidence, correct):
    return Answers(torch.tensor(confidence), torch.tensor(correct, dtype=torch.bool))


def test_by_hand():
    """Eight images, the two least confident ones deferred: the large network puts one of them right."""
    small = answers([0.9, 0.5, 0.6, 0.8, 0.7, 0.7, 0.7, 0.7], [1, 0, 0, 1, 1, 1, 0, 1])
    large = answers([0.1] * 8, [0, 1, 0, 0, 0, 0, 0, 0])
    correct, found = cascade.cascade(small, large, threshold_for(small.confidence, 0.25), cost=0.5)
    assert correct.tolist() == [True, True, False, True, True, True, False, True]
    assert found["deferred"] == 0.25 and found["compute_flops"] == 0.75 and found["accuracy"] == 0.75
    assert found["accuracy_ci95"] == pytest.approx(1.96 * math.sqrt(0.75 * 0.25 / 8))
    assert found["random_accuracy"] == pytest.approx(0.75 * 5 / 8 + 0.25 * 1 / 8)


@pytest.mark.parametrize(
    ("share", "threshold", "deferred"),
    [(0, -math.inf, 0), (0.25, 0.5, 1), (0.5, 0.6, 3), (0.75, 0.6, 3), (1, math.inf, 4)],
)
def test_a_threshold_defers_its_share_and_what_ties_with_it(share, threshold, deferred):
    confidence = torch.tensor([0.9, 0.5, 0.6, 0.6])
    assert threshold_for(confidence, share) == pytest.approx(threshold)
    assert (confidence <= threshold_for(confidence, share)).sum() == deferred


def test_the_threshold_is_the_validation_images(tmp_path, monkeypatch):
    """Where the test images are less confident, more of them are deferred than the budget says."""
    known = {
        ("val", 20): answers([0.2, 0.4, 0.6, 0.8], [0, 1, 1, 1]),
        ("val", 110): answers([0.9] * 4, [1, 1, 1, 0]),
        ("test", 20): answers([0.1, 0.3, 0.3, 0.9], [0, 0, 1, 0]),
        ("test", 110): answers([0.9] * 4, [1, 1, 1, 1]),
    }
    monkeypatch.setattr(cascade, "load_images", few)
    monkeypatch.setattr(Answers, "of", lambda net, images: known[images.split, net.depth])
    found = cascade.main(cascade.Options(**DIGITS, budgets=(COST + 0.5,), out=tmp_path))
    (row,) = found["rows"]
    assert row["threshold"] == pytest.approx(0.4)
    assert row["val_compute_flops"] == pytest.approx(COST + 0.5) and row["val_accuracy"] == 1
    assert row["deferred"] == 0.75 and row["compute_flops"] == pytest.approx(COST + 0.75)
    assert row["accuracy"] == 0.75 and row["random_accuracy"] == pytest.approx(0.25 * 0.25 + 0.75)
    assert row["mega_flops"] == pytest.approx(row["compute_flops"] * results.mega_flops(110))
    at_random, small, large = row["over"].values()
    assert list(row["over"])[0] == "random deferral"
    assert at_random["accuracy"] == pytest.approx(0.75 - 0.8125)
    assert small["accuracy"] == 0.5 and large["accuracy"] == -0.25
    # differences 1, 1, 0, 0 and 0, 0, 0, -1; Student's t of 3 degrees of freedom is 3.1824
    assert small["ci95"] == pytest.approx(3.1824 * math.sqrt(1 / 3) / 2, rel=1e-4)
    assert large["ci95"] == pytest.approx(3.1824 * 0.5 / 2, rel=1e-4)
    assert "| 91.1 | 75.0 | 75.00 ± 42.44 | -6.25 ± " in cascade.table(found)


def test_its_two_ends_are_the_two_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(cascade, "load_images", few)
    found = cascade.main(cascade.Options(**DIGITS, budgets=(COST + 0.999, COST + 0.001, 0.3), out=tmp_path))
    first, between, last = found["rows"]  # in the order of their cost
    test = few("rendered-digits", "test")
    nets = (build_backbone(depth, 10, "rendered-digits") for depth in (20, 110))
    small, large = (evaluate(RoutingMDP(net), AlwaysExecute(), test).accuracy for net in nets)
    assert first["deferred"] == 0 and first["accuracy"] == pytest.approx(small)
    assert last["deferred"] == 1 and last["accuracy"] == pytest.approx(large)
    assert last["compute_flops"] == pytest.approx(1 + COST)
    assert 0 < between["deferred"] < 0.5
    stored = json.loads((tmp_path / cascade.FILE).read_text())
    assert stored["rows"] == found["rows"] and stored["command"].startswith("python -m scripts.cascade")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"small": "resnet38-cifar10-sp"}, "no plain network 'resnet38-cifar10-sp' is shipped"),
        ({"small": "resnet20-cifar10"}, "resnet20-cifar10 is of cifar10, resnet110-rendered-digits of"),
        ({"budgets": (0.3, 0.1)}, "a budget of 0.1 is not between 0.1612 and 1.1612"),
        ({"budgets": (1.2,)}, "a budget of 1.2 is not between"),
    ],
)
def test_refused(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        cascade.main(cascade.Options(**{**DIGITS, **given}, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_picture_of_the_results_has_it(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(results.plots, "save_figure", lambda figure, path: drawn.append(figure))
    monkeypatch.setattr(results, "read", lambda out: [{"name": "SP", "distillation": 0.0}])
    monkeypatch.setattr(results, "table", lambda rows: "")
    row = {"mega_flops": 60.0, "accuracy": 0.916, "accuracy_ci95": 0.005}
    results.draw(tmp_path)
    for dataset in ("cifar10", "rendered-digits"):
        found = {"dataset": dataset, "depths": [14, 38], "rows": [row]}
        (tmp_path / cascade.FILE).write_text(json.dumps(found))
        if dataset == "cifar10":
            results.draw(tmp_path)
        else:
            with pytest.raises(ValueError, match="is of rendered-digits, the rows beside it of cifar10"):
                results.draw(tmp_path)
    labels = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in drawn]
    assert ["cascade of ResNet-14 and -38, ours" in each for each in labels] == [False, True]
    shipped = {"plain networks, ours", "ResNet-38 with gates, ours", "ResNet-110 with gates, ours"}
    assert shipped | {"one route for all images"} < set(labels[0])
