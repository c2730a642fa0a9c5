"""Agents, chains and export on models of other libraries."""

import dataclasses
import json
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from other_models import FAMILIES, SIZE, VIT, made

import agents.act
import agents.finetune
import agents.hybrid_reinforce
import agents.oracle
import agents.ppo
import agents.pretrain
import agents.reinforce
import agents.static
import envs  # noqa: F401
from agents.common.cli import main_with_named_errors
from agents.common.finished import FinishedRun
from agents.common.new_network import new_network
from agents.common.preset_choice import trained_as, values_of
from agents.common.presets import describe
from agents.common.situation import situation_of
from skipnet_rl import adapt
from skipnet_rl.data import load_images
from skipnet_rl.errors import WeightsError
from skipnet_rl.gates import make_gate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.model_problem import ModelProblem
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.rollout import rollout
from skipnet_rl.weights import open_weights

MODEL = "torchvision/VisionTransformer"
KWARGS = json.dumps({key: value for key, value in VIT.items() if key != "image_size"})
NAMED = {"model": MODEL, "model_kwargs": KWARGS, "image_size": SIZE}
SHORT = {"dataset": "rendered-digits", "test_images": 50, "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """The file of a network that was pretrained for six steps with stochastic depth."""
    folder = tmp_path_factory.mktemp("pretrain")
    args = agents.pretrain.Args(
        **NAMED, **SHORT, epochs=6 / 140, survival=0.5, optimizer="adamw", lr=1e-3, run_dir=folder / "run"
    )
    assert args.env == "SkipNet-v0"
    result = agents.pretrain.train(args)
    assert result["env"] == "SkipNet-v0" and result["policies"][0]["name"] == "all blocks"
    return str(folder / "run" / "weights.safetensors")


def test_pretraining_trains_the_batch_norms_of_a_model():
    """Models are built in evaluation mode, in which these would neither normalise nor learn statistics."""
    images = load_images("rendered-digits", "train").first(8)
    small = {"model": "torchvision/MNASNet", "model_kwargs": {"alpha": 0.25}, "image_size": SIZE}
    problem = ModelProblem(**small, dataset="rendered-digits", weights=None, device="cpu").resolve()
    args = agents.pretrain.Args(
        **{**SHORT, **small, "model_kwargs": '{"alpha": 0.25}'}, batch_size=8
    ).resolved()
    net = new_network(args, problem, 10)
    agents.pretrain.train_step(agents.pretrain.Learner(args, net, "fp32"), images, 0, args)
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(norm.num_batches_tracked == 1 for norm in norms)


def test_pretraining_says_that_no_model_is_shipped(tmp_path):
    args = agents.pretrain.Args(**NAMED, **SHORT, weights="auto", run_dir=tmp_path / "run")
    with pytest.raises(
        WeightsError, match=f"no weights of {MODEL} are shipped; .*DEFAULT for the library's own"
    ):
        agents.pretrain.train(args)
    assert not (tmp_path / "run").exists()


def test_pretraining_moves_every_layer_and_writes_what_builds_the_model_again(weights):
    opened = open_weights(weights)
    known = {key: opened.header[key] for key in ("model", "model_kwargs", "image_size", "kind")}
    assert known == {**NAMED, "model_kwargs": json.loads(KWARGS), "kind": "plain"}
    assert "depth" not in opened.header
    start = new_network(
        agents.pretrain.Args(**NAMED, **SHORT),
        ModelProblem(**NAMED, weights=None, dataset="rendered-digits", device="cpu").resolve(),
        10,
    )
    moved = {
        name: not torch.equal(before.half(), after.half())
        for (name, before), after in zip(
            start.state_dict().items(), opened.network.state_dict().values(), strict=True
        )
    }
    assert all(
        moved[name] for name in moved if name.endswith(("token", "embedding", "mlp.0.weight", "head.weight"))
    )


@pytest.mark.parametrize(
    ("agent", "more"),
    [
        ("static", {"points": 1, "rates": (0.5,), "eval_images": 50}),
        ("oracle", {}),
        ("reinforce", {"iterations": 2, "batch_size": 16, "eval_images": 50}),
        ("act", {"iterations": 2, "tune_iterations": 1, "batch_size": 16, "eval_images": 50}),
        ("ppo", {"episodes": 64, "num_envs": 16, "length": 16, "eval_images": 50}),
    ],
)
def test_an_agent_learns_a_policy_over_it(agent, more, weights, tmp_path):
    module = getattr(agents, agent)
    known = {each for each in module.Args.__dataclass_fields__}
    more = {key: value for key, value in more.items() if key in known}
    args = module.Args(env="SkipNet-v0", weights=weights, run_dir=tmp_path / "run", **SHORT, **more)
    runs = {"static": "evaluate_all", "oracle": "find_routes"}
    result = getattr(module, runs.get(agent, "train"))(args)
    assert result["env"] == "SkipNet-v0" and result["policies"][0]["name"] == "all blocks"
    stored = json.loads((tmp_path / "run" / "args.json").read_text())
    assert stored["model"] == MODEL and stored["image_size"] == SIZE
    run = FinishedRun.read(tmp_path / "run")
    assert run.model is not None and run.model.model == MODEL
    assert len(run.network(10).blocks) == 3
    if agent in ("reinforce", "act", "ppo"):
        mdp, policy = run.restore(10)
        images, labels = load_images("rendered-digits", "test").first(50).batch(torch.arange(50))
        with torch.no_grad():
            played = rollout(mdp, policy, images, labels)
        assert played.correct.double().mean().item() == pytest.approx(
            result["policies"][-1]["accuracy"], abs=0.021
        )


def test_hybrid_reinforce_trains_model_and_gates_and_its_file_opens(weights, tmp_path):
    args = agents.hybrid_reinforce.Args(
        **SHORT, env="SkipNet-v0", weights=weights, run_dir=tmp_path / "run", batch_size=16, eval_images=50,
        bn_images=50, warmup_iterations=1, sp_iterations=1, iterations=2, tune_iterations=1,
    )  # fmt: skip
    result = agents.hybrid_reinforce.train(args)
    opened = open_weights(tmp_path / "run" / "hrl.safetensors")
    assert opened.header["kind"] == "rnn" and opened.header["model"] == MODEL
    assert result["policies"][-1]["name"] == "HRL"
    assert FinishedRun.read(tmp_path / "run").restore(10)[0].num_decisions == 2
    file = str(tmp_path / "run" / "hrl.safetensors")
    assert situation_of(["--weights", file]).env == "SkipNet-v0"
    assert json.loads(trained_as(file)["model_kwargs"]) == json.loads(KWARGS)


def test_a_preset_takes_no_more_than_twice_the_steps_for_a_tiny_model(weights):
    line = ["--env", "SkipNet-v0", "--weights", weights, "--dataset", "rendered-digits", "--device", "cpu"]
    tiny = values_of(situation_of(line))
    usual = values_of(situation_of(["--env", "SkipResNet20-v0", *line[2:3], "none", *line[4:]]))
    assert tiny["iterations"] == 2 * usual["iterations"]


def test_what_a_file_says_of_its_model_is_for_that_model_alone(weights):
    line = ["--env", "SkipNet-v0", "--weights", weights, "--dataset", "rendered-digits", "--device", "cpu"]
    own = values_of(situation_of([*line, "--model", MODEL]))
    assert own["image_size"] == SIZE and json.loads(own["model_kwargs"]) == json.loads(KWARGS)
    other = values_of(situation_of([*line, "--model", "torchvision/resnet18"]))
    assert not other.keys() & {"image_size", "model_kwargs"} and other["model"] == "torchvision/resnet18"
    fine = agents.finetune.arguments([*line, "--model", "torchvision/resnet18"])
    assert fine.image_size is None and fine.model_kwargs is None


def test_a_presets_line_tells_what_the_preset_set(weights):
    words = ["--env", "SkipNet-v0", "--weights", weights, "--dataset", "rendered-digits", "--device", "cpu"]
    line = describe(dataclasses.replace(agents.hybrid_reinforce.arguments(words), weights=weights))
    assert "iterations" in line and not any(each in line for each in (MODEL, "image size", "mean", weights))


def test_flags_of_a_model_need_its_id(monkeypatch, capsys):
    words = ["pretrain", "--model", "vit"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        main_with_named_errors(agents.pretrain.Args, agents.pretrain.train)
    assert "expected a library and a name, such as torchvision/convnext_tiny" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match="--model is for models of other libraries, but the environment is SkipResNet20-v0"
    ):
        agents.static.Args(env="SkipResNet20-v0", model=MODEL).check()
    with pytest.raises(ValueError, match="--depth is for the built-in ResNets, .* is torchvision/Vis"):
        agents.pretrain.Args(**NAMED, depth=20).check()
    with pytest.raises(ValueError, match="--shortcut is for the built-in ResNets, .* of SkipNet-v0; leave"):
        agents.static.Args(env="SkipNet-v0", shortcut="pad").check()
    with pytest.raises(ValueError, match="--image-size is for models of other libraries"):
        agents.pretrain.Args(depth=20, image_size=32).check()
    with pytest.raises(
        WeightsError, match=r"no weights of torchvision/resnet18 are shipped; train some: python"
    ):
        agents.hybrid_reinforce.train(agents.hybrid_reinforce.Args(env="SkipNet-v0", **SHORT, image_size=32))


def test_a_chain_has_models_of_other_libraries_beside_its_own(weights):
    networks = ["resnet20-rendered-digits", weights]
    env = gym.make("SkipChain-v0", networks=networks, dataset="rendered-digits", split="test")
    env.reset(options={"index": 3})
    _, _, terminated, _, info = env.step(1)
    members = env.unwrapped.lockstep.mdp.net.members
    own, other = (member.whole_macs for member in members)
    assert terminated and [member.name for member in members] == ["ResNet-20", MODEL]
    assert info["compute_flops"] == pytest.approx((own + other) / other)


@pytest.mark.slow
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("family", ["ResNet", "ConvNeXt", "ViT", "EfficientNet", "MLP-Mixer"])
def test_it_exports_and_skips(family, batched, tmp_path):
    pytest.importorskip("onnx")
    from skipnet_rl.onnx import export_onnx, onnx_session

    net = adapt(made(FAMILIES[family]), SIZE)
    mdp, gate = RoutingMDP(net), make_gate("rnn", net, gain=6.0).eval()
    torch.nn.init.zeros_(gate.head.bias)
    export_onnx(mdp, gate, tmp_path / "model.onnx", batched)
    session = onnx_session(tmp_path / "model.onnx")
    images = torch.randn(4, 3, SIZE, SIZE)
    with torch.no_grad():
        played = rollout(mdp, gate, images, torch.zeros(4, dtype=torch.long))
    for batch, logits, actions in zip(
        images.split(4 if batched else 1),
        played.logits.split(4 if batched else 1),
        played.actions.split(4 if batched else 1),
        strict=True,
    ):
        answer, route = map(torch.from_numpy, session.run(None, {"images": batch.numpy()}))
        assert torch.equal(route, actions > 0.5)
        torch.testing.assert_close(answer, logits, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_what_pytorch_cannot_export_is_named(tmp_path):
    pytest.importorskip("onnx")
    from skipnet_rl.onnx import export_onnx

    net = adapt(made(FAMILIES["Swin"]), SIZE)
    with pytest.raises(ValueError, match="PyTorch cannot export SwinTransformer: "):
        export_onnx(RoutingMDP(net), AlwaysExecute(), tmp_path / "model.onnx", batched=True)
    assert not Path(tmp_path / "model.onnx").exists()
