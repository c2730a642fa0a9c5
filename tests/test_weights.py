"""Shipped weights: the index is true, and networks are filled as asked."""

import hashlib
import json
import shlex
import warnings

import pytest
import torch
from safetensors import safe_open

from skipnet_rl import catalogue
from skipnet_rl.catalogue import START
from skipnet_rl.checkpoint import parts_of, save_weights
from skipnet_rl.errors import WeightsError
from skipnet_rl.problem import load_network
from skipnet_rl.resnet import ResNet
from skipnet_rl.runs import without_places
from skipnet_rl.stored import find_file


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
    shipped = {path.name for path in catalogue.FOLDER.glob("*.safetensors")}
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
        for part in parts_of(path):
            with safe_open(part, "pt") as file:
                commands.append(json.loads(file.metadata()["about"]).get("command", ""))
        for command in commands:  # they name no folder of the machine that ran them
            assert without_places(shlex.split(command)) == command and "/tmp" not in command


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
