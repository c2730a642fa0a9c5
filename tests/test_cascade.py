"""A small network, and a large one for the images of which the small one is not sure."""

import json
import math

import pytest
import torch

from scripts import cascade, results
from scripts.cascade import Answers, threshold
from skipnet_rl.data import load_images
from skipnet_rl.evaluate import evaluate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.weights import build_backbone

DIGITS = {"small": "resnet20-rendered-digits", "large": "resnet110-rendered-digits"}


def few(*given):
    return load_images(*given).first(100)


def test_by_hand():
    """Four images: of the two least sure ones the large network puts one right and keeps one wrong."""
    small = Answers(torch.tensor([0.9, 0.5, 0.6, 0.8]), torch.tensor([True, False, False, True]))
    large = Answers(torch.tensor([0.9, 0.9, 0.9, 0.9]), torch.tensor([False, True, False, False]))
    limit = threshold(small.confidence, 0.5)
    assert limit == pytest.approx(0.6)
    found = cascade.cascade(small, large, limit, cost=0.25)
    assert found["passed_on"] == 0.5 and found["compute_flops"] == 0.75
    assert found["accuracy"] == 0.75  # images 0 and 3 by the small network, image 1 by the large
    assert found["random_accuracy"] == pytest.approx(0.5 * 0.5 + 0.5 * 0.25)
    assert found["over_small"] == pytest.approx(0.25) and found["over_large"] == pytest.approx(0.5)
    # differences to the large one: 1, 0, 0, 1; Student's t of 3 degrees of freedom
    assert found["over_large_ci95"] == pytest.approx(3.1824 * math.sqrt(1 / 3) / 2, rel=1e-4)


@pytest.mark.parametrize(("share", "passed"), [(0, 0), (0.2, 1), (0.5, 2), (1, 4)])
def test_a_threshold_passes_on_its_share(share, passed):
    confidence = torch.tensor([0.9, 0.5, 0.6, 0.8])
    assert (confidence <= threshold(confidence, share)).sum() == passed


def test_its_two_ends_are_the_two_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(cascade, "load_images", few)
    nets = {part: build_backbone(depth, 10, "rendered-digits", "projection", name)
            for (part, name), depth in zip(DIGITS.items(), (20, 110), strict=True)}  # fmt: skip
    cost = results.mega_flops(20) / results.mega_flops(110)
    found = cascade.main(cascade.Options(**DIGITS, budgets=(cost + 0.999, cost + 0.001, 0.3), out=tmp_path))
    first, between, last = found["rows"]  # in the order of their cost
    test = few("rendered-digits", "test")
    alone = {part: evaluate(RoutingMDP(net), AlwaysExecute(), test) for part, net in nets.items()}
    assert first["passed_on"] == 0 and first["accuracy"] == pytest.approx(alone["small"].accuracy)
    assert last["passed_on"] == 1 and last["accuracy"] == pytest.approx(alone["large"].accuracy)
    assert last["compute_flops"] == pytest.approx(1 + cost)
    assert last["mega_flops"] == pytest.approx(last["compute_flops"] * results.mega_flops(110))
    assert 0 < between["passed_on"] < 0.5
    stored = json.loads((tmp_path / cascade.FILE).read_text())
    assert stored["rows"] == found["rows"] and stored["command"].startswith("python -m scripts.cascade")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"small": "resnet38-cifar10-sp"}, "no plain network 'resnet38-cifar10-sp' is shipped"),
        ({"small": "resnet20-cifar10"}, "resnet20-cifar10 is of cifar10, resnet110-rendered-digits of"),
        ({"budgets": (0.3, 0.1)}, "a budget of 0.1 is not between 0.161 and 1.161"),
        ({"budgets": (1.2,)}, "a budget of 1.2 is not between"),
    ],
)
def test_refused(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        cascade.main(cascade.Options(**{**DIGITS, **given}, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_picture_has_it(tmp_path):
    row = {"mega_flops": 60.0, "accuracy": 0.916, "accuracy_ci95": 0.005}
    for rows, expected in (([], 0), ([row], 1)):
        legend = results.picture([], rows).legends[0]
        labels = [text.get_text() for text in legend.get_texts()]
        assert labels.count("cascade of two plain ones, ours") == expected
