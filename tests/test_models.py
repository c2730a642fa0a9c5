"""Models of other libraries by name: as environments, in files, and what is said of a mistake."""

import json
import re
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from other_models import VIT
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import resnet18

import envs  # noqa: F401
from skipnet_rl import models
from skipnet_rl.checkpoint import save_weights
from skipnet_rl.data import load_images
from skipnet_rl.errors import WeightsError
from skipnet_rl.flops import network_macs
from skipnet_rl.gates import RecurrentGate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.model_problem import ModelProblem
from skipnet_rl.models import EMBEDDINGS, ModelName
from skipnet_rl.policies import AlwaysExecute, Biased
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import rollout
from skipnet_rl.weights import open_weights

VIT_KWARGS = {key: value for key, value in VIT.items() if key != "image_size"}
SMALL = {
    "torchvision/VisionTransformer": (VIT_KWARGS, 32),
    "torchvision/ConvNeXt": ({"block_setting": [[16, 32, 2], [32, None, 2]], "layer_scale": 0.1}, 32),
    "torchvision/resnet18": ({}, 32),
    "timm/vit_tiny_patch16_224": (
        {
            "patch_size": 8,
            "embed_dim": 16,
            "depth": 3,
            "num_heads": 2,
            "class_token": False,
            "global_pool": "avg",
        },
        32,
    ),
    "timm/resnet10t": ({}, 64),
}
EVERY = pytest.mark.parametrize("model", SMALL)


def named(model: str) -> ModelName:
    if model.startswith("timm"):
        pytest.importorskip("timm")
    arguments, size = SMALL[model]
    return ModelName(model, arguments, size)


def as_arguments(model: str) -> dict:
    name = named(model)
    known = {"model": name.model, "model_kwargs": name.arguments, "image_size": name.image_size}
    return {**known, "dataset": "rendered-digits", "weights": None}


@EVERY
@torch.no_grad()
def test_the_environments_play_what_a_rollout_plays(model):
    arguments = as_arguments(model)
    env = gym.make_vec("SkipNet-v0", num_envs=2, split="val", **arguments)
    single = gym.make("SkipNet-v0", split="val", **arguments)
    net = named(model).build(10)
    images, labels = load_images("rendered-digits", "val", None, False, net.image_size).batch(
        torch.tensor([3, 5])
    )
    mdp = RoutingMDP(net)
    routes = np.resize([[1, 0], [0, 1], [1, 1]], (mdp.num_decisions, 2)).astype(bool)
    played = rollout(mdp, AlwaysExecute(), images, labels, routes=torch.from_numpy(routes).T)
    observation, _ = env.reset(options={"index": [3, 5]})
    alone, _ = single.reset(options={"index": 3})
    assert observation.shape == (2, mdp.observation_size)
    total = np.zeros(2)
    for step in routes:
        np.testing.assert_allclose(alone, observation[0], rtol=1e-3, atol=1e-4)
        observation, reward, _, _, info = env.step(step.astype(int))
        alone, _, terminated, _, about = single.step(int(step[0]))
        total += reward
    assert terminated
    np.testing.assert_allclose(total, played.returns, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        info["final_info"]["compute_flops"], mdp.compute_flops(None, played.actions), rtol=1e-6
    )
    assert about["prediction"] == played.predictions[0]
    assert gym.spec(json.loads(single.spec.to_json())["id"]).id == "SkipNet-v0"


@EVERY
@torch.no_grad()
def test_a_file_opens_as_what_was_saved(model, tmp_path):
    name = named(model)
    net = name.build(10, seed=4)
    path = tmp_path / "weights.safetensors"
    save_weights(path, net, {"kind": "plain", **net.about(), "dataset": "rendered-digits", "num_classes": 10})
    opened = open_weights(path)
    batch = torch.randn(2, 3, net.image_size, net.image_size)
    torch.testing.assert_close(opened.network(batch), net(batch), rtol=0.1, atol=0.05)  # half precision
    assert opened.header["model"] == model and isinstance(opened.policy, AlwaysExecute)
    problem = ModelProblem(weights=path, dataset="rendered-digits").resolve()
    assert (problem.model, problem.image_size) == (model, name.image_size)
    assert problem.named.about() == name.about()
    assert torch.equal(problem.network(10)(batch), opened.network(batch))


@torch.no_grad()
def test_a_gated_file_opens_with_its_gate(tmp_path):
    name = named("torchvision/VisionTransformer")
    net = name.build(10)
    gate = RecurrentGate(net)
    both = torch.nn.ModuleDict({"net": net, "gate": gate})
    save_weights(tmp_path / "hrl.safetensors", both, {"kind": "rnn", **net.about(), "num_classes": 10})
    opened = open_weights(tmp_path / "hrl.safetensors")
    batch, labels = torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.long)
    played = rollout(opened.mdp(), opened.policy, batch, labels)
    expected = rollout(RoutingMDP(net), gate, batch, labels)
    torch.testing.assert_close(played.gate_logits, expected.gate_logits, rtol=0.01, atol=0.01)
    assert rollout(opened.mdp(), Biased(opened.policy, -9.0), batch, labels).actions.sum() == 0


@torch.no_grad()
def test_both_classifiers_of_a_distilled_deit_are_replaced():
    pytest.importorskip("timm")
    arguments = {"patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
    name = ModelName("timm/deit_tiny_distilled_patch16_224", arguments, 32)
    theirs = name.build(7, seed=1)
    with pytest.warns(UserWarning, match="its classifier has 7 classes; the new one of 10 is untrained"):
        found = open_weights(theirs.state_dict(), model=name, num_classes=10, new_classifier=True).network
    assert found.model.head.out_features == found.model.head_dist.out_features == 10
    assert torch.equal(found.model.blocks[2].mlp.fc2.weight, theirs.model.blocks[2].mlp.fc2.weight)


@pytest.mark.parametrize("wrapped", ["", "module."])
def test_weights_of_another_network_are_named(wrapped):
    """What came, what was expected and what to do, whether or not it is a network that is known here."""
    name = named("torchvision/VisionTransformer")

    def refused(state):
        state = {f"{wrapped}{key}": value for key, value in state.items()}
        with pytest.raises(WeightsError) as error:
            open_weights(state, model=name, num_classes=10)
        return str(error.value)

    expected = "; expected torchvision/VisionTransformer with .* 32 pixels: build the network that it holds"
    own = "It holds a ResNet-14 of 7 classes with projection shortcuts" + expected
    assert re.search(own, refused(ResNet(14, 7).state_dict()))
    theirs = "It holds a residual network with stages of 2, 2, 2, 2 blocks of 5 classes" + ".*" + expected
    assert re.search(theirs, refused(resnet18(num_classes=5).state_dict()))
    first = f"It holds 2 tensors, first {wrapped}0.weight, {wrapped}0.bias" + expected
    assert re.search(first, refused(torch.nn.Sequential(torch.nn.Linear(2, 3)).state_dict()))


@pytest.mark.parametrize(
    "model, device", [*((model, "meta") for model in SMALL), ("torchvision/regnet_x_400mf", "cpu")]
)
def test_an_outline_costs_what_the_network_costs(model, device):
    """RegNet computes its widths with tensors, which have no values on `meta`."""
    name = named(model) if model in SMALL else ModelName(model, {}, 32)
    before = torch.random.get_rng_state()
    outline = name.outline(10)
    assert {each.device.type for each in outline.parameters()} == {device}
    assert network_macs(outline) == network_macs(name.build(10))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@torch.no_grad()
def test_a_state_dict_of_the_model_itself_opens(prefix):
    name = named("torchvision/ConvNeXt")
    net = name.build(10, seed=7)
    state = {f"{prefix}{key}": value for key, value in net.model.state_dict().items()}
    opened = open_weights(state, model=name, num_classes=10)
    batch = torch.randn(2, 3, 32, 32)
    assert torch.equal(opened.network(batch), net(batch))


class Wrapping(nn.Module):
    """A classifier whose layers are called like PyTorch's wrappers."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(4, 3)
        self.register_buffer("n_averaged", torch.zeros(()))


WRAPPERS = {
    "nothing": lambda model: model,
    "data parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "compiled": torch.compile,
    "compiled, data parallel inside": lambda model: torch.compile(nn.DataParallel(model)),
    "data parallel, compiled inside": lambda model: nn.DataParallel(torch.compile(model)),
    "averaged, compiled inside": lambda model: AveragedModel(torch.compile(model)),
    "a part of another": lambda model: nn.ModuleDict({"net": torch.compile(model)}),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_state_dict_of_a_wrapped_model_opens(wrapper):
    model, other = resnet18(num_classes=10), resnet18(num_classes=10)
    models.take_over(other, WRAPPERS[wrapper](model).state_dict(), "the state_dict")
    assert_equal(model, other)


@pytest.mark.parametrize("wrapper", ["nothing", "data parallel"])
def test_layers_that_are_called_like_wrappers_keep_their_names(wrapper):
    model, other = Wrapping(), Wrapping()
    models.take_over(other, WRAPPERS[wrapper](model).state_dict(), "the state_dict")
    assert_equal(model, other)


def test_a_network_and_a_wrapped_one_in_one_state_dict_are_refused():
    model = resnet18(num_classes=10)
    both = {**model.state_dict(), **torch.compile(resnet18(num_classes=10)).state_dict()}
    with pytest.raises(WeightsError, match="_orig_mod"):
        models.take_over(model, both, "the state_dict")


def assert_equal(model: nn.Module, other: nn.Module) -> None:
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in other.state_dict().items())


def test_a_classifier_of_other_classes_begins_anew_with_a_warning():
    name = named("torchvision/ConvNeXt")
    state = name.build(5, seed=7).model.state_dict()
    with pytest.raises(WeightsError, match="classifier.2.weight has shape"):
        open_weights(state, model=name, num_classes=10)
    with pytest.warns(UserWarning, match="its classifier has 5 classes; the new one of 10 is untrained"):
        opened = open_weights(state, model=name, num_classes=10, new_classifier=True)
    assert torch.equal(opened.network.model.features[0][0].weight, state["features.0.0.weight"])


def test_arguments_are_the_same_as_tuples_and_as_the_lists_of_a_file(tmp_path):
    name = ModelName("torchvision/ConvNeXt", {"block_setting": ((16, 32, 2), (32, None, 2))}, 32)
    net = name.build(10)
    save_weights(path := tmp_path / "w.safetensors", net, {"kind": "plain", **net.about(), "num_classes": 10})
    opened = open_weights(path, model=name)
    assert opened.header["model_kwargs"] == name.arguments and len(opened.network.blocks) == 4


def test_weights_of_another_model_are_refused(tmp_path):
    net = named("torchvision/ConvNeXt").build(10)
    path = tmp_path / "weights.safetensors"
    save_weights(path, net, {"kind": "plain", **net.about(), "num_classes": 10})
    with pytest.raises(WeightsError, match=r"it holds torchvision/ConvNeXt .*; expected a ResNet-20"):
        open_weights(path, depth=20)
    with pytest.raises(
        WeightsError, match=r"it holds torchvision/ConvNeXt .*; expected torchvision/resnet18"
    ):
        open_weights(path, model=named("torchvision/resnet18"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "torchvision/convnext_tny"}, "did you mean 'convnext_tiny'"),
        ({"model": "convnext"}, "expected a library and a name, such as torchvision/convnext_tiny"),
        ({"model": "torchvision/vgg11"}, "no known residual block in VGG"),
        (
            {"model": "torchvision/VisionTransformer"},
            "does not take model_kwargs {} for images of 224 pixels",
        ),
        ({"model_kwargs": "[1]"}, "expected a JSON object"),
        ({"image_size": 0}, "image_size is 0; expected a number of pixels"),
        ({"num_classes": 4}, "num_classes is 4; the data set rendered-digits has 10"),
        ({"weights": "nowhere.pth"}, "no weights file nowhere.pth"),
        ({"num_classes": 0}, "num_classes is 0; expected a number of classes"),
        ({"num_classes": "12"}, "num_classes is '12'; expected a number of classes"),
        (
            {"model_kwargs": {"num_classes": 5}},
            "model_kwargs has num_classes 5; leave it out.* as num_classes",
        ),
        ({"model_kwargs": {"weights": "DEFAULT"}}, "model_kwargs has weights 'DEFAULT'; .* give weights"),
        ({"model_kwargs": {"pretrained": True}}, "model_kwargs has pretrained True; leave it out"),
        ({"model_kwargs": {"image_size": "abc"}}, "image_size is 'abc'; expected a number of pixels"),
        ({"weights": "torchvision"}, "weights is 'torchvision', .*give 'DEFAULT'"),
        ({"depth": 20}, "depth 20 and model None do not go together; an id such as SkipResNet20-v0"),
        ({"shortcut": "pad"}, "shortcut is 'pad', which only the built-in ResNets take"),
        ({"mix": 0.5}, "mix 0.5 does not go with model"),
        ({"model": "torchvision/VisionTransfomer"}, "did you mean 'VisionTransformer'"),
        (
            {"model": "torchvision/qqqqqq"},
            r"none of its \d+ names is near; see the list: torchvision.models.list",
        ),
        ({"model": "torchvision/VisionTransfomer", "weights": "DEFAULT"}, "did you mean 'VisionTransformer'"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        gym.make("SkipNet-v0", **{"dataset": "rendered-digits", "weights": None, **arguments})


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("torchvision/VisionTransformer", {**VIT_KWARGS, "patch_size": 0}),  # ZeroDivisionError
        ("torchvision/VisionTransformer", {**VIT_KWARGS, "hidden_dim": -16}),  # RuntimeError
        ("torchvision/ConvNeXt", {"block_setting": [[16, 32]]}),  # TypeError
        ("torchvision/ConvNeXt", {"block_setting": {"a": 1}}),
        ("torchvision/mobilenet_v2", {"inverted_residual_setting": [[1, 2]]}),
        ("torchvision/shufflenet_v2_x1_0", {"stages_repeats": [1]}),
        ("torchvision/resnet18", {"norm_layer": "batch"}),  # TypeError
        ("torchvision/resnet18", {"replace_stride_with_dilation": 3}),
    ],
)
def test_arguments_that_do_not_fit_are_named(model, arguments):
    with pytest.raises(ValueError, match=f"^{model} does not take model_kwargs .* for images of 32 pixels: "):
        ModelName(model, arguments, 32).build(10)


@pytest.mark.parametrize("name", ["image_size", "model_kwargs", "num_classes", "model", "networks"])
def test_a_resnet_of_here_takes_nothing_of_a_model(name):
    given = {"model": "torchvision/resnet18", "model_kwargs": {}, "networks": [14, 20]}.get(name, 32)
    with pytest.raises(ValueError, match=f"{name} .* do(es)? not go .*; an id such as SkipResNet20-v0"):
        gym.make("SkipResNet20-v0", dataset="rendered-digits", **{name: given})


def test_a_file_of_a_resnet_is_named_where_a_model_is_expected():
    with pytest.raises(
        WeightsError, match="it holds a ResNet-20; expected torchvision/VisionTransformer with"
    ):
        open_weights("resnet20-rendered-digits", model=named("torchvision/VisionTransformer"), num_classes=10)


def test_a_mistyped_model_of_timm_gets_the_nearest_name():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="did you mean 'convnext_tiny'") as error:
        ModelName("timm/convnext_tny", {}, 32).build(10)
    assert len(str(error.value)) < 300


def test_the_librarys_own_weights_bring_the_statistics_that_they_were_trained_with():
    problem = ModelProblem(model="torchvision/convnext_tiny", weights="DEFAULT", dataset="rendered-digits")
    assert problem.resolve().mean == (0.485, 0.456, 0.406)
    own = ModelProblem(model="torchvision/convnext_tiny", weights=None, dataset="rendered-digits")
    assert own.resolve().mean is None
    with pytest.raises(WeightsError, match="no weights 'DEFAULT' of VisionTransformer: only functions, "):
        ModelProblem(
            model="torchvision/VisionTransformer", weights="DEFAULT", dataset="rendered-digits"
        ).resolve()


def own_weights(model: str, monkeypatch, path) -> tuple[ModelName, dict[str, torch.Tensor]]:
    """A small model whose library has weights for 32 pixels and 10 classes, all places with one embedding."""
    name = named(model)
    if model == "timm/vit_tiny_patch16_224":
        name = name._replace(arguments={**name.arguments, "class_token": True, "global_pool": "token"})
    state = name.build(10, seed=7).model.state_dict()
    for embedding in EMBEDDINGS & state.keys():
        state[embedding][:, 1:] = torch.arange(16.0)
    if model.startswith("timm"):
        torch.save(state, path)
        stored = {"file": str(path), "num_classes": 10, "input_size": [3, 32, 32]}
        return name._replace(arguments={**name.arguments, "pretrained_cfg_overlay": stored}), state
    entry = SimpleNamespace(meta={"min_size": (32, 32)}, get_state_dict=lambda progress: dict(state))
    monkeypatch.setattr(models, "weights_of", lambda *names: entry)
    return name, state


@pytest.mark.parametrize("model", ["torchvision/VisionTransformer", "timm/vit_tiny_patch16_224"])
def test_the_librarys_own_position_embeddings_fit_images_of_another_size(model, monkeypatch, tmp_path):
    name, state = own_weights(model, monkeypatch, tmp_path / "own.pth")
    found = name.build(10, "DEFAULT").model.state_dict()
    assert all(torch.equal(found[key], state[key]) for key in state)
    with pytest.warns(UserWarning, match=f"{model}.* for images of 32 pixels and are .* for those of 64"):
        found = name._replace(image_size=64).build(10, "DEFAULT").model.state_dict()
    (embedding,) = EMBEDDINGS & state.keys()
    assert found[embedding].shape == (1, 1 + 8 * 8, 16)
    assert torch.equal(found[embedding][:, 0], state[embedding][:, 0])
    torch.testing.assert_close(found[embedding][0, 1:], torch.arange(16.0).expand(64, 16))
    assert all(torch.equal(found[key], state[key]) for key in state.keys() - {embedding})


def test_the_librarys_own_weights_of_another_size_alone_are_refused(monkeypatch, tmp_path):
    """The layers of a gMLP mix a fixed number of places."""
    monkeypatch.setitem(SMALL, "timm/gmlp_ti16_224", ({}, 32))
    name, _ = own_weights("timm/gmlp_ti16_224", monkeypatch, tmp_path / "own.pth")
    name.build(10, "DEFAULT")
    with pytest.raises(
        WeightsError, match="of 32 pixels and do not fit those of 64; use image_size 32"
    ) as it:
        name._replace(image_size=64).build(10, "DEFAULT")
    assert str(it.value).count("size mismatch") == 1


def test_untrained_networks_of_one_name_are_the_same():
    name = named("torchvision/VisionTransformer")
    one, other = (name.build(10).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.warns(UserWarning, match="no weights of torchvision/resnet18 are shipped"):
        ModelProblem(dataset="rendered-digits", image_size=32).resolve().network(10)
