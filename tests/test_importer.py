"""Weights from elsewhere: torchvision's models, the common CIFAR naming, and files that do not fit."""

import argparse
import re

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
from skipnet_rl.problem import load_network
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import rollout
from skipnet_rl.stored_networks import untrained
from skipnet_rl.weights import open_weights


def load_into(weights, net: ResNet, exact: bool = False) -> None:
    """Fill a network with what `open_weights` makes of weights that are to be of its architecture."""
    opened = open_weights(
        weights,
        depth=net.depth,
        shortcut=net.shortcut,
        num_classes=net.num_classes,
        new_classifier=not exact,
    )
    net.load_state_dict(opened.network.state_dict())


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
    net = load_network(tmp_path / "model.pth", depth, 1000, "imagenet")
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
    net = load_network("torchvision", 34, 1000, "imagenet")
    assert asked == [("resnet34", "IMAGENET1K_V1")]
    assert torch.equal(net.blocks[3].conv1.weight, model.layer2[0].conv1.weight)
    with pytest.raises(WeightsError, match=r"torchvision's model .* layer fc.weight .*\(10, 512\)"):
        load_network("torchvision", 34, 10, "cifar10", new_classifier=False)
    with pytest.raises(WeightsError, match="no weights for a ResNet-20; it has: 34, 50, 101"):
        torchvision_weights(20)


def test_torchvision_that_cannot_be_reached(monkeypatch):
    def get_model(name, weights):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    with pytest.raises(WeightsError, match="weights for ResNet-34 could not be fetched: no route to host"):
        load_network("torchvision", 34, 1000, "imagenet")


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
    load_into(tmp_path / "net.th", net)
    for name, value in tiny_net.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_files_without_counts_of_batches(tiny_net, tmp_path):
    state = foreign_names(tiny_net, "linear", "shortcut")
    state = {name: value for name, value in state.items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.th")
    load_into(tmp_path / "old.th", net := ResNet(20))
    assert torch.equal(net.blocks[8].bn2.running_var, tiny_net.blocks[8].bn2.running_var)


def test_what_does_not_fit_names_layer_and_shapes(tiny_net, tmp_path):
    torch.save(foreign_names(tiny_net, "fc", "shortcut"), tmp_path / "net.th")
    with pytest.raises(WeightsError, match=r"layer fc.weight has shape \(10, 64\), expected \(100, 64\)"):
        load_into(tmp_path / "net.th", ResNet(20, 100), exact=True)
    with pytest.raises(WeightsError, match=r"layer blocks.3.shortcut.0.weight \(32, 16, 1, 1\)"):
        load_into(tmp_path / "net.th", ResNet(20, shortcut="pad"))
    with pytest.raises(
        WeightsError, match=r"layer blocks.3.conv1.weight .*ResNet-20 of 10 .*ResNet-32 of 10"
    ):
        load_into(tmp_path / "net.th", ResNet(32))
    with pytest.raises(WeightsError, match=r"does not fit: .*layer"):
        load_into(tmp_path / "net.th", ResNet(14))


# names of other projects, prefixes, wrappers, other numbers of classes


def stage_names(net: ResNet, block: str, first: int, changes: dict[str, str]) -> dict[str, torch.Tensor]:
    """Blocks by stage and position, then what else a project calls differently."""
    renamed = {}
    for name, value in net.state_dict().items():
        if found := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
            stage, position = divmod(int(found[1]), len(net.blocks) // 3)
            name = block.format(stage=stage + first, position=position) + "." + found[2]
        for here, there in changes.items():
            name = re.sub(here, there, name)
        renamed[name] = value
    return renamed


COMMON = {r"^stem\.0": "conv1", r"^stem\.1": "bn1"}
NAMINGS = {
    "akamaster": ("layer{stage}.{position}", 1, COMMON | {r"^fc": "linear"}),
    "chenyaofo, bearpaw, timm": ("layer{stage}.{position}", 1, COMMON | {r"shortcut": "downsample"}),
    "weiaicunzai": (
        "conv{stage}_x.{position}",
        2,
        {
            r"^stem": "conv1",
            r"\.conv1\.": ".residual_function.0.",
            r"\.bn1\.": ".residual_function.1.",
            r"\.conv2\.": ".residual_function.3.",
            r"\.bn2\.": ".residual_function.4.",
        },
    ),
    "SkipNet": ("group{stage}_layer{position}", 1, COMMON | {r"shortcut": "downsample"}),
    "SkipNet, shortcuts apart": ("group{stage}_layer{position}", 1, COMMON | {r"_layer0\.shortcut": "_ds0"}),
    "BlockDrop": ("blocks.{stage}.{position}", 0, COMMON | {r"blocks\.(\d)\.0\.shortcut": r"ds.\1"}),
    "transformers": (
        "encoder.stages.{stage}.layers.{position}",
        0,
        {
            r"^stem\.0": "embedder.embedder.convolution",
            r"^stem\.1": "embedder.embedder.normalization",
            r"conv1": "layer.0.convolution",
            r"bn1": "layer.0.normalization",
            r"conv2": "layer.1.convolution",
            r"bn2": "layer.1.normalization",
            r"shortcut\.0": "shortcut.convolution",
            r"shortcut\.1": "shortcut.normalization",
            r"^fc": "classifier.1",
        },
    ),
    "ours": ("blocks.{position}", 0, {}),
}
PREFIXES = (
    "",
    "module.",
    "_orig_mod.",
    "model.",
    "backbone.",
    "net.",
    "encoder.",
    "model.module._orig_mod.",
    "module.model.backbone.",
    "learner.student.",
)
WRAPPINGS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "best_prec1": 91.7},
    "net": lambda state: {"net": state, "acc": np.float64(91.7), "epoch": 3},
    "model and its average": lambda state: {
        "model_ema": noise(state),
        "model": state,
        "optimizer": {"state": {}},
    },
    "average alone": lambda state: {"ema": {"module": state}, "args": argparse.Namespace(lr=0.1)},
    "state_dict_ema": lambda state: {"state_dict_ema": noise(state), "state_dict": state, "arch": "resnet20"},
    "nested": lambda state: {"checkpoint": {"model": {"state_dict": state}}, "rng": torch.zeros(5)},
    "beside numbers": lambda state: {**state, "epoch": 3},
    "two parts": lambda state: {"agent": {"logit.weight": torch.zeros(2, 3)}, "resnet": state},
}


def noise(state):
    return {name: torch.randn(value.shape) for name, value in state.items()}


def named_as(naming: str, net: ResNet) -> dict[str, torch.Tensor]:
    return dict(net.state_dict()) if naming == "ours" else stage_names(net, *NAMINGS[naming])


def assert_same(net: ResNet, expected: ResNet) -> None:
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("naming", NAMINGS)
def test_names_and_prefixes(tiny_net, naming, record_property):
    state = named_as(naming, tiny_net)
    prefixes = PREFIXES if naming == "akamaster" else PREFIXES[:1] + PREFIXES[-2:]
    for prefix in prefixes:
        load_into({prefix + name: value for name, value in state.items()}, net := ResNet(20))
        assert_same(net, tiny_net)
    record_property("accepted", len(prefixes))
    record_property("refused", 0)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappings(tiny_net, tmp_path, wrapping):
    torch.save(WRAPPINGS[wrapping](named_as("akamaster", tiny_net)), tmp_path / "net.pt")
    load_into(tmp_path / "net.pt", net := ResNet(20))
    assert_same(net, tiny_net)


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ({"module.group1_gate0.conv1.weight": (16, 16), "module.group1_gate0.bn1.bias": (16,)}, "2 tensors"),
        (
            {"module.group2_gate1.1.weight": (10, 32, 1, 1), "module.control.proj.weight": (1, 10)},
            "control.proj",
        ),
        ({"criterion.weight": (10,), "n_averaged": ()}, "criterion.weight"),
        ({"queue": (8, 4), "projector.0.weight": (8, 64)}, "projector"),
    ],
)
def test_what_is_no_part_of_the_backbone_is_left_out_and_said(tiny_net, rest, said):
    prefix = "module." if any("module" in name for name in rest) else "model."
    state = {prefix + name: value for name, value in named_as("SkipNet", tiny_net).items()}
    with pytest.warns(UserWarning, match=f"the state_dict: left out .*{said}") as caught:
        load_into({**state, **{name: torch.zeros(shape) for name, shape in rest.items()}}, net := ResNet(20))
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert_same(net, tiny_net)


@pytest.mark.parametrize("classes", [1, 2, 1000])
@pytest.mark.parametrize("naming", ["akamaster", "transformers", "ours"])
def test_another_number_of_classes_begins_a_new_classifier(tiny_net, naming, classes):
    net = ResNet(20, classes)
    state = {"model." + name: value for name, value in named_as(naming, tiny_net).items()}
    with pytest.warns(
        UserWarning, match=f"classifier has 10 classes.* {classes} classes is untrained"
    ) as caught:
        load_into(state, net)
    assert len(caught) == 1
    assert torch.equal(net.fc.weight, untrained(20, classes).fc.weight)
    assert torch.equal(net.blocks[8].bn2.running_var, tiny_net.blocks[8].bn2.running_var)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(WeightsError, match=r"layer fc.weight has shape \(10, 64\)"):
        load_into(state, net, exact=True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_file_without_classifier(tiny_net):
    state = {name: value for name, value in tiny_net.state_dict().items() if not name.startswith("fc.")}
    with pytest.warns(UserWarning, match="classifier is missing"):
        load_into(state, net := ResNet(20))
    assert torch.equal(net.blocks[8].conv2.weight, tiny_net.blocks[8].conv2.weight)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: {n: v for n, v in s.items() if "layer3" not in n},
            r"blocks.6.* It holds a .*stages of 3, 3 ",
        ),
        (
            lambda s: {**s, "layer1.0.se.fc.weight": torch.zeros(4)},
            r"layer blocks.0.se.fc.weight \(4,\) that",
        ),
        (lambda s: {**s, "loss.weight": torch.zeros(4)}, r"it has a layer loss.weight \(4,\)"),
        (
            lambda s: {"features.0.weight": torch.zeros(4)},
            "no ResNet by names .* 1 tensors, first features.0",
        ),
        (
            lambda s: {**{"student." + n: v for n, v in s.items()}, **{"twin." + n: v for n, v in s.items()}},
            "several networks: student., twin.; save the state_dict of one",
        ),
        (lambda s: {**s, "module.fc.bias": s["linear.bias"] + 1}, "two layers that stand for"),
        (lambda s: {**s, "layer1.0.\x1b[1mbold\x1b[0m\n": torch.zeros(4)}, "it has a layer layer1.0.bold"),
        (
            lambda s: {"epoch": 3, "lr": 0.1},
            "holds a dict with 'epoch', 'lr'; expected the tensors of a ResNet",
        ),
    ],
)
def test_refusals_say_what_came_and_leave_the_network_alone(tiny_net, change, said):
    net = ResNet(20)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(WeightsError, match=said) as refusal:
        load_into(change(named_as("akamaster", tiny_net)), net)
    assert str(refusal.value).isprintable() and "the state_dict" in str(refusal.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_blockdrops_own_padding_is_refused(tiny_net):
    net = ResNet(20, shortcut="pool")
    with pytest.raises(WeightsError, match="new channels behind the old ones"):
        load_into(stage_names(net, *NAMINGS["BlockDrop"]), ResNet(20, shortcut="pool"))


@pytest.mark.parametrize(
    "weights",
    [5, 0, True, 1.5, b"net.th", "", "  ", [], ("a",), {}, {"a": 1}, object(), torch.nn.ReLU()],
    ids=lambda weights: type(weights).__name__,
)
def test_what_is_neither_name_nor_path_nor_weights(weights):
    with pytest.raises(
        WeightsError, match=r"^(weights is .*; expected the path|the state_dict holds a dict)"
    ) as error:
        load_network(weights, 20, 10, "cifar10")
    assert str(error.value).isprintable()
    with pytest.raises(WeightsError, match="expected"):
        gym.make("SkipResNet20-v0", dataset="rendered-digits", split="test", weights=weights)


@pytest.mark.parametrize("depth", [None, 20])
def test_a_network_that_is_no_resnet_is_described_by_its_tensors(depth):
    """As of a ConvNeXt, whose names are partly those of this project's ResNets."""
    state = {"stages.0.blocks.0.mlp.fc1.weight": torch.ones(4, 2), "head.fc.weight": torch.ones(10, 4)}
    with pytest.raises(
        WeightsError, match="tensors, first .*(name the model if|expected a ResNet-20)"
    ) as error:
        open_weights(state, depth=depth)
    assert "stages of  blocks" not in str(error.value)


@pytest.mark.skipif(not REFERENCE.is_file(), reason="no reference weights beside the repository")
def test_published_weights_with_another_number_of_classes():
    with pytest.warns(UserWarning, match="12fca82f.th: its classifier has 10 classes"):
        net = load_network(REFERENCE, 20, 7, "imagefolder")
    assert net.fc.weight.shape == (7, 64) and net.blocks[8].bn2.running_var.std() > 0
    with pytest.raises(
        WeightsError, match="holds a ResNet-20 of 10 classes with shortcuts without weights; expected a"
    ):
        load_network(REFERENCE, 20, 10, "cifar10", "projection")


class Surprise:
    """Content that a pickle could hold."""

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
    with pytest.raises(WeightsError, match="net.th (is not a readable file of weights|holds a)") as error:
        load_into(path, ResNet(20))
    assert str(error.value).isprintable() and (
        content != "code" or "which could run code" in str(error.value)
    )
    assert "executed" not in capsys.readouterr().out


def test_the_backbone_of_a_gated_network(tiny_net, tmp_path):
    from skipnet_rl.checkpoint import save_weights
    from skipnet_rl.gates import make_gate

    whole = torch.nn.ModuleDict({"net": tiny_net, "gate": make_gate("rnn", tiny_net)})
    save_weights(tmp_path / "hrl.safetensors", whole, {})
    load_into(tmp_path / "hrl.safetensors", net := ResNet(20))
    assert torch.equal(net.fc.weight, tiny_net.fc.weight.half().float())


@pytest.mark.slow
@pytest.mark.skipif(not REFERENCE.is_file(), reason="no reference weights beside the repository")
def test_environment_with_published_weights_is_right_on_9173_images(cifar10_folder):
    """Importer, backbone, data and environment at once, to the image: every block executed, float32."""
    batch = gym.make_vec(
        "SkipResNet20-v0",
        num_envs=250,
        dataset="cifar10",
        data_dir=str(cifar10_folder),
        split="test",
        weights=str(REFERENCE),
        device="cpu",
        autoreset_mode="Disabled",
    )
    correct = 0
    for start in range(0, 10_000, 250):
        batch.reset(options={"index": np.arange(start, start + 250)})
        for _ in range(8):
            *_, info = batch.step(np.ones(250, int))
        assert (info["compute_flops"] == 1).all()
        correct += int(info["correct"].sum())
    assert correct == 9_173
