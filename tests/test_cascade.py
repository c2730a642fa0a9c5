"""The study of cascades: chains with tuned thresholds, beside what they have to beat."""

import json

import pytest
import torch
from toys import load_first, spoken, two_colours, written

from agents import cascade
from skipnet_rl.catalogue import index
from skipnet_rl.chain import Chain
from skipnet_rl.evaluate import evaluate
from skipnet_rl.weights import open_weights

SMALL, LARGE, GATED = (
    "resnet20-rendered-digits",
    "resnet110-rendered-digits",
    "resnet110-rendered-digits-hrl",
)
COST = open_weights(SMALL).mdp().macs.total / open_weights(LARGE).mdp().macs.total


@pytest.fixture
def images(monkeypatch):
    """`load_images`, fifty images of each split."""
    load = load_first(50)
    monkeypatch.setattr(cascade, "load_images", load)
    return load


def options(out, *chains, **given):
    given = {"dataset": "rendered-digits", "device": "cpu", "out": out, **given}
    return cascade.Options(chains or (f"{SMALL},{LARGE}",), **given)


def test_the_study(images, tmp_path):
    chains = (f"{SMALL},110", "20,14,110")
    found = cascade.main(options(tmp_path, *chains, beside=("14",), budgets=(0.02, 0.4, 1.5)))
    stored = json.loads((tmp_path / cascade.FILE).read_text())
    assert stored["rows"][0]["chain"] == chains[0]
    assert stored["command"].startswith("python -m agents.cascade")
    assert [row["budget"] for row in found["rows"]] == [0.4, 1.5] * 2  # ResNet-20 costs more than 0.02
    # ResNet-20 is shipped and named twice; ResNet-14 is not shipped for this data set, and untrained
    assert list(found["networks"]) == [SMALL, LARGE, "14"]
    for row in found["rows"]:
        assert set(row["over"]) == {cascade.AT_RANDOM, cascade.ONE_ROUTE, *found["networks"]}
        assert len(row["asked"]) == len(row["networks"]) - 1 == len(row["mix"]) == len(row["thresholds"])
        assert row["single"] in found["networks"]
    text = cascade.table(found)
    assert text.count("\n") == 2 + 4 and f"{SMALL},110" in text


def test_without_mixing_its_two_ends_are_the_two_networks(images, tmp_path):
    found = cascade.main(options(tmp_path, budgets=(COST + 1, COST + 0.001, 0.3), mix=(0.0,)))
    first, between, last = found["rows"]  # in the order of their cost
    small, large = (found["networks"][name]["accuracy"] for name in (SMALL, LARGE))
    assert first["asked"] == [0] and first["accuracy"] == small
    assert last["asked"] == [1] and last["accuracy"] == large
    assert 0 < between["asked"][0] < 0.5
    assert first["mix"] == between["mix"] == last["mix"] == (0,)


@pytest.mark.parametrize("mix", [(0.25,), (0.1, 0.5)])
def test_weights_are_chosen_among_those_given(mix, images, tmp_path):
    found = cascade.main(options(tmp_path, budgets=(0.5,), mix=mix))
    assert found["rows"][0]["mix"][0] in mix


def test_a_first_network_with_gates_costs_what_its_routes_cost(images, tmp_path):
    found = cascade.main(options(tmp_path, f"{GATED},{LARGE}", budgets=(0.3, 0.6, 7)))
    row, _ = found["rows"]  # the gates' network costs more than 0.3
    gated = open_weights(GATED)
    alone = evaluate(gated.mdp(), gated.policy, images("rendered-digits", "test"))
    assert row["budget"] == 0.6 and 0 < row["asked"][0] < 0.3
    assert row["compute_flops"] == pytest.approx(alone.compute_flops.mean().item() + row["asked"][0])


def test_a_chain_that_can_have_no_budget_is_left_out(images, tmp_path):
    found = cascade.main(options(tmp_path, f"{LARGE},{SMALL}", f"{SMALL},{LARGE}", budgets=(0.3,)))
    assert [row["chain"] for row in found["rows"]] == [f"{SMALL},{LARGE}"]


def records(right, macs):
    """What networks answer: whether each is right about each image [n, M], and how sure it is, falling."""
    right = torch.tensor(right).T.bool()
    data = two_colours(len(right))
    sure = torch.linspace(0.9, 0.6, len(right))[:, None, None]
    first = torch.nn.functional.one_hot(torch.where(right, data.labels[:, None], 1 - data.labels[:, None]), 2)
    return written(data, torch.where(first.bool(), sure, 1 - sure), macs)


def test_the_best_alone_is_chosen_on_the_validation_images():
    """By the test images it would be "b"; "second" alone costs too much."""
    macs = [10, 10, 40]
    known = {
        "val": records([[1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 1, 1]], macs),
        "test": records([[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]], macs),
    }
    names = ("a", "b", "second")
    alone = {name: cascade.Alone.of(number, name, **known) for number, name in enumerate(names)}
    members = [spoken(name, macs[number], number=number) for number, name in enumerate(names)]
    everything, options = Chain(members), cascade.Options(budgets=(0.75,))
    (row,) = cascade.rows_of("b,second", [1, 2], everything, known, alone, options)
    assert row["single"] == "a" and row["over"]["a"]["accuracy"] == 1


def test_a_chain_that_asks_nobody_costs_as_much_as_its_first_network():
    """1 / 49 · 49 is less than 1 in floating point."""
    known = dict.fromkeys(("val", "test"), records([[1, 1, 0, 0], [1, 1, 1, 1]], [1, 49]))
    names = ("first", "second")
    alone = {name: cascade.Alone.of(number, name, **known) for number, name in enumerate(names)}
    members = [spoken("first", 1), spoken("second", 49, number=1)]
    options = cascade.Options(budgets=(1.5 / 49,))
    (row,) = cascade.rows_of("first,second", [0, 1], Chain(members), known, alone, options)
    assert row["asked"] == [0] and row["one_route"] == [0] and row["single"] == "first"


def test_networks_of_a_chain(tmp_path):
    assert cascade.networks_of("SkipChain14x110-v0") == [14, 110]
    assert cascade.networks_of("a,14,b.pth") == ["a", 14, "b.pth"]
    (entry,) = (each for each in index() if each["name"] == "chain38gx38-cifar10")
    assert cascade.networks_of("chain38gx38-cifar10") == entry["after"]


def test_a_run_folder_stands_for_its_weights(tmp_path):
    args, result = {"depth": 20}, {"agent": "pretrain", "env": "", "dataset": "rendered-digits"}
    result["policies"] = [{"name": "all blocks"}]
    for name, content in (("args", args), ("result", result)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "weights.safetensors").touch()
    assert cascade.networks_of(f"20,{tmp_path}") == [20, str(tmp_path / "weights.safetensors")]
    with pytest.raises(FileNotFoundError, match="no run in"):
        cascade.networks_of(f"20,{tmp_path.parent}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"chains": ()}, "no chains given"),
        ({"budgets": (0.1, 0.16)}, "budgets 0.1, 0.16 are all below what the first network costs"),
    ],
)
def test_refused(given, message, images, tmp_path):
    with pytest.raises(ValueError, match=message):
        cascade.main(cascade.Options(**{**vars(options(tmp_path / "out")), **given}))
    assert not (tmp_path / "out").exists()
