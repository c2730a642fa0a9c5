"""Weights from elsewhere: torchvision's models, the common CIFAR naming, and files that do not fit."""

import gymnasium as gym
import numpy as np
import pytest
import torch
import torchvision
from conftest import SHARED

import envs  # noqa: F401
from skipnet_rl.errors import WeightsError
from skipnet_rl.importer import torchvision_weights
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import rollout
from skipnet_rl.weights import build_backbone, load_backbone

REFERENCE = SHARED / "reference" / "resnet20-12fca82f.th"


def random_torchvision(depth: int) -> torch.nn.Module:
    """torchvision's own model, in which every batch norm does something."""
    torch.manual_seed(depth)
    model = torchvision.models.get_model(f"resnet{depth}", weights=None).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.4, 0.8)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    return model


@pytest.mark.parametrize("depth", [34, 50, pytest.param(101, marks=pytest.mark.slow)])
def test_logits_are_those_of_torchvisions_model(depth, tmp_path):
    model = random_torchvision(depth)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    net = build_backbone(depth, 1000, "imagenet", weights=tmp_path / "model.pth")
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = model(images)
        played = rollout(RoutingMDP(net), AlwaysExecute(), images, torch.zeros(2).long()).logits
        torch.testing.assert_close(played, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(net(images), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.05  # not all alike


def test_weights_by_the_name_torchvision(monkeypatch):
    model = random_torchvision(34)
    asked = []

    def get_model(name, weights):
        asked.append((name, weights))
        return model

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    net = build_backbone(34, 1000, "imagenet", weights="torchvision")
    assert asked == [("resnet34", "IMAGENET1K_V1")]
    assert torch.equal(net.blocks[3].conv1.weight, model.layer2[0].conv1.weight)
    with pytest.raises(WeightsError, match=r"torchvision's model .* layer fc.weight .*\(10, 512\)"):
        build_backbone(34, 10, "cifar10", weights="torchvision")
    with pytest.raises(WeightsError, match="no weights for this ResNet-20; it has: 34, 50, 101"):
        torchvision_weights(ResNet(20))


def test_torchvision_that_cannot_be_reached(monkeypatch):
    def get_model(name, weights):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    with pytest.raises(WeightsError, match="weights for ResNet-34 did not come: no route to host"):
        build_backbone(34, 1000, "imagenet", weights="torchvision")


def foreign_names(net: ResNet, classifier: str, shortcut: str) -> dict[str, torch.Tensor]:
    """A ResNet-20 of ours under the common names."""
    renamed = {}
    for name, value in net.state_dict().items():
        head, _, rest = name.partition(".")
        if head == "blocks":
            number, _, rest = rest.partition(".")
            stage, position = divmod(int(number), 3)
            name = f"layer{stage + 1}.{position}.{rest.replace('shortcut.', shortcut + '.')}"
        elif head == "stem":
            name = {"0": "conv1.", "1": "bn1."}[rest[0]] + rest[2:]
        else:
            name = f"{classifier}.{rest}"
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("classifier", ["linear", "fc"])
@pytest.mark.parametrize("shortcut", ["shortcut", "downsample"])
@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_common_names(tiny_net, tmp_path, classifier, shortcut, parallel, wrapped):
    state = foreign_names(tiny_net, classifier, shortcut)
    state = {("module." if parallel else "") + name: value for name, value in state.items()}
    torch.save({"state_dict": state, "best_prec1": 91.7} if wrapped else state, tmp_path / "net.th")
    net = ResNet(20)
    load_backbone(tmp_path / "net.th", net)
    for name, value in tiny_net.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_files_without_counts_of_batches(tiny_net, tmp_path):
    state = foreign_names(tiny_net, "linear", "shortcut")
    state = {name: value for name, value in state.items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.th")
    load_backbone(tmp_path / "old.th", net := ResNet(20))
    assert torch.equal(net.blocks[8].bn2.running_var, tiny_net.blocks[8].bn2.running_var)


def test_what_does_not_fit_names_layer_and_shapes(tiny_net, tmp_path):
    torch.save(foreign_names(tiny_net, "fc", "shortcut"), tmp_path / "net.th")
    with pytest.raises(WeightsError, match=r"layer fc.weight has shape \(10, 64\), expected \(100, 64\)"):
        load_backbone(tmp_path / "net.th", ResNet(20, 100))
    with pytest.raises(WeightsError, match=r"layer blocks.3.shortcut.0.weight \(32, 16, 1, 1\)"):
        load_backbone(tmp_path / "net.th", ResNet(20, shortcut="pad"))
    with pytest.raises(WeightsError, match=r"layer blocks.3.conv1.weight \(16, 16, 3, 3\) is missing in it"):
        load_backbone(tmp_path / "net.th", ResNet(32))
    with pytest.raises(WeightsError, match=r"does not fit: .*layer"):
        load_backbone(tmp_path / "net.th", ResNet(14))


class Surprise:
    """What a pickle could hold."""

    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("content", ["garbage", "empty", "code", "a list", "numbers"])
def test_files_that_hold_no_weights(content, tmp_path, capsys):
    path = tmp_path / "net.th"
    if content == "garbage":
        path.write_bytes(b"not a checkpoint")
    elif content == "empty":
        path.write_bytes(b"")
    else:
        torch.save({"code": Surprise(), "a list": [1, 2], "numbers": {"lr": 0.1}}[content], path)
    with pytest.raises(WeightsError, match="net.th (is not a readable file of weights|holds a)"):
        load_backbone(path, ResNet(20))
    assert "executed" not in capsys.readouterr().out


def test_the_backbone_of_a_gated_network(tiny_net, tmp_path):
    from skipnet_rl.checkpoint import save_weights
    from skipnet_rl.gates import make_gate

    whole = torch.nn.ModuleDict({"net": tiny_net, "gate": make_gate("rnn", tiny_net)})
    save_weights(tmp_path / "hrl.safetensors", whole, {})
    load_backbone(tmp_path / "hrl.safetensors", net := ResNet(20))
    assert torch.equal(net.fc.weight, tiny_net.fc.weight.half().float())


@pytest.mark.slow
@pytest.mark.skipif(not REFERENCE.is_file(), reason="no reference weights beside the repository")
def test_environment_with_published_weights_is_right_on_9173_images(cifar10_folder):
    """Importer, backbone, data and environment at once, to the image: every block executed, float32."""
    batch = gym.make_vec(
        "SkipResNet20-v0", num_envs=250, dataset="cifar10", data_dir=str(cifar10_folder), split="test",
        shortcut="pad", weights=str(REFERENCE), device="cpu", autoreset_mode="Disabled",
    )  # fmt: skip
    correct = 0
    for start in range(0, 10_000, 250):
        batch.reset(options={"index": np.arange(start, start + 250)})
        for _ in range(8):
            *_, info = batch.step(np.ones(250, int))
        assert (info["compute_flops"] == 1).all()
        correct += int(info["correct"].sum())
    assert correct == 9_173
