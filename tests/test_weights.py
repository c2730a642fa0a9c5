"""Shipped weights: the index is true, and networks are filled as asked."""

import hashlib
import json
import shlex
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from skipnet_rl import catalogue
from skipnet_rl.catalogue import START
from skipnet_rl.checkpoint import load_weights, parts_of, save_weights
from skipnet_rl.errors import WeightsError
from skipnet_rl.evaluate import evaluate
from skipnet_rl.gates import GATES
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policy_networks import PolicyNetwork
from skipnet_rl.problem import Problem, load_network
from skipnet_rl.resnet import Architecture, ResNet
from skipnet_rl.runs import without_places
from skipnet_rl.stored import find_file
from skipnet_rl.weights import new_policy, open_weights


def auto_file(depth: int, dataset: str, shortcut: str):
    """The file of the network that "auto" stands for."""
    entry = catalogue.find_auto(depth, dataset, shortcut)
    return entry and catalogue.path_of(entry)


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> dict[str, torch.Tensor]:
    """A weights folder with one ResNet-8 in it; returns its state."""
    torch.manual_seed(5)
    net = ResNet(8)
    save_weights(tmp_path / "r8.safetensors", net, {})
    entry = {
        "name": "r8",
        "file": "r8.safetensors",
        "kind": "plain",
        "depth": 8,
        "dataset": "cifar10",
        "shortcut": "projection",
        "stage": "backbone",
        "sha256": hashlib.sha256((tmp_path / "r8.safetensors").read_bytes()).hexdigest(),
    }
    (tmp_path / "index.json").write_text(json.dumps([entry]))
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)
    return net.state_dict()


def test_every_shipped_file_is_what_the_index_says():
    shipped = {path.name for path in catalogue.FOLDER.iterdir()} - {"index.json"}
    files = [part for entry in catalogue.index() for part in parts_of(catalogue.FOLDER / entry["file"])]
    assert shipped == {file.name for file in files}
    for file in files:
        assert file.stat().st_size <= 4 * 2**20, f"{file.name} is larger than 4 MB"
    for entry in catalogue.index():
        path = find_file(entry["name"])  # checks the bytes
        assert path == catalogue.FOLDER / entry["file"]
        distilled = catalogue.find_auto(entry["depth"], entry["dataset"], entry["shortcut"])
        if entry["stage"] == "backbone" and distilled["stage"] == "backbone":
            assert auto_file(entry["depth"], entry["dataset"], entry["shortcut"]) == path
        commands = [entry["command"]]
        for part in parts_of(path) if entry["kind"] != "chain" else ():
            with safe_open(part, "pt") as file:
                commands.append(json.loads(file.metadata()["about"]).get("command", ""))
        for command in commands:  # they name no folder of the machine that ran them
            assert without_places(shlex.split(command), run_dir=False) == command and "/tmp" not in command


@pytest.mark.parametrize(
    "depth, dataset, name",
    [
        (20, "cifar10", "resnet20-cifar10-distilled"),
        (110, "cifar10", "resnet110-cifar10-distilled"),
        (20, "rendered-digits", "resnet20-rendered-digits"),
    ],
)
def test_auto_takes_the_network_that_was_taught_where_there_is_one(depth, dataset, name):
    assert auto_file(depth, dataset, "projection") == find_file(name)


@pytest.mark.parametrize(
    "alpha, name",
    [
        (None, "resnet38-cifar10-hrl-0.5-ensemble"),
        (0.7, "resnet38-cifar10-hrl-0.5-ensemble"),
        (2.0, "resnet38-cifar10-hrl-1.0-gain6-ensemble"),
    ],
)
def test_a_policy_over_a_frozen_network_starts_from_one_that_was_trained_with_skips(alpha, name):
    assert catalogue.find_auto(38, "cifar10", "projection", START, alpha)["name"] == name
    assert (
        catalogue.find_auto(20, "cifar10", "projection", START, alpha)["name"] == "resnet20-cifar10-distilled"
    )
    assert catalogue.find_auto(38, "cifar10", "pool", START, alpha) is None


def test_auto_takes_the_shipped_weights(shipped):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = load_network("auto", 8, 10, "cifar10")
    assert torch.equal(net.blocks[2].conv2.weight, shipped["blocks.2.conv2.weight"].half().float())
    assert not net.training
    assert net.blocks[2].conv2.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("depth", "dataset", "shortcut"),
    [
        (20, "cifar10", "projection"),
        (8, "rendered-digits", "projection"),
        (8, "cifar10", "pad"),
    ],
)
def test_auto_without_shipped_weights_warns(shipped, depth, dataset, shortcut):
    with pytest.warns(UserWarning, match=f"no shipped weights for ResNet-{depth} on {dataset}.*untrained"):
        load_network("auto", depth, 10, dataset, shortcut)
    assert auto_file(depth, dataset, shortcut) is None


@pytest.mark.parametrize("change", ["damage", "remove"])
def test_a_changed_shipped_file_is_refused(shipped, change):
    path = catalogue.FOLDER / "r8.safetensors"
    if change == "damage":
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    else:
        path.unlink()
    with pytest.raises(WeightsError, match="r8.safetensors is missing or damaged; reinstall"):
        load_network("auto", 8, 10, "cifar10")


def test_weights_from_a_path(tmp_path):
    torch.manual_seed(6)
    net = ResNet(8, 3)
    save_weights(tmp_path / "mine.safetensors", net, {})
    for path in (tmp_path / "mine.safetensors", str(tmp_path / "mine.safetensors")):
        loaded = load_network(path, 8, 3, "cifar10")
        assert torch.equal(loaded.fc.weight, net.fc.weight.half().float())
    with pytest.raises(WeightsError, match=r"layer fc.weight has shape \(3, 64\), expected \(10, 64\)"):
        load_network(tmp_path / "mine.safetensors", 8, 10, "cifar10", new_classifier=False)
    with pytest.warns(UserWarning, match="mine.safetensors: its classifier has 3 classes"):
        load_network(tmp_path / "mine.safetensors", 8, 10, "cifar10")


def test_untrained_network_is_the_same_each_time_and_moves_no_seed():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = load_network(None, 8, 10, "cifar10")
    assert torch.equal(torch.rand(3), expected)
    second = load_network(None, 8, 10, "cifar10")
    assert torch.equal(first.blocks[1].conv1.weight, second.blocks[1].conv1.weight)


def test_a_mistyped_name_is_answered_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError) as error:
        open_weights("resnet38-cifar10-distiled")
    message = str(error.value)
    assert message.endswith("did you mean the shipped resnet38-cifar10-distilled?")
    assert str(tmp_path / "resnet38-cifar10-distiled") in message
    with pytest.raises(WeightsError, match="is a folder$"):
        open_weights(tmp_path)
    for name in ("sp.safetensors", "hrl.safetensors", "result.json"):
        (tmp_path / name).touch()
    with pytest.raises(
        WeightsError, match=r"name a file in it, such as hrl\.safetensors or sp\.safetensors$"
    ):
        open_weights(tmp_path)


def policies(net: ResNet) -> dict[str, torch.nn.Module]:
    """A policy of each kind that stands in a file beside its network."""
    gates = {f"gate {kind}": new_policy(kind, net) for kind in (*GATES, "act", "fixed")}
    return {**gates, "policy blockdrop": PolicyNetwork(len(net.blocks) - 1, image_size=net.image_size)}


@pytest.mark.parametrize(
    "name", ["gate rnn", "gate ff1", "gate ff2", "gate act", "gate fixed", "policy blockdrop"]
)
@pytest.mark.parametrize("header", [True, False], ids=["with a header", "as older files are"])
def test_a_file_says_what_it_is(tiny_net, tiny_images, tmp_path, name, header):
    place, kind = name.split()
    policy = policies(tiny_net)[name]
    about = {"kind": kind, "depth": 20, "shortcut": "projection", "alpha": 0.5, "policy_depth": 8}
    whole = torch.nn.ModuleDict({"net": tiny_net, place: policy})
    save_weights(tmp_path / "w.safetensors", whole, about if header else {})
    load_weights(tmp_path / "w.safetensors", whole)  # rounded
    opened = open_weights(tmp_path / "w.safetensors")
    assert (opened.header["kind"], opened.header["depth"], opened.header["num_classes"]) == (kind, 20, 10)
    assert opened.mdp().alpha == (0.5 if header else 1.0)
    played = evaluate(opened.mdp(), opened.policy, tiny_images)
    expected = evaluate(RoutingMDP(tiny_net), policy.eval(), tiny_images)
    assert torch.equal(played.routes, expected.routes) and torch.equal(played.loss, expected.loss)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"kind": "rrn"}, "unknown kind 'rrn'; did you mean 'rnn'"),
        ({"kind": 5}, "its header has kind 5"),
        ({"depth": "20"}, "its header has depth '20'"),
        ({"depth": 110}, "its header says ResNet-110, and it holds a ResNet-8 of 10 classes"),
        ({"kind": "rnn"}, "layer .* is missing in it"),
        ({"kind": "sb3"}, "holds a policy without a network"),
        ({"kind": "blockdrop"}, "w.safetensors is damaged: its header lacks policy_depth"),
        ({"shortcut": "pad"}, "it has a layer blocks.1.shortcut"),
    ],
)
def test_a_header_that_is_not_true(tmp_path, about, message):
    save_weights(tmp_path / "w.safetensors", ResNet(8), about)
    with pytest.raises(WeightsError, match=message):
        open_weights(tmp_path / "w.safetensors")


def test_a_policy_on_an_untrained_network_that_its_header_does_not_describe(tmp_path):
    policy = {"action_net.weight": torch.zeros(2, 72), "action_net.bias": torch.zeros(2)}
    about = {"kind": "sb3", "network": "none", "num_classes": 10}
    save_file(policy, tmp_path / "p.safetensors", {"about": json.dumps(about)})
    with pytest.raises(WeightsError, match="its header lacks depth, shortcut"):
        open_weights(tmp_path / "p.safetensors")
    opened = open_weights(tmp_path / "p.safetensors", depth=8, shortcut="pad")
    assert opened.network.depth == 8 and opened.network.shortcut == "pad"


def test_the_seed_is_that_of_the_network_behind_a_policy(tmp_path):
    """Its new classifier, when the policy's file names a network of other classes."""
    save_weights(tmp_path / "net.safetensors", ResNet(8, 3), {})
    policy = {"action_net.weight": torch.zeros(2, 66), "action_net.bias": torch.zeros(2)}
    about = {"kind": "sb3", "network": str(tmp_path / "net.safetensors")}
    save_file(policy, tmp_path / "p.safetensors", {"about": json.dumps(about)})

    def classifier(name, seed):
        with pytest.warns(UserWarning, match="its classifier has 3 classes"):
            opened = open_weights(tmp_path / name, num_classes=10, new_classifier=True, seed=seed)
        return opened.network.fc.weight

    first, other = (classifier("net.safetensors", seed) for seed in (0, 7))
    assert not torch.equal(first, other)
    assert torch.equal(classifier("p.safetensors", 0), first)
    assert torch.equal(classifier("p.safetensors", 7), other)
    torch.manual_seed(7)
    assert torch.equal(classifier("p.safetensors", None), other)  # from the global generator, advanced by it
    assert not torch.equal(classifier("p.safetensors", None), other)


def test_a_depth_that_no_id_has(tmp_path):
    """The layers of a ResNet-18, as torchvision's: they say which network it is."""
    plan = Architecture(224, (64, 128, 256, 512), (2, 2, 2, 2), large_stem=True)
    net = ResNet(plan, 5).eval()
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    opened = open_weights(tmp_path / "resnet18.pth")
    assert opened.header["depth"] == 18 and opened.network.architecture == plan
    assert torch.equal(opened.network.fc.weight, net.fc.weight)


@pytest.mark.parametrize("name, said", [
    ("resnet110-cifar10-hrl-0.4-ensemble", " (a shipped network with gates, trained at alpha 0.4)"),
    ("resnet110-cifar10-hrl-0.4-fixed", " (a shipped network)"),  # one route, no gates
    ("runs/mine/weights.safetensors", ""),
])  # fmt: skip
def test_a_run_says_what_kind_of_network_it_starts_from(name, said):
    assert Problem(depth=110, dataset="rendered-digits", weights=name).resolve().why[1] == name + said
