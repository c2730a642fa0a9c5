"""Checkpoints are exact, and whole or not at all, at whatever point a write is cut short."""

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from skipnet_rl import checkpoint, files
from skipnet_rl.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights, write_json
from skipnet_rl.errors import WeightsError
from skipnet_rl.resnet import ResNet

KINDS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def test_nested_round_trip(tmp_path):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 2, generator=generator) * 10
    state = {
        "tensors": {str(kind): values.abs().to(kind) for kind in KINDS},
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(7),
        "strided": torch.arange(6.0).view(2, 3).T,
        "odd": torch.tensor([math.nan, math.inf, -0.0]),
        3: {"step": torch.tensor(2.0), 4: "four"},
        "pair": (1, [2.5, None]),
        "nothing": None,
        "yes": True,
        "float": 0.1 + 0.2,
        "large": 2**62,
        "text": "größer",
        "dict": {},
        "list": [],
    }
    save_checkpoint(tmp_path / "c", state)
    back = load_checkpoint(tmp_path / "c")
    assert list(back) == list(state)
    for kind, tensor in state["tensors"].items():
        assert back["tensors"][kind].dtype == tensor.dtype
        assert torch.equal(back["tensors"][kind], tensor)
    for name in ("empty", "scalar", "strided"):
        assert back[name].shape == state[name].shape
        assert torch.equal(back[name], state[name])
    assert torch.equal(back["odd"].view(torch.int32), state["odd"].view(torch.int32))
    assert torch.equal(back[3]["step"], torch.tensor(2.0))
    assert back[3][4] == "four"
    assert back["pair"] == [1, [2.5, None]]  # JSON has no tuples
    assert type(back["yes"]) is bool
    for name in ("nothing", "yes", "float", "large", "text", "dict", "list"):
        assert back[name] == state[name]


def test_tensors_that_share_memory_are_stored_apart(tmp_path):
    whole = torch.arange(4.0)
    save_checkpoint(tmp_path / "c", {"whole": whole, "part": whole[:2], "again": whole})
    back = load_checkpoint(tmp_path / "c")
    back["whole"].zero_()
    assert back["part"].tolist() == [0, 1]
    assert back["again"].tolist() == [0, 1, 2, 3]


def make_optimizer(name, net):
    if name == "sgd":
        return torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True)
    return torch.optim.Adam(net.parameters(), 1e-2)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_goes_on_bit_for_bit(tmp_path, optimizer):
    """Two more steps after a checkpoint, by the same objects and by new ones filled from it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 4, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (4, 4), generator=generator)

    def make(seed):
        torch.manual_seed(seed)
        net = ResNet(8).to(memory_format=torch.channels_last)
        return net, make_optimizer(optimizer, net)

    def train(net, stepper, steps):
        for step in steps:
            stepper.zero_grad()
            F.cross_entropy(net(images[step]), labels[step]).backward()
            stepper.step()

    net, stepper = make(0)
    train(net, stepper, [0, 1])
    save_checkpoint(tmp_path / "c", {"net": net.state_dict(), "optimizer": stepper.state_dict()})
    train(net, stepper, [2, 3])
    resumed, resumed_stepper = make(1)
    state = load_checkpoint(tmp_path / "c")
    resumed.load_state_dict(state["net"])
    resumed_stepper.load_state_dict(state["optimizer"])
    train(resumed, resumed_stepper, [2, 3])
    expected = net.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())


class Crash(Exception):
    """Stands for a crash."""


def crash(*_args, **_kwargs):
    raise Crash


def crash_halfway(_tensors, path, metadata=None):
    path.write_bytes(b"\x08")
    raise Crash


def crash_moving(name: str):
    """A move that fails for the folder called `name`."""

    def moved(source, target):
        if source.name == name:
            raise Crash
        return files.move(source, target)

    return moved


def break_at(monkeypatch, stage: str) -> None:
    """Make the next write fail at a stage."""
    where, name, replacement = {
        "tensors": (checkpoint, "save_file", crash),
        "half the tensors": (checkpoint, "save_file", crash_halfway),
        "json": (checkpoint.json, "dumps", crash),
        "sync": (files.os, "fsync", crash),
        "first rename": (checkpoint, "move", crash_moving("c")),
        "second rename": (checkpoint, "move", crash_moving("c.new")),
    }[stage]
    monkeypatch.setattr(where, name, replacement)


STAGES = ("tensors", "half the tensors", "json", "sync", "first rename", "second rename")


@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_write_leaves_the_previous_checkpoint(tmp_path, monkeypatch, stage):
    folder = tmp_path / "c"
    for step in (1, 2):
        save_checkpoint(folder, {"step": step, "weights": torch.full((3,), float(step))})
    with monkeypatch.context() as patch:
        break_at(patch, stage)
        with pytest.raises(Crash):
            save_checkpoint(folder, {"step": 3, "weights": torch.full((3,), 3.0)})
    back = load_checkpoint(folder)
    assert back["step"] == 2
    assert back["weights"].tolist() == [2.0] * 3
    save_checkpoint(folder, {"step": 4, "weights": torch.full((3,), 4.0)})  # and the next one works
    assert load_checkpoint(folder)["step"] == 4
    assert load_checkpoint(folder)["weights"].tolist() == [4.0] * 3
    assert not (tmp_path / "c.new").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_two_interruptions_in_a_row(tmp_path, monkeypatch, stage):
    folder = tmp_path / "c"
    save_checkpoint(folder, {"step": 1})
    for first in (stage, "second rename"):
        with monkeypatch.context() as patch:
            break_at(patch, first)
            with pytest.raises(Crash):
                save_checkpoint(folder, {"step": 2})
    assert load_checkpoint(folder)["step"] == 1


def test_no_checkpoint(tmp_path):
    with pytest.raises(WeightsError, match="no checkpoint in .*missing"):
        load_checkpoint(tmp_path / "none")


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
def test_truncated_checkpoint(tmp_path, file):
    save_checkpoint(tmp_path / "c", {"step": 1, "weights": torch.zeros(100)})
    path = tmp_path / "c" / file
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(WeightsError, match="c is damaged"):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("tree", ["[]", "3", "{}", '{"dict": 5}', '{"tensor": "/other"}', "\\xff"])
def test_damaged_tree(tmp_path, tree):
    save_checkpoint(tmp_path / "c", {"weights": torch.zeros(100)})
    (tmp_path / "c" / "state.json").write_text(tree)
    with pytest.raises(WeightsError, match="c is damaged"):
        load_checkpoint(tmp_path / "c")


def test_missing_file_of_a_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "c", {"step": 1})
    (tmp_path / "c" / "state.safetensors").unlink()
    with pytest.raises(WeightsError, match="state.safetensors"):
        load_checkpoint(tmp_path / "c")


def test_names_that_join_to_the_same_path(tmp_path):
    save_checkpoint(tmp_path / "c", {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}})
    back = load_checkpoint(tmp_path / "c")
    assert back["a/b"].item() == 0
    assert back["a"]["b"].item() == 1


def test_write_json_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    write_json(path, {"a": [1, 2.5, math.nan], "b": {"c": (np.float64("inf"), -math.inf, np.float64(1.5))}})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None], "b": {"c": [None, None, 1.5]}}
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with monkeypatch.context() as patch:
        break_at(patch, "sync")
        with pytest.raises(Crash):
            write_json(path, {"a": 2})
    assert path.read_bytes() == before


def test_weights_round_trip_in_half_precision(tmp_path, tiny_net):
    path = tmp_path / "deep" / "w.safetensors"
    tiny_net.stem[1].num_batches_tracked += 70_000  # more than float16 holds
    save_weights(path, tiny_net, {"command": "make it"})
    torch.manual_seed(7)
    other = ResNet(20)
    load_weights(path, other)
    loaded = other.state_dict()
    for name, value in tiny_net.state_dict().items():
        assert loaded[name].dtype == value.dtype, name
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(loaded[name], expected), name
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["about"]) == {"command": "make it"}
        assert file.get_tensor("stem.0.weight").dtype == torch.float16


def test_weights_file_is_the_same_each_time(tmp_path, tiny_net):
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        save_weights(path, tiny_net, {"command": "x", "seed": 0, "stage": "y"})
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_prefix_takes_one_part_of_a_file(tmp_path, tiny_net):
    whole = torch.nn.ModuleDict({"net": tiny_net, "gate": torch.nn.Linear(2, 1)})
    save_weights(tmp_path / "whole.safetensors", whole, {})
    other = ResNet(20)
    load_weights(tmp_path / "whole.safetensors", other, prefix="net.")
    assert torch.equal(other.fc.weight, tiny_net.fc.weight.half().float())
    save_weights(tmp_path / "alone.safetensors", tiny_net, {})
    torch.nn.init.zeros_(other.fc.weight)
    load_weights(tmp_path / "alone.safetensors", other, prefix="net.")  # a backbone alone fits too
    assert torch.equal(other.fc.weight, tiny_net.fc.weight.half().float())


@pytest.mark.parametrize("stage", ["tensors", "half the tensors", "sync"])
def test_failed_write_leaves_the_old_weights(tmp_path, monkeypatch, stage):
    path = tmp_path / "w.safetensors"
    save_weights(path, torch.nn.Linear(2, 2), {})
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        break_at(patch, stage)
        with pytest.raises(Crash):
            save_weights(path, torch.nn.Linear(2, 2), {})
    assert path.read_bytes() == before


def misfit(tmp_path, stored, wanted) -> str:
    before = {name: value.clone() for name, value in wanted.state_dict().items()}
    save_weights(tmp_path / "w.safetensors", stored, {})
    with pytest.raises(WeightsError) as caught:
        load_weights(tmp_path / "w.safetensors", wanted)
    after = wanted.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)  # not half filled
    return str(caught.value)


def test_misfit_of_classes_names_layer_and_both_shapes(tmp_path):
    message = misfit(tmp_path, ResNet(8, 10), ResNet(8, 100))
    assert "w.safetensors does not fit: layer fc.weight has shape (10, 64), expected (100, 64)" in message


def test_misfit_of_depth_names_the_first_layer(tmp_path):
    # ResNet-8's block 1 is 16 → 32, ResNet-20's is 16 → 16
    message = misfit(tmp_path, ResNet(8), ResNet(20))
    assert "layer blocks.1.conv1.weight has shape (32, 16, 3, 3), expected (16, 16, 3, 3)" in message


def test_missing_layer_is_named_with_its_shape(tmp_path):
    message = misfit(tmp_path, ResNet(8, shortcut="pad"), ResNet(8))
    assert "layer blocks.1.shortcut.0.weight (32, 16, 1, 1) is missing" in message


def test_superfluous_layer_is_named(tmp_path):
    message = misfit(tmp_path, ResNet(8), ResNet(8, shortcut="pad"))
    assert "a layer blocks.1.shortcut.0.weight (32, 16, 1, 1) that the network lacks" in message


class Explosive:
    """Unpickling it would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_no_pickle_is_ever_loaded(tmp_path):
    torch.save(ResNet(8).state_dict(), tmp_path / "w.pt")
    (tmp_path / "bomb.safetensors").write_bytes(pickle.dumps(Explosive(tmp_path / "trace")))
    for name in ("w.pt", "bomb.safetensors"):
        with pytest.raises(WeightsError, match=f"{name} is not a readable safetensors file"):
            load_weights(tmp_path / name, ResNet(8))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64])
def test_damaged_weights(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="w.safetensors is not a readable safetensors file"):
        load_weights(tmp_path / "w.safetensors", ResNet(8))


def test_truncated_weights(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, ResNet(8), {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="w.safetensors is not a readable safetensors file"):
        load_weights(path, ResNet(8))


def test_missing_weights_say_what_to_give(tmp_path):
    with pytest.raises(WeightsError, match="no weights file .*give the path of a file"):
        load_weights(tmp_path / "none.safetensors", ResNet(8))
    with pytest.raises(WeightsError, match="no weights file"):
        load_weights(tmp_path, ResNet(8))
