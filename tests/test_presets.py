"""Defaults that follow from a few given flags."""

import json
import shlex
from dataclasses import replace
from typing import get_args

import pytest
import torch
from test_agents import gated_file

from agents import (
    a2c,
    act,
    blockdrop,
    dqn,
    finetune,
    gumbel,
    hybrid_reinforce,
    oracle,
    ppo,
    pretrain,
    reinforce,
    static,
)
from agents.common import preset_choice
from agents.common.optimizers import staged
from agents.common.parsing import parse
from agents.common.preset_choice import STEPS, values_of
from agents.common.presets import PRESETS, WHY, Preset, describe
from agents.common.problems import named_problem
from agents.common.situation import environment_of, situation_of
from agents.hybrid_reinforce import Args, arguments
from skipnet_rl.catalogue import index
from skipnet_rl.checkpoint import save_weights
from skipnet_rl.errors import WeightsError, unknown_name
from skipnet_rl.resnet import ResNet
from skipnet_rl.runs import as_stored
from skipnet_rl.stored import find_file


def parsed(line: str) -> Args:
    """Arguments that `agents.hybrid_reinforce` reads from a command line."""
    words = shlex.split(line)
    return parse(Args, words, arguments(words))


@pytest.mark.parametrize("line, preset, weights", [
    ("--dataset rendered-digits", "quick", "auto"),
    ("--dataset cifar10", "gated", "resnet110-cifar10-hrl-0.4-ensemble"),
    ("--dataset cifar10 --alpha 1", "gated", "resnet110-cifar10-hrl-0.8-ensemble"),
    ("--env SkipResNet38-v0 --dataset=cifar10", "gated", "resnet38-cifar10-hrl-0.5-ensemble"),
    ("--dataset cifar10 --preset plain", "plain", "auto"),
    ("--dataset cifar10 --weights resnet110-cifar10", "plain", "resnet110-cifar10"),
    ("--dataset cifar10 --gate ff1", "plain", "auto"),
    ("--dataset cifar10 --sp-iterations 9", "plain", "auto"),
    ("--dataset cifar10 --iterations 0", "plain", "auto"),
    ("--env SkipResNet20-v0 --dataset cifar100", "plain", "auto"),
    ("--dataset rendered-digits --env SkipResNet20-v0", "plain", "auto"),
    ("--env SkipResNet38-v0 --dataset cifar10 --gate-weights resnet38-cifar10-ff2-hrl-0.5", "gated",
     "resnet38-cifar10-ff2-hrl-0.5"),
])  # fmt: skip
def test_auto_takes_what_fits(line, preset, weights):
    args = parsed(line)
    assert (args.preset, args.weights) == (preset, weights)
    if preset == "gated":
        alphas = {entry["name"]: entry.get("alpha") for entry in index()}
        assert args.gate_weights == weights and args.sp_iterations == 0
        assert args.alpha == alphas[weights] or "--alpha" in line
    args.check()


AGENTS = (a2c, act, blockdrop, dqn, finetune, gumbel, hybrid_reinforce, oracle, ppo, reinforce, static)


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.__name__)
def test_the_environment_follows_the_weights(agent):
    def chosen(*words):
        return parse(agent.Args, words, agent.arguments(words)).env

    assert chosen("--weights", "resnet20-cifar100") == "SkipResNet20-v0"
    assert chosen("--weights=resnet38-rendered-digits") == "SkipResNet38-v0"
    assert chosen("--weights", "resnet20-cifar10", "--env", "SkipResNet38-v0") == "SkipResNet38-v0"
    assert chosen("--weights", "auto") == chosen() == "SkipResNet110-v0"
    assert chosen("--dataset", "cifar100") == "SkipResNet38-v0"  # the deepest that is shipped
    assert chosen("--dataset", "svhn") == "SkipResNet110-v0"
    assert chosen("--dataset", "rendered-digits", "--model", "torchvision/resnet18") == "SkipNet-v0"


def test_the_environment_of_files(tmp_path):
    """Also of files of other projects, which have no header; whatever names none has the default one."""
    for depth, id in ((20, "SkipResNet20-v0"), (34, "SkipResNet34-v0"), (50, "SkipResNet50-v0"), (26, None)):
        torch.save({"state_dict": ResNet(depth, 10).state_dict()}, tmp_path / "net.pth")
        assert environment_of(str(tmp_path / "net.pth")) == (id or Args.env), depth
    (tmp_path / "other.pth").write_bytes(b"something else")
    torch.save({}, tmp_path / "empty.pth")
    chain = {"kind": "chain", "networks": ["resnet14-cifar10-distilled", "resnet38-cifar10"]}
    (tmp_path / "chain.json").write_text(json.dumps(chain))
    files = (tmp_path / name for name in ("other.pth", "empty.pth", "chain.json", "missing.pth"))
    for none in (*files, "chain14x38-cifar100", "none", "~nobody-of-this-name/x.pth", "x" * 300):
        assert environment_of(str(none)) == Args.env, none
    for gone in ("~nobody-of-this-name/x.pth", "x" * 300):
        with pytest.raises(WeightsError, match="no weights file"):
            find_file(gone)


def test_gates_that_are_named_alone_choose_the_environment():
    args = parsed("--gate-weights resnet38-cifar10-hrl-0.5-ensemble --dataset cifar10")
    assert (args.env, args.weights) == ("SkipResNet38-v0", "resnet38-cifar10-hrl-0.5-ensemble")
    other = parsed("--gate-weights resnet38-cifar10-hrl-0.5-ensemble --weights resnet20-cifar10")
    assert (other.env, other.weights) == ("SkipResNet20-v0", "resnet20-cifar10")
    assert situation_of(["--data-dir", "nowhere"]).env == Args.env  # the run will report it


@pytest.mark.parametrize("agent", [pretrain, *(each for each in AGENTS if hasattr(each.Args, "resume"))])
def test_a_resumed_run_keeps_its_flags(agent, tmp_path):
    """Not those of the machine; others that are given again count, and comparing them is up to the run."""
    about = {"seed": 7, "alpha": 0.25, "test_images": 9, "mean": (0.1, 0.2, 0.3), "data_dir": tmp_path}
    started = replace(agent.Args(), **about, device="cuda", run_dir=tmp_path, weights="resnet20-cifar100")
    stored = {**as_stored(started), "versions": {}, "commit": None, "machine": "another"}
    (tmp_path / "args.json").write_text(json.dumps(stored))

    def read(*given):
        words = ["--resume", "--run-dir", str(tmp_path), *given]
        return parse(agent.Args, words, agent.arguments(words))

    assert read() == replace(started, device="auto", resume=True)
    again = ["--weights", "auto"] * (agent.Args.weights == "auto")
    assert read(*again, "--seed", "8") == replace(started, device="auto", resume=True, seed=8)
    (tmp_path / "args.json").write_text(json.dumps({**stored, "a_flag_of_another_agent": 1}))
    assert read().seed == 0


@pytest.mark.parametrize("content, message", [
    ("[1]", "holds .1., expected an object"),
    ('{"env": ', "is damaged: Expecting value"),
    ('{"env": 5}', "is damaged: env is 5"),
    ('{"mean": [1]}', r"is damaged: mean is \(1,\)"),
])  # fmt: skip
def test_damaged_arguments_of_a_resumed_run(content, message, tmp_path):
    (tmp_path / "args.json").write_text(content)
    with pytest.raises(ValueError, match=f"args.json.*{message}"):
        arguments(["--resume", "--run-dir", str(tmp_path)])


def test_the_data_set_follows_the_weights(tmp_path):
    for folder in ("cifar-10-batches-py", "cifar-100-python"):
        (tmp_path / folder).mkdir()
    of_cifar100 = f"--weights resnet20-cifar100 --data-dir {tmp_path}"
    assert named_problem(parsed(of_cifar100)).dataset == "cifar100"
    assert named_problem(parsed(f"{of_cifar100} --dataset cifar10")).dataset == "cifar10"
    of_digits = parsed(f"--weights resnet110-rendered-digits --data-dir {tmp_path}")
    assert (named_problem(of_digits).dataset, of_digits.preset) == ("rendered-digits", "quick")


def test_given_gates_continue_at_their_alpha(tmp_path):
    file = gated_file(tmp_path)
    args = parsed(f"--env SkipResNet20-v0 --dataset rendered-digits --gate-weights {file}")
    assert (args.preset, args.weights, args.gate_weights, args.alpha) == ("gated", str(file), str(file), 1.0)


@pytest.mark.parametrize("line", [
    "--dataset cifar10 --iterations 0", "--dataset rendered-digits --iterations 0 --preset quick",
    "--dataset cifar100 --env SkipResNet20-v0 --iterations 0",
])  # fmt: skip
def test_sp_alone_trains(line):
    assert set(parsed(line).plan()) >= {"sp"}


def test_an_untrained_network_is_not_prepared_and_does_not_teach():
    args = parsed("--dataset cifar10 --weights none")
    assert (args.preset, args.warmup_iterations, args.distillation) == ("plain", 0, 0.0)
    args.check()


@pytest.fixture
def own_files(monkeypatch):
    """Files of weights, of which only the headers are read."""
    known = {
        "plain.safetensors": {"kind": "plain", "depth": 110},
        "gated.safetensors": {"kind": "rnn", "depth": 110, "alpha": 0.7},
        "foreign.safetensors": {"kind": "rnn", "depth": 110},
    }
    monkeypatch.setattr(preset_choice, "header_of", known.__getitem__)


@pytest.mark.usefixtures("own_files")
def test_the_first_look_is_at_the_shipped_network():
    """Your own network may need a preparation, which `quick` lacks."""
    own = parsed("--env SkipResNet110-v0 --dataset rendered-digits --weights plain.safetensors")
    assert own.preset == "plain" and own.warmup_iterations > 0
    assert parsed("--env SkipResNet110-v0 --dataset rendered-digits").preset == "quick"


@pytest.mark.usefixtures("own_files")
def test_a_file_with_gates_continues_from_them():
    line = "--env SkipResNet110-v0 --dataset cifar10 --weights gated.safetensors"
    args = parsed(line)
    assert (args.preset, args.gate_weights, args.alpha) == ("gated", "gated.safetensors", 0.7)
    for changed in ("--gate ff1", "--sp-iterations 5", "--preset plain"):
        args = parsed(f"{line} {changed}")
        assert (args.preset, args.gate_weights) == ("plain", None), changed
    args = parsed(line.replace("gated", "foreign"))  # their alpha is unknown
    assert (args.preset, args.gate_weights) == ("plain", None)


def test_gated_needs_gates():
    with pytest.raises(ValueError, match="--gate-weights"):
        parsed("--env SkipResNet20-v0 --dataset cifar100 --preset gated")


def test_a_run_that_is_resumed_keeps_its_preset(tmp_path):
    """`auto` could choose another on another machine or with other shipped networks."""
    stored = {**as_stored(parsed("--dataset cifar10 --preset plain --alpha 0.7")), "batch_size": 512}
    (tmp_path / "args.json").write_text(json.dumps(stored), encoding="utf-8")
    args = parsed(f"--dataset cifar10 --resume --run-dir {tmp_path}")
    assert (args.preset, args.alpha, args.batch_size) == ("plain", 0.7, 512)
    assert as_stored(args)["iterations"] == stored["iterations"]


def test_a_teacher_has_a_share_of_the_loss():
    for line in (
        "--dataset rendered-digits --teacher auto",
        "--dataset cifar10 --preset plain --teacher a b",
    ):
        assert parsed(line).distillation == 0.9
        parsed(line).check()
    assert parsed("--dataset rendered-digits").distillation == 0


def test_every_row_is_a_choice():
    assert get_args(Preset) == ("auto", *PRESETS)


def test_a_file_knows_how_it_was_trained(tmp_path):
    about = {"kind": "plain", "shortcut": "pad", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    save_weights(tmp_path / "mine.safetensors", ResNet(8, 10, "pad"), about)
    args = parsed(f"--dataset rendered-digits --weights {tmp_path / 'mine.safetensors'}")
    assert (args.mean, args.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_auto_on_the_command_line_is_what_it_is_without():
    given = parsed("--dataset cifar10 --weights auto --preset auto")
    assert given == parsed("--dataset cifar10") and given.weights == given.gate_weights
    assert parse(pretrain.Args, ["--weights", "auto"]).weights == "auto"  # by default it is "none"


def test_flags_override_presets():
    args = parsed("--dataset cifar10 --preset plain --iterations 7 --alpha 0.9 --lr 0.5")
    assert (args.iterations, args.alpha, args.lr) == (7, 0.9, 0.5)
    assert args.optimizer == PRESETS["plain"]["optimizer"]


def test_steps_take_as_long_on_a_deeper_network():
    """A ResNet-110 costs 6.2 times as much as a ResNet-20, see tests/test_flops.py."""
    small, large = (
        parsed(f"--env SkipResNet{depth}-v0 --dataset cifar100 --device cpu") for depth in (20, 110)
    )
    assert [getattr(small, name) for name in STEPS] == [PRESETS["plain"][name] for name in STEPS]
    for name in STEPS:
        steps = getattr(small, name)
        expected = max(preset_choice.FEWEST, steps / 6.2) if steps else 0
        assert getattr(large, name) == pytest.approx(expected, abs=1)


def test_a_gpu_takes_more_and_larger_steps(monkeypatch):
    monkeypatch.setattr(preset_choice, "pick_device", lambda name: type("Device", (), {"type": "cuda"}))
    args = parsed("--env SkipResNet20-v0 --dataset cifar100")
    plain = PRESETS["plain"]
    assert args.iterations == preset_choice.GPU_STEPS * plain["iterations"]
    assert args.batch_size == preset_choice.GPU_BATCH * plain["batch_size"] and args.lr == 2 * plain["lr"]


@pytest.mark.parametrize("gpu", [False, True])
def test_act_scales_its_steps_alike(monkeypatch, tmp_path, gpu):
    monkeypatch.setattr(
        preset_choice, "pick_device", lambda name: type("Device", (), {"type": "cuda" if gpu else "cpu"})
    )
    usual, more = act.Args(), 4 if gpu else 1
    for depth, cost in ((14, 1 / 1.53), (20, 1), (110, 6.2), (50, 100)):
        args = act.arguments(["--env", f"SkipResNet{depth}-v0"])
        expected = max(preset_choice.FEWEST, more * usual.iterations / cost)
        assert args.iterations == args.tune_iterations == pytest.approx(expected, rel=0.01), depth
        larger = gpu and depth != 50
        assert args.batch_size == usual.batch_size * (4 if larger else 1)
        assert args.lr == usual.lr * (2 if larger else 1) and args.gate_lr == usual.gate_lr
    (tmp_path / "args.json").write_text(json.dumps({"iterations": 7, "lr": 0.5}))
    resumed = act.arguments(["--resume", "--run-dir", str(tmp_path)])  # as on the machine that it began on
    assert (resumed.iterations, resumed.lr) == (7, 0.5)
    chain = act.arguments(["--env", "SkipChain14x38-v0"])
    assert chain == replace(usual, env="SkipChain14x38-v0")  # which the run refuses


def test_the_papers_preset():
    args = parsed("--dataset cifar10 --preset paper")
    assert (args.policy_weight, args.alpha, args.routes, args.baseline) == (0.01, 0.1, 1, "none")
    plan = args.plan()
    rates = [0.1 * staged(args.schedule, plan, step) for step in (0, 31_999, 32_000, 48_000, 63_999)]
    assert args.sp_lr == 0.1 and rates == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.001])
    assert plan[64_000:] == ["hrl"] * 10_000 and staged(args.schedule, plan, 73_999) == 1.0
    args.check()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(preset):
    env = "SkipChain14x38-v0" if preset == "chain" else "SkipResNet38-v0"
    args = parsed(f"--env {env} --dataset cifar10 --preset {preset}")
    args.check()
    assert describe(args).startswith(f"{preset} ({WHY.get(preset, 'flags as given')}")


def test_the_numbers_of_a_preset_are_named_even_where_they_are_the_defaults():
    line = describe(parsed("--dataset rendered-digits --iterations 70"))
    assert line.startswith("quick (a first look")
    for number in ("alpha 1.8", "sp iterations 4", " iterations 70", "tune iterations 48", "gate lr 0.03"):
        assert number in line


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="plain") as caught:
        values_of(situation_of(["--preset", "plane"]))
    assert str(caught.value) == str(unknown_name("preset", "plane", ("auto", *PRESETS)))


def test_every_start_is_a_shipped_network_with_gates():
    starts = [entry for entry in index() if entry.get("start")]
    assert {entry["depth"] for entry in starts} == {38, 74, 110}
    assert all(entry["kind"] != "plain" and "alpha" in entry for entry in starts)
    keys = [
        tuple(entry[key] for key in ("depth", "dataset", "shortcut", "kind", "alpha")) for entry in starts
    ]
    assert len(set(keys)) == len(keys), "two starts for one situation"
