"""The exported model takes PyTorch's routes to PyTorch's logits, and does not run what it skips."""

import json
import sys

import numpy as np
import pytest
import torch
from other_models import VIT
from torch import nn
from torchvision.models import VisionTransformer
from toys import slow, spread

from agents import export
from agents.common.cli import main_with_named_errors
from skipnet_rl import adapt
from skipnet_rl.checkpoint import save_weights
from skipnet_rl.data import load_images
from skipnet_rl.gates import make_gate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.onnx import compare_with_torch, export_onnx, export_plain, onnx_session
from skipnet_rl.policies import AlwaysExecute, FixedRoute
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import rollout

onnx = pytest.importorskip("onnx", reason="needs the extra: pip install -e '.[export]'")


def undecided(name: str, shortcut: str) -> tuple[RoutingMDP, nn.Module]:
    """ResNet-8 with a gate whose decisions differ between images."""
    torch.manual_seed(1)
    net = ResNet(8, shortcut=shortcut)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    gate = make_gate(name, net)
    for head in [gate.head] if name == "rnn" else gate.heads:
        nn.init.normal_(head.weight, std=3.0)
        nn.init.zeros_(head.bias)
    mdp, gate = RoutingMDP(net.eval()), gate.eval()
    images, labels = load_images("rendered-digits", "val").first(64).batch(torch.arange(64))
    with torch.no_grad():  # thresholds at the median of each decision
        for t in range(mdp.num_decisions):
            logit = rollout(mdp, gate, images, labels).gate_logits[:, t].median()
            if name == "rnn":
                gate.head.bias -= logit / mdp.num_decisions
            else:
                gate.heads[t].bias += torch.tensor([logit / 2, -logit / 2])
    return mdp, gate


@pytest.mark.parametrize(
    "gate, shortcut, batched",
    [
        ("rnn", "projection", False),
        ("ff1", "pool", True),
        ("ff2", "pad", False),
        slow("rnn", "projection", True),
    ],
)
def test_routes_and_logits_are_those_of_pytorch(gate, shortcut, batched, tmp_path):
    mdp, policy = undecided(gate, shortcut)
    images = load_images("rendered-digits", "test").first(100)
    routes = rollout(mdp, policy, *images.batch(torch.arange(100))).actions
    assert len(routes.unique(dim=0)) >= 2  # or the test would not see a decision
    export_onnx(mdp, policy, tmp_path / "model.onnx", batched)
    told = []
    found = compare_with_torch(tmp_path / "model.onnx", mdp, policy, images, lambda *now: told.append(now))
    assert told[-1] == (100, 100) and len(told) == (2 if batched else 100)
    assert found.images == found.same_routes == 100
    assert found.logits < 1e-5


@pytest.mark.parametrize("gate", ["rnn", slow("ff1")])
def test_a_batched_model_takes_an_empty_batch(gate, tmp_path):
    mdp, policy = undecided(gate, "projection")
    export_onnx(mdp, policy, tmp_path / "model.onnx", batched=True)
    names = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "LSTM" not in names  # onnxruntime's ends the process
    none = np.zeros((0, 3, 32, 32), np.float32)
    logits, route = onnx_session(tmp_path / "model.onnx").run(None, {"images": none})
    assert logits.shape == (0, 10) and route.shape == (0, mdp.num_decisions)


class Glance(nn.Module):
    """Decides on every block from the image's mean colour, before the first of them."""

    def __init__(self, mdp: RoutingMDP) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.head = nn.Linear(3, mdp.num_decisions)

    def start(self, images):
        return self.head(images.mean(dim=(2, 3)))

    def forward(self, mdp, state, hidden):
        return hidden[:, state.t], hidden


@pytest.mark.parametrize("batched", [False, slow(True)])
def test_a_policy_that_looks_at_the_image_first(batched, tmp_path):
    mdp, _ = undecided("rnn", "projection")
    images, policy = load_images("rendered-digits", "test").first(100), Glance(mdp)
    with torch.no_grad():
        policy.head.bias -= policy.start(images.batch(torch.arange(100))[0]).quantile(0.5, dim=0)
        routes = rollout(mdp, policy, *images.batch(torch.arange(100))).actions
    assert len(routes.unique(dim=0)) >= 2
    export_onnx(mdp, policy, tmp_path / "model.onnx", batched)
    found = compare_with_torch(tmp_path / "model.onnx", mdp, policy, images)
    assert found.images == found.same_routes == 100
    assert found.logits < 1e-5


@pytest.mark.parametrize("batched", [slow(False), True])
def test_a_fixed_route(batched, tmp_path):
    mdp, _ = undecided("rnn", "projection")
    images, policy = load_images("rendered-digits", "test").first(20), FixedRoute(torch.tensor([0, 1]))
    export_onnx(mdp, policy, tmp_path / "model.onnx", batched)
    found = compare_with_torch(tmp_path / "model.onnx", mdp, policy, images)
    assert found.images == found.same_routes == 20
    assert found.logits < 1e-5


@pytest.mark.parametrize("batched", [False, slow(True)])
def test_halting_scores(batched, tmp_path):
    torch.manual_seed(0)
    images = load_images("rendered-digits", "test").first(100)
    mdp = RoutingMDP(ResNet(14).eval())
    policy = spread(mdp.net, images.batch(torch.arange(100))[0])
    assert len(rollout(mdp, policy, *images.batch(torch.arange(100))).actions.unique(dim=0)) >= 4
    export_onnx(mdp, policy, tmp_path / "model.onnx", batched)
    found = compare_with_torch(tmp_path / "model.onnx", mdp, policy, images)
    assert found.images == found.same_routes == 100
    assert found.logits < 1e-5


def test_differences_are_detected(tmp_path):
    mdp, policy = undecided("rnn", "projection")
    images = load_images("rendered-digits", "test").first(20)
    export_onnx(mdp, policy, tmp_path / "model.onnx", batched=True)
    with torch.no_grad():
        mdp.net.fc.bias[3] += 0.5
    assert compare_with_torch(tmp_path / "model.onnx", mdp, policy, images).logits > 0.49
    with torch.no_grad():
        mdp.net.fc.bias[3] = torch.nan  # no number is near it
    assert compare_with_torch(tmp_path / "model.onnx", mdp, policy, images).logits == torch.inf
    with torch.no_grad():
        policy.head.bias += 100
    assert compare_with_torch(tmp_path / "model.onnx", mdp, policy, images).same_routes < 20


@pytest.mark.parametrize("batched", [False, slow(True)])
def test_a_skipped_block_does_not_run(batched, tmp_path):
    mdp, gate = undecided("ff1", "projection")
    images, _ = load_images("rendered-digits", "test").first(1).batch(torch.arange(1))
    nn.init.constant_(mdp.block(1).conv1.weight, torch.nan)  # whatever it touches is NaN, times zero too
    outcomes = {}
    for name, route in {"skipped": [1, 0], "executed": [1, 1]}.items():
        for head, action in zip(gate.heads, route, strict=True):
            head.weight.data.zero_()
            head.bias.data = torch.tensor([1.0 - action, float(action)])
        export_onnx(mdp, gate, tmp_path / "model.onnx", batched)
        session = onnx_session(tmp_path / "model.onnx")
        logits, routes = session.run(None, {"images": images.contiguous().numpy()})
        outcomes[name] = torch.from_numpy(logits).isnan().any().item()
        assert routes.tolist() == [[bool(action) for action in route]]
    assert outcomes == {"skipped": False, "executed": True}


def test_a_model_is_opened_without_warnings(tmp_path, capfd):
    """A ViT's graph has constants that no node uses, which onnxruntime would report one by one."""
    net = adapt(VisionTransformer(**{**VIT, "num_classes": 10}))
    export_onnx(RoutingMDP(net), make_gate("rnn", net), tmp_path / "model.onnx", False)
    capfd.readouterr()
    onnx_session(tmp_path / "model.onnx")
    assert capfd.readouterr().err == ""


def test_each_branch_owns_its_weights(tmp_path):
    mdp, policy = undecided("rnn", "projection")
    export_onnx(mdp, policy, tmp_path / "model.onnx", about={"mean": [0.5], "dataset": "x"})
    model = onnx.load(tmp_path / "model.onnx")
    branches = [
        attribute.g for node in model.graph.node if node.op_type == "If" for attribute in node.attribute
    ]
    assert len(branches) == 2 * mdp.num_decisions
    for graph in branches:
        own = {tensor.name for tensor in graph.initializer}
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        assert len(convolutions) == (2 if graph is branches[0] or own else 0)
        assert all(set(node.input[1:]) <= own for node in convolutions)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"mean": "[0.5]", "dataset": "x"}


def test_the_plain_network(tmp_path):
    mdp, _ = undecided("rnn", "projection")
    images, _ = load_images("rendered-digits", "test").first(1).batch(torch.arange(1))
    export_plain(mdp, tmp_path / "plain.onnx")
    session = onnx_session(tmp_path / "plain.onnx")
    (logits,) = session.run(None, {"images": images.contiguous().numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), mdp.net(images).detach(), rtol=1e-4, atol=1e-5)


@pytest.fixture
def checkpoint(tmp_path):
    """A gated ResNet-8 as agents save it."""
    mdp, gate = undecided("rnn", "projection")
    about = {
        "depth": 8,
        "dataset": "rendered-digits",
        "gate": "rnn",
        "shortcut": "projection",
        "alpha": 1.0,
        "cost": "blocks",
        "mean": [0.376] * 3,
        "std": [0.202] * 3,
    }
    path = tmp_path / "hrl.safetensors"
    save_weights(path, nn.ModuleDict({"net": mdp.net, "gate": gate}), about)
    return path


def run(monkeypatch, *flags: object) -> int:
    monkeypatch.setattr(sys, "argv", ["export", *map(str, flags)])
    try:
        main_with_named_errors(export.Args, export.main, (ModuleNotFoundError,))
    except SystemExit as stop:
        return stop.code
    return 0


def test_the_command_checks_before_it_writes(checkpoint, monkeypatch, capsys):
    out = checkpoint.with_name("model.onnx")
    flags = (checkpoint, "--out", out, "--batched", "--check", "50")
    with monkeypatch.context() as strict:
        strict.setattr(export, "LOGITS_TOLERANCE", -1.0)
        assert run(strict, *flags) == 2
    assert "does not agree with PyTorch; nothing was written" in capsys.readouterr().err
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    assert run(monkeypatch, *flags) == 0
    assert "50 test images: 50 with PyTorch's route" in capsys.readouterr().out
    metadata = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert json.loads(metadata["mean"]) == [0.376] * 3
    assert metadata["dataset"] == "rendered-digits"


def test_without_the_packages_the_error_names_the_extra(checkpoint, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert run(monkeypatch, checkpoint, "--out", checkpoint.with_name("model.onnx")) == 2
    assert "pip install -e" in capsys.readouterr().err


def wrong(checkpoint, place) -> dict[str, tuple[list[object], str]]:
    """Invalid flags, and a part of the error message."""
    (place / "file").write_text("in the way")
    other = place / "other.safetensors"
    mdp, gate = undecided("rnn", "projection")
    about = {
        "depth": 8,
        "dataset": "cifar100",
        "gate": "rnn",
        "shortcut": "projection",
        "alpha": 1.0,
        "cost": "blocks",
    }
    save_weights(other, nn.ModuleDict({"net": mdp.net, "gate": gate}), about)
    out = place / "deep" / "model.onnx"
    return {
        "no data": ([other, "--out", out, "--data-dir", place / "none"], "is missing"),
        "no network": ([place / "none.safetensors", "--out", out], "no weights file"),
        "a plain network": (
            ["resnet20-cifar10", "--out", out],
            "AlwaysExecute; expected gates or a chain",
        ),
        "no safetensors": ([place / "file", "--out", out], "is not a readable file of weights"),
        "a folder": ([checkpoint, "--out", place], "there is a folder of that name"),
        "in a file": (
            [checkpoint, "--out", place / "file" / "model.onnx"],
            "there is a file where a folder is needed",
        ),
        "itself": ([checkpoint, "--out", checkpoint, "--check", 0], "is the network itself"),
        "fewer than none": ([checkpoint, "--out", out, "--check", -3], "expected 0 or more"),
    }


def test_invalid_arguments_are_refused_before_exporting(checkpoint, tmp_path, monkeypatch, capsys):
    def begun(*_args, **_kwargs):
        raise AssertionError("the export began")

    monkeypatch.setattr(export, "export_onnx", begun)
    for what, (flags, said) in wrong(checkpoint, tmp_path).items():
        before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
        assert run(monkeypatch, *flags) == 2, what
        error = capsys.readouterr().err
        assert said in error and "give the run's folder" not in error, what
        assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before, what


def test_a_failed_export_leaves_no_file(checkpoint, monkeypatch):
    for error in (RuntimeError("no such operator"), KeyboardInterrupt()):

        def fail(mdp, policy, path, *_args, error=error):
            path.write_bytes(b"half")
            raise error

        monkeypatch.setattr(export, "export_onnx", fail)
        args = export.Args(checkpoint, checkpoint.parent / "deep" / "model.onnx", check=0)
        with pytest.raises(type(error)):
            export.main(args)
        assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_an_export_that_fails_without_a_word_names_the_kind_of_error(monkeypatch, tiny_net, tmp_path):
    """As an assertion in PyTorch's exporter does."""

    def fail(*args, **kwargs):
        raise torch.onnx.OnnxExporterError("long advice") from AssertionError()

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ValueError, match="PyTorch cannot export ResNet-20: AssertionError"):
        export_onnx(RoutingMDP(tiny_net), AlwaysExecute(), tmp_path / "model.onnx")
