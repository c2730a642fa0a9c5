"""What decisions can know: a feature that determines the answer, noise, and features in a network."""

import json

import pytest
import torch
from toys import load_first

from benchmarks import information, predictors
from skipnet_rl.evaluate import evaluate
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.stored_networks import untrained
from skipnet_rl.weights import Opened, open_weights

SMALL, GATED = "resnet20-rendered-digits", "resnet110-rendered-digits-hrl"


@pytest.fixture(scope="module")
def example():
    """Features [400, 3], and two labels: by the sign of column 0, and by the size of column 1."""
    features = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    scaled = features * torch.tensor([1.0, 100.0, 1.0])  # a predictor sees them standardised
    return scaled, features[:, 0] > 0.5, features[:, 1].abs() > 1


def judged(features, positive, hidden):
    """Fitted to the first half, judged on the second."""
    scores = predictors.fit_best(features[:200], positive[:200], hidden)(features[200:])
    return predictors.area(scores, positive[200:])


@pytest.mark.parametrize("hidden", predictors.PREDICTORS.values())
def test_what_determines_the_label_has_area_1_and_noise_a_half(example, hidden, monkeypatch):
    monkeypatch.setattr(predictors, "DECAYS", (1e-3, 1e-2))
    features, positive, _ = example
    found = judged(features, positive, hidden)
    assert found["auc"] > 0.99 and found["auc_ci95"][1] == 1
    assert 0.4 < judged(features[:, 1:], positive, hidden)["auc"] < 0.6


def test_the_hidden_layer_sees_what_a_line_does_not(example, monkeypatch):
    monkeypatch.setattr(predictors, "DECAYS", (1e-3,))
    features, _, positive = example
    linear, hidden = (judged(features, positive, units) for units in (0, 8))
    assert linear["auc"] < 0.65 and hidden["auc"] > 0.95


@pytest.mark.parametrize("decays", [(1, 2, 3), (2, 3, 1)])
def test_the_weight_decay_is_chosen_by_the_images_left_out(example, decays, monkeypatch):
    """Predictors of weight decay 2 know the label, the others say the opposite."""
    features, positive, _ = example
    sizes = []

    def fit(inputs, targets, hidden, decay):
        sizes.append(len(inputs))
        return lambda others: others[:, 0] if decay == 2 else -others[:, 0]

    monkeypatch.setattr(predictors, "DECAYS", decays)
    monkeypatch.setattr(predictors, "fit", fit)
    assert predictors.fit_best(features, positive, 0)(features).equal(features[:, 0])
    assert sizes == [320] * 15 + [400]


def test_a_fit_is_the_same_each_time_and_leaves_the_global_stream_alone(example):
    features, positive, _ = example
    before = torch.get_rng_state()
    one, other = (predictors.fit(features, positive, 4, 1e-3)(features) for _ in range(2))
    assert torch.equal(one, other) and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", [SMALL, GATED])
def test_features_are_those_after_each_block_on_the_route_that_is_taken(name):
    opened, images = open_weights(name), load_first(3)("rendered-digits", "test")
    seen, played = information.look(opened, images), evaluate(opened.mdp(), opened.policy, images)
    assert torch.equal(seen.routes.bool(), played.routes)
    assert torch.equal(seen.logits.argmax(dim=1), played.predictions)
    mdp, (batch, labels) = opened.mdp().for_inference(), images.batch(torch.arange(3))
    state = mdp.initial(batch, labels)
    for features, action in zip(seen.features, [*played.routes.T, None], strict=True):
        assert torch.allclose(features, mdp.features(state), atol=1e-5)
        state = state if action is None else mdp.transition(state, action)


def test_labels_say_how_much_is_executed():
    assert information.label(38, torch.ones(2, 17)) == "the whole ResNet-38"
    assert information.label(8, torch.tensor([[1, 0], [0, 0]])) == "a ResNet-8 at 50% of its blocks"


def test_the_whole_of_it(tmp_path, monkeypatch):
    """A network that has learned nothing, then one that has."""
    known = {
        "new": Opened(untrained(8, 10), AlwaysExecute(), {"dataset": "rendered-digits"}),
        SMALL: open_weights(SMALL),
    }
    monkeypatch.setattr(information, "open_weights", known.__getitem__)
    monkeypatch.setattr(information, "load_images", load_first(100))
    monkeypatch.setattr(predictors, "DECAYS", (1e-2,))
    found = information.main(information.Options(pairs=(("new", SMALL),), out=tmp_path))
    (pair,) = json.loads((tmp_path / "information.json").read_text())["pairs"]
    assert pair == json.loads(json.dumps(found["pairs"][0]))
    assert [network["name"] for network in pair["networks"]] == ["new", SMALL]
    assert (pair["stages"], pair["images"]) == ([0, 1, 2], [100, 100])
    assert len(pair["blocks"]) == 3 and all(0.7 < share < 1 for share in pair["mended"])
    text = information.table(found)
    assert text.startswith("Wrong in the whole ResNet-8, right in the whole ResNet-20: ")
    assert "| block 1 | " in text and "| block 3 | " in text
    assert (tmp_path / "information.png").stat().st_size > 10_000


def test_blocks_that_change_nothing_share_a_row():
    area = {"auc": 0.5, "auc_ci95": [0.4, 0.6]}
    other = {"auc": 0.7, "auc_ci95": [0.6, 0.8]}
    pair = {
        "networks": [{"label": "a"}, {"label": "b"}],
        "mended": [0.1, 0.1],
        "margin": other,
        "blocks": [{"linear": each, "hidden": area} for each in (area, area, other)],
    }
    rows = information.table({"pairs": [pair]}).splitlines()[4:]
    assert rows[0] == "| blocks 1–2 | 0.50 (0.40 … 0.60) | 0.50 (0.40 … 0.60) |"
    assert rows[1].startswith("| block 3 | 0.70 ") and rows[2].startswith("| margin of the finished answer")


def test_gates_follow_their_network_to_the_device():
    opened = open_weights(GATED).on(torch.device("meta"))
    weights = [*opened.network.parameters(), *opened.policy.parameters()]
    assert {weight.device.type for weight in weights} == {"meta"}


def test_networks_of_two_data_sets_are_refused(tmp_path):
    pair, options = (SMALL, "resnet20-cifar10"), information.Options(out=tmp_path)
    with pytest.raises(ValueError, match="is for rendered-digits, resnet20-cifar10 for cifar10"):
        information.of_pair(pair, options, torch.device("cpu"))
