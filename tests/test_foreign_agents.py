"""Agents and environments over weights that another project's training script left, without a header."""

import json

import gymnasium as gym
import pytest
import torch

from agents import act, blockdrop, finetune, gumbel, hybrid_reinforce, ppo, pretrain, reinforce, static
from agents.common.finished import FinishedRun
from envs.factory import problem_of
from skipnet_rl.errors import WeightsError
from skipnet_rl.problem import load_network
from skipnet_rl.resnet import ResNet
from skipnet_rl.runs import check_same
from skipnet_rl.stored import read_header

SMALL = {"env": "SkipResNet14-v0", "dataset": "rendered-digits", "eval_images": 16, "precision": "fp32"}
HYBRID = {"warmup_iterations": 0, "sp_iterations": 1, "iterations": 2, "tune_iterations": 1, "bn_images": 16}
SHORT = {"warmup_iterations": 0, "iterations": 2, "batch_size": 8}
AGENTS = {
    "act": (act, {"iterations": 2, "tune_iterations": 0, "batch_size": 8}),
    "blockdrop": (blockdrop, {"warmup_iterations": 0, "curriculum": 2, "joint": 2, "batch_size": 8}),
    "gumbel": (gumbel, SHORT),
    "hybrid_reinforce": (hybrid_reinforce, {**HYBRID, "batch_size": 8}),
    "ppo": (ppo, {"episodes": 32, "num_envs": 16, "eval_every": 32}),
    "reinforce": (reinforce, {"iterations": 2, "batch_size": 8}),
}
pytestmark = pytest.mark.usefixtures("few_images")


def write(path, shortcut):
    """A ResNet-14 whose kind of shortcut only its tensors tell."""
    state = {f"module.{name}": value for name, value in ResNet(14, 10, shortcut).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, path)
    return str(path)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "net.th", "pad")


@pytest.mark.parametrize("name", AGENTS)
def test_a_run_starts_with_the_files_shortcuts(name, file, tmp_path):
    module, flags = AGENTS[name]
    args = module.Args(**SMALL, **flags, weights=file, run_dir=tmp_path / "run")
    module.train(args)
    assert json.loads((tmp_path / "run" / "args.json").read_text())["shortcut"] == "pad"
    run = FinishedRun.read(tmp_path / "run")
    assert read_header(run.weights())["shortcut"] == "pad"
    assert run.restore(10)[0].net.shortcut == "pad"
    assert all(run.process(10, row["weights"]).net.shortcut == "pad" for row in run.result["policies"])


def test_static_policies_start_with_the_files_shortcuts(file, tmp_path):
    args = static.Args(**SMALL, weights=file, rates=(0.5,), points=1, run_dir=tmp_path / "run")
    static.evaluate_all(args)
    assert FinishedRun.read(tmp_path / "run").process(10).net.shortcut == "pad"


def test_gates_over_such_a_network_are_tuned_and_taught_further(file, tmp_path):
    flags = {**SMALL, "batch_size": 8, "weights": file}
    hybrid_reinforce.train(hybrid_reinforce.Args(**flags, **HYBRID, run_dir=tmp_path / "hrl"))
    gates = str(tmp_path / "hrl" / "hrl.safetensors")
    more = {**flags, "weights": gates, "iterations": 1, "bn_images": 16, "teacher": (file,)}
    finetune.train(finetune.Args(**more, run_dir=tmp_path / "tuned"))
    assert read_header(tmp_path / "tuned" / "hrl.safetensors")["shortcut"] == "pad"


def test_pretraining_goes_on_with_the_files_shortcuts(file, tmp_path):
    flags = {"dataset": "rendered-digits", "precision": "fp32", "batch_size": 32, "epochs": 1}
    pretrain.train(pretrain.Args(**flags, depth=20, weights=file, run_dir=tmp_path / "run"))
    assert read_header(tmp_path / "run" / "weights.safetensors")["shortcut"] == "pad"
    assert FinishedRun.read(tmp_path / "run").args["shortcut"] == "pad"


@pytest.mark.parametrize(
    ("stored", "asked", "made"),
    [
        ("pad", None, "pad"),
        ("projection", None, "projection"),
        ("pad", "pool", "pool"),
        ("pad", "projection", None),
        ("projection", "pad", None),
    ],
)
def test_environments_follow_the_file_unless_they_are_told_otherwise(stored, asked, made, tmp_path):
    given = {"dataset": "rendered-digits", "weights": write(tmp_path / "net.th", stored), "shortcut": asked}
    if made is None:
        with pytest.raises(WeightsError, match="does not fit"):
            gym.make("SkipResNet14-v0", **given)
    else:
        gym.make("SkipResNet14-v0", **given)
        assert problem_of("SkipResNet14-v0", **given).resolve().network(10).shortcut == made


def test_a_resumed_run_has_the_shortcuts_that_it_started_with(file, tmp_path):
    flags = {**SMALL, "weights": file, "iterations": 2, "batch_size": 8, "run_dir": tmp_path / "run"}
    first = reinforce.train(reinforce.Args(**flags))
    assert reinforce.train(reinforce.Args(**flags, resume=True))["policies"] == first["policies"]


def test_new_networks_have_projections():
    assert load_network(None, 14, 10, "rendered-digits").shortcut == "projection"


def test_a_model_of_another_library_has_no_shortcut_in_args_json():
    """Older runs stored the default of the ResNets; they are resumed all the same."""
    check_same({"model": "torchvision/resnet18", "shortcut": "projection"}, {"shortcut": None})
    with pytest.raises(ValueError, match="cannot resume with shortcut 'pad'"):
        check_same({"shortcut": "projection"}, {"shortcut": "pad"})


def test_an_unknown_shortcut_is_named_before_anything_is_read():
    with pytest.raises(ValueError, match="unknown shortcut 'padd'; did you mean 'pad'"):
        static.Args(**SMALL, shortcut="padd").check()
