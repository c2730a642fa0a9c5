"""The agents learn where the best route is known, repeat themselves, resume, and refuse bad flags."""

import dataclasses
import json
import math
import subprocess
import sys
from collections import Counter
from operator import itemgetter
from pathlib import Path

import pytest
import torch
from toys import Replay, hybrid_learner, load_first, toy_net, two_colours

from agents import act, blockdrop, finetune, gumbel, hybrid_reinforce, pretrain
from agents import evaluate as play
from agents.common import keeper, setting
from agents.common.cli import main_with_named_errors
from agents.common.distillation import Teacher, load_teachers
from agents.common.finished import FinishedRun
from agents.common.keeper import KeepBest
from agents.common.optimizers import falling, staged, warmed_up
from agents.common.parsing import headings, parse
from agents.common.problems import named_problem
from agents.common.setting import Setting
from skipnet_rl import problem
from skipnet_rl.catalogue import index
from skipnet_rl.checkpoint import read_tensors, save_weights
from skipnet_rl.data import ImageSet, load_images
from skipnet_rl.data.imageset import training_index
from skipnet_rl.data.places import CIFAR
from skipnet_rl.errors import WeightsError
from skipnet_rl.evaluate import Evaluation, evaluate, most_frequent
from skipnet_rl.folding import for_inference
from skipnet_rl.gates import RecurrentGate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute, RandomSkip
from skipnet_rl.policy_networks import PolicyNetwork
from skipnet_rl.problem import load_network
from skipnet_rl.randomness import step_generator
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import rollout
from skipnet_rl.runs import Run
from skipnet_rl.weights import open_weights


def toy_learner(data: ImageSet, **flags) -> tuple[hybrid_reinforce.Learner, hybrid_reinforce.Args]:
    """Gates over the toy of `toys`."""
    args = hybrid_reinforce.Args(
        batch_size=32, routes=2, iterations=60, sp_iterations=0, lr=0.0, gate_lr=0.1, schedule="constant",
        precision="fp32", **flags,
    )  # fmt: skip
    return hybrid_learner(args, toy_net(data)), args


def test_hybrid_reinforce_finds_the_best_route():
    data = two_colours()
    learner, args = toy_learner(data, alpha=0.2)
    images, labels = data.batch(torch.arange(len(data)))
    net = learner.mdp.net.eval()
    returns = {
        route: rollout(
            learner.mdp, Replay(torch.tensor([route]).expand(64, 2)), images, labels
        ).returns.mean()
        for route in ((0, 0), (0, 1), (1, 0), (1, 1))
    }
    assert max(returns, key=returns.get) == (1, 0), "the toy's best route is not what it is built to be"
    for step in range(args.iterations):
        hybrid_reinforce.train_step(learner, data, step, "hrl", args)
    net.eval()
    greedy = rollout(learner.mdp, learner.gate, images, labels)
    assert greedy.actions.mean(dim=0).tolist() == [1.0, 0.0]
    assert greedy.correct.all()


def small_args(tmp_path, **flags) -> hybrid_reinforce.Args:
    small = {
        "env": "SkipResNet20-v0", "dataset": "rendered-digits", "sp_iterations": 2, "iterations": 3,
        "tune_iterations": 1, "batch_size": 8, "eval_every": 2, "eval_images": 16, "precision": "fp32",
        "run_dir": tmp_path / "run",
    }  # fmt: skip
    return hybrid_reinforce.Args(**{**small, **flags})


def tuning_args(tmp_path, **flags) -> finetune.Args:
    small = {
        "env": "SkipResNet20-v0", "dataset": "rendered-digits", "iterations": 1, "batch_size": 8,
        "eval_every": 2, "eval_images": 16, "bn_images": 250, "precision": "fp32",
        "run_dir": tmp_path / "run",
    }  # fmt: skip
    return finetune.Args(**{**small, **flags})


def test_how_many_test_images_end_a_run(tmp_path):
    """Half of the rendered digits', which keeps the main job short; all where they are asked for."""
    args = small_args(tmp_path)
    half, whole = (Setting.of(dataclasses.replace(args, test_images=count)) for count in (None, 4_000))
    assert (len(half.test), len(whole.test)) == (2_000, 4_000)
    assert half.split_images == whole.split_images == 4_000
    assert torch.equal(half.test.labels, whole.test.labels[:2_000])


def gated_file(folder, depth: int = 20) -> Path:
    """A network with gates that tell images apart, for no reason; its blocks are those that are shipped."""
    torch.manual_seed(0)
    net = load_network("auto", depth, 10, "rendered-digits")
    both = torch.nn.ModuleDict({"net": net, "gate": RecurrentGate(net, initial_rate=0.6, gain=30)})
    about = {"depth": depth, "dataset": "rendered-digits", "gate": "rnn", "shortcut": "projection"}
    save_weights(folder / "gates.safetensors", both, {**about, "alpha": 1.0, "cost": "blocks"})
    return folder / "gates.safetensors"


def test_a_run_leaves_the_promised_files(tmp_path, few_images, pictures, capsys):
    result = hybrid_reinforce.train(small_args(tmp_path))
    run = tmp_path / "run"
    assert json.loads((run / "result.json").read_text())["policies"] == result["policies"]
    names = [row["name"] for row in result["policies"]]
    assert names == ["all blocks", "random", "random, HRL weights", "SP", "HRL"]
    for row in result["policies"]:
        assert row["compute_blocks"] == pytest.approx(
            (row["executed_blocks_mean"] + 1) / 9
        )  # ResNet-20: N = 8
        assert sum(row["executed_blocks_histogram"]) == result["n_images"] == 32
    full = result["policies"][0]
    assert full["compute_flops"] == 1 and full["unique_routes"] == 1
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 5, 6]
    for file in (
        "args.json",
        "sp.safetensors",
        "hrl.safetensors",
        "checkpoint/state.json",
        "plots/training.png",
    ):
        assert (run / file).is_file(), file
    assert list(run.glob("events.out.tfevents*"))
    shown, bar = capsys.readouterr()
    assert "TUNE: 100%" in bar and bar.count("step/s") < 6, "a log file has not a line for each step"
    assert "SkipResNet20-v0 on rendered-digits" in shown
    assert "nothing is saved" in shown and any("nothing is saved" in note for note in result["notes"])


def test_a_run_that_skips_says_nothing_of_it(tmp_path, few_images, capsys):
    """Gates that a large alpha has driven to skip."""
    result = hybrid_reinforce.train(small_args(tmp_path, alpha=500.0, gate_lr=1.0, sp_iterations=0))
    assert result["policies"][-1]["compute_blocks"] < 1
    assert "nothing is saved" not in capsys.readouterr().out


@pytest.mark.parametrize("flags", [
    {}, {"gate": "ff2", "baseline": "value", "warmup_iterations": 1}, {"fixed_route": True},
    {"env": "SkipChain-v0", "weights": "none", "bn": "frozen", "sp_iterations": 0, "iterations": 5},
])  # fmt: skip
def test_same_seed_same_numbers_and_resume_ends_alike(tmp_path, monkeypatch, flags):
    images = 32 if "fixed_route" in flags else 8  # of 8, two seeds keep the same weights of a fixed route
    monkeypatch.setattr(setting, "load_images", load_first(images))
    agent, made = hybrid_reinforce, small_args
    if "fixed_route" in flags:
        agent, made = finetune, tuning_args
        flags = {**flags, "weights": str(gated_file(tmp_path)), "iterations": 6}
    whole = agent.train(made(tmp_path / "a", **flags))
    save = Run.save

    def interrupted(self, state):
        save(self, state)
        if state["step"] == 4:  # in the middle of HRL, or of the tuning alone
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", interrupted)
    args = made(tmp_path / "b", **flags)
    with pytest.raises(KeyboardInterrupt):
        agent.train(args)
    monkeypatch.setattr(Run, "save", save)
    resumed = agent.train(dataclasses.replace(args, resume=True))
    assert resumed["policies"] == whole["policies"]

    def weights(place):
        return (tmp_path / place / "run" / "hrl.safetensors").read_bytes()

    assert weights("a") == weights("b")
    lines = [(tmp_path / place / "run" / "metrics.jsonl").read_text().splitlines() for place in "ab"]
    drop = "train/images_per_s"
    first, second = ([{k: v for k, v in json.loads(x).items() if k != drop} for x in file] for file in lines)
    assert first == second
    other = agent.train(made(tmp_path / "c", seed=1, **flags))
    assert other["policies"][-1]["loss"] != whole["policies"][-1]["loss"]


def moved(before: dict[str, torch.Tensor], module: torch.nn.Module) -> bool:
    return any(not torch.equal(before[name], p) for name, p in module.named_parameters())


@pytest.mark.parametrize("gate", ["rnn", "ff1", "ff2"])
@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        ("warmup", {}),
        ("tune", {}),
        ("sp", {"relaxation": "straight-through"}),
        ("sp", {"relaxation": "soft"}),
        ("hrl", {"baseline": "none", "routes": 1}),
        ("hrl", {"baseline": "batch-mean", "routes": 1}),
        ("hrl", {"baseline": "value", "routes": 1}),
        ("hrl", {"baseline": "leave-one-out", "exploration": 0.1, "entropy": 0.1, "cost": "flops"}),
    ],
)
def test_every_option_trains_what_it_should(gate, stage, flags):
    data = two_colours()
    args = hybrid_reinforce.Args(gate=gate, batch_size=16, precision="fp32", warmup_iterations=1, **flags)
    torch.manual_seed(0)
    costs = torch.tensor([1.0, 0.0])
    learner = hybrid_learner(args, ResNet(8, 2), costs=costs)
    parts = {"net": learner.mdp.net, "gate": learner.gate, "critic": learner.critic}
    before = {
        name: {n: p.detach().clone() for n, p in part.named_parameters()}
        for name, part in parts.items() if part is not None
    }  # fmt: skip
    for step in range(2):  # a critic that starts at zero teaches the head's weights from the second step on
        episode = hybrid_reinforce.train_step(learner, data, step, stage, args)
        assert episode.loss.isfinite().all()
    assert moved(before["net"], learner.mdp.net)
    assert moved(before["gate"], learner.gate) == (stage != "tune")  # thresholds have no gradient
    if learner.critic:
        assert moved(before["critic"], learner.critic)


def test_distillation_follows_the_network_that_the_run_started_from():
    """By hand on four images: a share of the loss is T² KL at T = 4; the teacher stays as it was."""
    torch.manual_seed(0)
    net = ResNet(8).eval()
    args = hybrid_reinforce.Args(distillation=0.25, routes=2, batch_size=8, precision="fp32", lr=0.1)
    learner = hybrid_learner(args, net)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    targets = learner.teacher(images)
    torch.testing.assert_close(targets, net(images).detach(), rtol=1e-4, atol=1e-5)
    episode = rollout(learner.mdp, RandomSkip(0.5), images, labels, "sample")
    p, q = (torch.softmax(logits.double() / 4, dim=1) for logits in (targets, episode.logits))
    by_hand = 0.75 * episode.loss.mean() + 0.25 * 16 * (p * (p / q).log()).sum() / 4
    found = hybrid_reinforce.backbone_loss(episode, args, targets)
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-4)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    hybrid_reinforce.train_step(learner, two_colours(32), 0, "hrl", args)
    assert moved(before, net)
    assert torch.equal(learner.teacher(images), targets)
    plain = dataclasses.replace(args, distillation=0.0)
    assert hybrid_learner(plain, net).teacher is None
    other = ResNet(8).eval()
    taught = hybrid_learner(args, net, [other]).teacher(images)
    torch.testing.assert_close(taught, other(images).detach(), rtol=1e-4, atol=1e-5)


def test_several_teachers_teach_the_mean_of_their_logits():
    """The geometric mean of their distributions, at any temperature; they learn nothing themselves."""
    torch.manual_seed(0)
    nets = [ResNet(8), ResNet(14), ResNet(8)]
    teacher, images = Teacher(nets, "fp32"), torch.randn(4, 3, 32, 32)
    found = teacher(images)
    expected = sum(net.eval()(images).detach() for net in nets) / 3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not found.requires_grad and not any(p.requires_grad for p in teacher.parameters())
    p = [torch.softmax(net(images).detach().double() / 4, dim=1) for net in nets]
    mean = (p[0] * p[1] * p[2]) ** (1 / 3)
    mean /= mean.sum(dim=1, keepdim=True)
    torch.testing.assert_close(torch.softmax(found.double() / 4, dim=1), mean, rtol=1e-4, atol=1e-6)
    assert torch.equal(Teacher(nets[:1], "fp32")(images), for_inference(nets[0])(images))


def test_teachers_have_the_depth_of_their_files(tmp_path):
    save_weights(tmp_path / "mine.safetensors", ResNet(8), {})
    names = ("resnet20-rendered-digits", str(tmp_path / "mine.safetensors"), "auto")
    task = problem.Problem(110, "rendered-digits", device="cpu").resolve()
    nets = load_teachers(names, ResNet(110), 10, task)
    assert [net.depth for net in nets] == [20, 8, 110]
    save_weights(tmp_path / "large.safetensors", ResNet(34), {})
    with pytest.raises(ValueError, match="takes images of 224 pixels, a ResNet-110 images of 32"):
        load_teachers([tmp_path / "large.safetensors"], ResNet(110), 10, task)


def test_frozen_batch_norms_keep_their_statistics():
    data = two_colours()
    for bn, frozen in (("frozen", True), ("train", False)):
        args = hybrid_reinforce.Args(batch_size=16, precision="fp32", bn=bn)
        learner = hybrid_learner(args, ResNet(8, 2))
        before = learner.mdp.net.stem[1].running_mean.clone()
        hybrid_reinforce.train_step(learner, data, 0, "hrl", args)
        assert torch.equal(before, learner.mdp.net.stem[1].running_mean) == frozen


@pytest.mark.parametrize("asked, seen", [(1, 250), (250, 250), (300, 500)])
def test_batch_norms_are_settled_on_as_many_images(asked, seen):
    data = two_colours(600)
    args = hybrid_reinforce.Args(batch_size=16, precision="fp32", bn_images=asked)
    learner, images = hybrid_learner(args, ResNet(8, 2)), []
    learner.mdp.net.stem.register_forward_hook(lambda stem, inputs, output: images.append(len(output)))
    keeper.settle(learner, data, "hrl", args)
    assert sum(images) == seen


def test_gates_are_those_of_test_time_in_the_tuning():
    """Feed-forward gates have batch norms of their own, which the tuning leaves as they are."""
    data = two_colours()
    args = hybrid_reinforce.Args(batch_size=16, precision="fp32", gate="ff1")
    learner = hybrid_learner(args, ResNet(8, 2))
    for stage, stays in (("hrl", False), ("tune", True)):
        before = {name: value.clone() for name, value in learner.gate.state_dict().items()}
        hybrid_reinforce.train_step(learner, data, 0, stage, args)
        keeper.settle(learner, data, stage, args)
        after = learner.gate.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items()) == stays, stage


def test_learning_rates_fall_in_hrl_and_in_its_tuning():
    args = hybrid_reinforce.Args(warmup_iterations=1, sp_iterations=2, iterations=4, tune_iterations=2)
    assert args.plan() == ["warmup", "sp", "sp", "hrl", "hrl", "hrl", "hrl", "tune", "tune"]
    assert [staged(args.schedule, args.plan(), step) for step in range(9)] == [
        1,
        1,
        1,
        1,
        0.75,
        0.5,
        0.25,
        1,
        0.5,
    ]
    constant = dataclasses.replace(args, schedule="constant")
    assert {staged(constant.schedule, constant.plan(), step) for step in range(9)} == {1.0}
    assert [falling(name, 0.25) for name in ("constant", "linear")] == [1, 0.25]
    assert [falling("cosine", left) for left in (1, 0.5, 0)] == pytest.approx([1, 0.5, 0])
    cosine = dataclasses.replace(args, schedule="cosine")
    of_two, of_six = [1, 0.5], [0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert [staged(cosine.schedule, cosine.plan(), step) for step in range(9)] == pytest.approx(
        [1, *of_two, *of_six]
    )
    assert dataclasses.replace(args, sp_iterations=0).plan() == ["warmup"] + ["hrl"] * 4 + ["tune"] * 2
    assert dataclasses.replace(args, iterations=0).plan() == ["warmup", "sp", "sp"]


def test_learning_rate_of_pretraining_rises_and_falls():
    done = (0.05, 0.1, 0.55, 1)
    assert [warmed_up("cosine", 0.1, share) for share in done] == pytest.approx([0.5, 1, 0.5, 0])
    done = (0.05, 0.1, 0.49, 0.5, 0.74, 0.75, 1)
    assert [warmed_up("step", 0.1, share) for share in done] == [0.5, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert warmed_up("step", 0.0, 0.0) == 1


def test_sgd_moves_the_backbone_and_adam_the_gates():
    """One step of HRL: Nesterov with weight decay on the backbone, Adam on the gates."""
    args = hybrid_reinforce.Args(batch_size=16, precision="fp32", optimizer="sgd", lr=0.1, gate_lr=1e-3)
    learner = hybrid_learner(args, ResNet(8, 2))
    weight, bias, head = learner.mdp.net.fc.weight, learner.mdp.net.fc.bias, learner.gate.head.bias
    before = [value.detach().clone() for value in (weight, bias, head)]
    hybrid_reinforce.train_step(learner, two_colours(), 0, "hrl", args)
    by_hand = before[0] - 0.1 * 1.9 * (weight.grad + 5e-4 * before[0])  # 1 + momentum, on the first step
    torch.testing.assert_close(weight.detach(), by_hand)
    torch.testing.assert_close(bias.detach(), before[1] - 0.1 * 1.9 * bias.grad)  # no decay of vectors
    assert (head.detach() - before[2]).abs().item() == pytest.approx(1e-3, rel=1e-3)


def test_finetuning_keeps_the_gates_and_follows_the_teacher(tmp_path, few_images, monkeypatch):
    """From the file of a run: the backbone moves, the gates do not; a deeper teacher, other weights."""
    hybrid_reinforce.train(small_args(tmp_path, sp_iterations=0))
    file = tmp_path / "run" / "hrl.safetensors"
    stored, ends = read_tensors(file), {}
    others = ("resnet38-rendered-digits", "resnet20-rendered-digits")
    monkeypatch.setattr(KeepBest, "begin", lambda self: None)  # nor is the start kept
    for teacher, named in ((None, ()), ("one", others[:1]), ("two", others)):
        place = tmp_path / str(teacher)
        args = tuning_args(place, weights=str(file), teacher=named)
        result = finetune.train(args)
        assert [row["name"] for row in result["policies"]][-2:] == ["random, HRL weights", "HRL"]
        ends[teacher] = read_tensors(place / "run" / "hrl.safetensors")
        for name, value in ends[teacher].items():
            assert torch.equal(value, stored[name]) or name.startswith("net."), name
        assert not torch.equal(ends[teacher]["net.stem.0.weight"], stored["net.stem.0.weight"])
    for one, other in ((None, "one"), ("one", "two"), (None, "two")):
        assert not torch.equal(ends[one]["net.fc.weight"], ends[other]["net.fc.weight"])
    again = dataclasses.replace(args, resume=True)  # the stored teachers are a list
    assert finetune.train(again)["policies"] == result["policies"]
    with pytest.raises(ValueError, match="cannot resume with teacher"):
        finetune.train(dataclasses.replace(again, teacher=others[:1]))


def test_finetuning_is_the_closing_steps_of_hybrid_reinforce(tmp_path, few_images):
    """The same step, to the bit: from one network at the same step and learning rate."""
    file = gated_file(tmp_path)
    common = {"batch_size": 8, "lr": 0.01, "optimizer": "sgd", "seed": 3, "precision": "fp32"}
    place = Setting.of(tuning_args(tmp_path, weights=str(file), iterations=6, **common))
    tuner = finetune.start(place)
    closing = hybrid_reinforce.Args(
        env="SkipResNet20-v0", sp_iterations=0, iterations=4, tune_iterations=6, schedule="cosine", **common
    )
    learner = hybrid_learner(closing, place.mdp().net)
    learner.gate.load_state_dict(tuner.gate.state_dict())
    args = dataclasses.replace(place.args, iterations=closing.iterations + closing.tune_iterations)
    for step in (4, 5):
        finetune.train_step(tuner, place.train, step, "tune", args)
        hybrid_reinforce.train_step(learner, place.train, step, "tune", closing)
    found, expected = tuner.model.state_dict(), learner.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_fixed_route_is_tuned_in_the_place_of_the_gates_it_came_from(tmp_path, few_images):
    """The commonest of a gated network's routes on validation images, for all, now and from the file."""
    file = gated_file(tmp_path)
    opened = open_weights(file)
    mdp, gate = opened.mdp(), opened.policy
    chosen = evaluate(mdp, gate, load_images("rendered-digits", "val").first(64)).routes.tolist()
    counts = Counter(map(tuple, chosen))
    assert len(counts) > 1
    result = finetune.train(tuning_args(tmp_path / "fixed", weights=str(file), fixed_route=True))
    row, folder = result["policies"][-1], tmp_path / "fixed" / "run"
    assert counts[tuple(map(bool, row["execution_rate"]))] == max(counts.values())
    assert row["unique_routes"] == 1 and row["policy_flops"] == 0
    with pytest.raises(ValueError, match="need a policy that chooses blocks"):
        play.main(play.Args(paths=(folder,), controls=True))
    again = tuning_args(tmp_path / "again", weights=str(folder / "hrl.safetensors"))
    assert finetune.train(again)["policies"][-1]["execution_rate"] == row["execution_rate"]
    opened = open_weights(folder / "hrl.safetensors")
    for network, policy in ((opened.mdp(), opened.policy), FinishedRun.read(folder).restore(10)):
        test = load_images("rendered-digits", "test").first(result["n_images"])
        assert evaluate(network, policy, test).summary("HRL")["loss"] == pytest.approx(row["loss"])
    deeper = str(gated_file(tmp_path / "run", 110))
    with pytest.raises(WeightsError, match="ResNet-110"):
        finetune.train(tuning_args(tmp_path / "misfit", weights=deeper))


@pytest.mark.parametrize("flags, message", [
    (["--env", "SkipResNet32-v0"], "--weights is auto; expected a network with gates"),
    (["--weights", "resnet20-rendered-digits", "--env", "SkipResNet20-v0"], "has no gates"),
    (["--weights", "resnet110-rendered-digits-hrl", "--iterations", "0"], "--iterations is 0"),
    (["--weights", "/nowhere.safetensors"], "no weights file /nowhere.safetensors"),
])  # fmt: skip
def test_finetuning_refuses(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["finetune", *flags, "--run-dir", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stop:
        main_with_named_errors(finetune.Args, finetune.train, defaults=finetune.arguments)
    error = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and message in error[-1] and error[-1].startswith("error: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words, name",
    [
        (["--dataset", "rendered-digits"], "resnet110-rendered-digits-hrl"),
        (["--env", "SkipResNet38-v0", "--dataset", "cifar10"], "resnet38-cifar10-hrl-0.5-ensemble"),
        (
            ["--env", "SkipResNet38-v0", "--dataset", "cifar10", "--alpha", "1.2"],
            "resnet38-cifar10-hrl-1.0-gain6-ensemble",
        ),
        (["--env", "SkipResNet32-v0", "--dataset", "cifar10"], "auto"),
    ],
)
def test_finetune_starts_from_the_shipped_network_with_gates(words, name):
    args = finetune.arguments(words)
    assert args.weights == name
    if name == "auto":
        with pytest.raises(ValueError, match="none is shipped for this id"):
            args.check()


def test_finetuning_knows_what_the_file_knows(tmp_path):
    """Depth, data set, alpha: without another flag."""
    args = parse(finetune.Args, [], finetune.arguments(["--weights", str(gated_file(tmp_path))]))
    assert (args.env, named_problem(args).dataset, args.alpha) == ("SkipResNet20-v0", "rendered-digits", 1.0)


@pytest.mark.parametrize("kind", ["blockdrop", "sb3"])
def test_finetuning_refuses_policies_that_are_no_gates_but_takes_their_route(kind, tmp_path, few_images):
    """A file with a gate of that kind could not be opened; one route for all images can be stored."""
    net = load_network("auto", 20, 10, "rendered-digits")
    about = {"kind": kind, "depth": 20, "dataset": "rendered-digits", "alpha": 1.0, "cost": "blocks"}
    if kind == "blockdrop":
        policy = torch.nn.ModuleDict({"net": net, "policy": PolicyNetwork(8)})
        about |= {"policy_depth": 8}
    else:
        policy = torch.nn.ModuleDict({"action_net": torch.nn.Linear(72, 2)})
        about |= {"network": "resnet20-rendered-digits"}
    save_weights(tmp_path / "w.safetensors", policy, about)
    args = tuning_args(tmp_path, weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(
        WeightsError, match=f"policy of kind '{kind}'.*agents.hybrid_reinforce.*--fixed-route"
    ):
        finetune.start(Setting.of(args))
    learner = finetune.start(Setting.of(dataclasses.replace(args, fixed_route=True)))
    opened = open_weights(tmp_path / "w.safetensors")
    val = load_first(32)("rendered-digits", "val")
    chosen = most_frequent(evaluate(opened.mdp(), opened.policy, val).routes)
    assert (learner.kind, learner.gate.route.tolist()) == ("fixed", chosen.tolist())


def test_gates_to_start_from(tmp_path, few_images):
    """HRL of no effect, from the file of another run, is that run's policy again."""
    args = small_args(tmp_path, sp_iterations=0)
    first = hybrid_reinforce.train(args)
    file = str(tmp_path / "run" / "hrl.safetensors")
    still = {
        "weights": file,
        "iterations": 1,
        "tune_iterations": 0,
        "lr": 0.0,
        "gate_lr": 0.0,
        "bn": "frozen",
    }
    again = dataclasses.replace(args, run_dir=tmp_path / "again", gate_weights=file, **still)
    second = hybrid_reinforce.train(again)
    for key in ("accuracy", "loss", "execution_rate"):
        assert second["policies"][-1][key] == first["policies"][-1][key], key
    with pytest.raises(WeightsError, match="features.0.0.weight"):
        hybrid_reinforce.train(dataclasses.replace(again, gate="ff2", run_dir=tmp_path / "other"))


def play_shipped(entry: dict, test: ImageSet) -> Evaluation:
    """What a shipped network does with images, its gates thresholded."""
    if entry["kind"] != "plain":
        opened = open_weights(entry["name"])
        mdp, policy = opened.mdp(), opened.policy
    else:
        net = load_network(entry["name"], entry["depth"], len(test.classes), entry["dataset"])
        mdp, policy = RoutingMDP(net), AlwaysExecute()
    return evaluate(mdp, policy, test)


@pytest.mark.parametrize(
    "entry", [e for e in index() if e["dataset"] == "rendered-digits"], ids=itemgetter("name")
)
def test_shipped_weights_are_as_good_as_the_index_says(entry):
    """On the first 250 test images, within three deviations of the whole set's accuracy."""
    test = load_images("rendered-digits", "test").first(250)
    done = play_shipped(entry, test)
    stated = entry["test_accuracy"]
    margin = 3 * (stated * (1 - stated) / len(test)) ** 0.5
    assert done.accuracy == pytest.approx(stated, abs=margin)
    assert done.compute_flops.mean() == pytest.approx(entry.get("compute_flops", 1), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("entry", [e for e in index() if e["dataset"] in CIFAR], ids=itemgetter("name"))
def test_shipped_cifar_weights_reproduce_the_table(entry, official_folder):
    """On every test image, to 0.1 point; in float32, whatever the figure was measured in."""
    dataset = entry["dataset"]
    done = play_shipped(entry, load_images(dataset, "test", official_folder(dataset)))
    assert done.accuracy == pytest.approx(entry["test_accuracy"], abs=1e-3)
    assert done.compute_flops.mean() == pytest.approx(entry.get("compute_flops", 1), abs=1e-3)


def test_pretrain_learns_and_writes_its_weights(tmp_path, monkeypatch):
    data = two_colours(256)
    monkeypatch.setattr(setting, "load_images", lambda name, split, *rest: data)
    monkeypatch.setattr(problem, "resolve_dataset", lambda *rest: ("colours", "colours"))
    args = pretrain.Args(
        depth=8, epochs=4, batch_size=32, survival=0.8, precision="fp32", run_dir=tmp_path / "run"
    )
    result = pretrain.train(args)
    assert result["policies"][0]["accuracy"] > 0.95
    assert (tmp_path / "run" / "weights.safetensors").is_file()


def test_pretraining_grows_out_of_a_shallower_network(tmp_path, few_images):
    """At a learning rate of zero it keeps its start: old blocks in their places, new ones as shortcuts."""
    common = {"dataset": "rendered-digits", "batch_size": 32, "precision": "fp32"}
    pretrain.train(pretrain.Args(**common, depth=8, epochs=2, run_dir=tmp_path / "small"))
    start = {"weights": str(tmp_path / "small" / "weights.safetensors"), "depth": 26}
    args = pretrain.Args(**common, **start, epochs=1, lr=0.0, run_dir=tmp_path / "grown")
    pretrain.train(args)
    stored, before = (read_tensors(tmp_path / name / "weights.safetensors") for name in ("grown", "small"))
    for name, origin in (("stem.0", "stem.0"), ("fc", "fc"), ("blocks.4.conv1", "blocks.1.conv1"),
                         ("blocks.8.conv2", "blocks.2.conv2")):  # fmt: skip
        assert torch.equal(stored[f"{name}.weight"], before[f"{origin}.weight"]), name
    assert not stored["blocks.1.bn2.weight"].any() and stored["blocks.4.bn2.weight"].any()
    with pytest.raises(WeightsError, match="does not fit"):
        pretrain.train(dataclasses.replace(args, shortcut="pad", run_dir=tmp_path / "misfit"))
    assert not (tmp_path / "misfit").exists()


@pytest.mark.parametrize("survival", [1.0, 0.5])
def test_pretraining_follows_a_teacher_of_another_depth(survival):
    """By hand: the teacher sees the batch that the student sees, and its share is T² KL at T = 4."""
    torch.manual_seed(0)
    student, teacher = ResNet(14), ResNet(8).eval()
    data = two_colours(32)
    args = pretrain.Args(
        batch_size=8, survival=survival, distillation=1.0, teacher=("one",), precision="fp32"
    )
    seen = []
    teacher.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    student.fc.register_forward_hook(lambda module, inputs, output: seen.append((None, output)))
    watched = Teacher([teacher], "fp32")
    watched.nets[0] = teacher  # not its copy, which nobody watches
    learner = pretrain.Learner(args, student, "fp32", watched)
    loss = pretrain.play(learner, data, 3, args).loss
    (images, targets), (_, logits) = seen[0], seen[-1]
    index = training_index(3, 8, len(data), args.seed)
    expected, _ = data.training_batch(index, step_generator(args.seed, 3, torch.device("cpu")))
    assert torch.equal(images, expected)
    p, q = (torch.softmax(each.detach().double() / 4, dim=1) for each in (targets, logits))
    by_hand = 16 * (p * (p / q).log()).sum(dim=1)
    torch.testing.assert_close(loss.double(), by_hand, rtol=1e-3, atol=1e-5)
    loss.mean().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student.fc.weight.grad is not None


def test_a_teacher_is_named_by_its_weights(tmp_path, monkeypatch):
    """A student taught by a trained network alone learns what the labels would have taught."""
    data = two_colours(256)
    monkeypatch.setattr(setting, "load_images", lambda name, split, *rest: data)
    monkeypatch.setattr(problem, "resolve_dataset", lambda *rest: ("colours", "colours"))
    common = {"depth": 8, "epochs": 4, "batch_size": 32, "precision": "fp32"}
    pretrain.train(pretrain.Args(**{**common, "depth": 14}, run_dir=tmp_path / "teacher"))
    taught = {"distillation": 1.0, "teacher": (str(tmp_path / "teacher" / "weights.safetensors"),)}
    args = pretrain.Args(**common, **taught, run_dir=tmp_path / "student")
    assert pretrain.train(args)["policies"][0]["accuracy"] > 0.95
    (tmp_path / "misfit.safetensors").write_bytes(b"")
    misfit = {"distillation": 1.0, "teacher": (str(tmp_path / "misfit.safetensors"),)}
    with pytest.raises(WeightsError, match="not a readable"):
        pretrain.train(pretrain.Args(**common, **misfit, run_dir=tmp_path / "misfit"))
    assert not (tmp_path / "misfit").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"distillation": 0.5}, "needs a --teacher"),
        ({"distillation": 0.0, "teacher": ("auto",)}, "no share of the loss"),
        ({"distillation": 1.5, "teacher": ("auto",)}, "expected a share between 0 and 1"),
        ({"distillation": 0.5, "teacher": ("auto", "none")}, "untrained network"),
        (
            {"distillation": 0.5, "teacher": ("auto",), "depth": 74},
            "no ResNet-74 on rendered-digits is shipped",
        ),
        (
            {"weights": "auto", "depth": 74},
            "^no ResNet-74 on rendered-digits is shipped; leave out --weights to start from new ones$",
        ),
        ({"weights": "resnet20-rendered-digits", "depth": 14}, "a ResNet-20 cannot grow to a ResNet-14"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"optimizer": "adamw", "momentum": 0.9}, "--momentum is for sgd, but --optimizer is adamw"),
        ({"momentum": 1.0}, "--momentum is 1.0; expected 0 or more, and less than 1"),
        ({"momentum": -0.1}, "--momentum is -0.1; expected 0 or more, and less than 1"),
    ],
)
def test_pretraining_refuses_flags_without_sense(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        pretrain.train(pretrain.Args(dataset="rendered-digits", run_dir=tmp_path / "run", **flags))
    assert not (tmp_path / "run").exists()


def test_resume_with_other_arguments_is_refused(tmp_path, few_images):
    flags = {
        "depth": 8,
        "dataset": "rendered-digits",
        "batch_size": 32,
        "epochs": 1,
        "run_dir": tmp_path / "run",
    }
    pretrain.train(pretrain.Args(**flags))
    assert json.loads((tmp_path / "run" / "args.json").read_text())["momentum"] == 0.9  # as in older runs
    with pytest.raises(ValueError, match=r"cannot resume with lr 0\.3: the run was started with 0\.1"):
        pretrain.train(pretrain.Args(**flags, lr=0.3, resume=True))


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        ({"epochs": 0.01, "batch_size": 16}, "make no step; raise --epochs, or lower --batch-size$"),
        ({"batch_size": 65}, "has 32 in its train split; lower it$"),  # more epochs would not help
        ({"batch_size": 65, "epochs": 99}, "has 32 in its train split; lower it$"),
    ],
)
def test_a_plan_without_a_step_is_refused(tmp_path, few_images, flags, advice):
    with pytest.raises(ValueError, match=advice):
        pretrain.train(pretrain.Args(depth=8, dataset="rendered-digits", run_dir=tmp_path / "run", **flags))
    assert not (tmp_path / "run").exists()


def test_a_used_run_folder_is_refused_and_left_as_it_was(tmp_path, few_images):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "args.json").write_text("{}")
    with pytest.raises(FileExistsError, match="resume it, or choose another folder"):
        pretrain.train(
            pretrain.Args(depth=8, dataset="rendered-digits", batch_size=32, run_dir=tmp_path / "run")
        )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["args.json"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env", "SkipResNet111-v0"], "SkipResNet111"),
        (["--dataset", "cifar11"], "did you mean 'cifar10'"),
        (["--gate", "rrn"], "did you mean 'rnn'"),
        (["--alpha", "-1"], "--alpha is -1.0; expected 0 or more"),
        (["--alpha", "nan"], "--alpha is nan; expected a finite number"),
        (["--batch-size", "10", "--routes", "4"], "not a multiple of --routes 4"),
        (["--routes", "1"], "baseline leave-one-out needs --routes 2"),
        (["--sp-iterations", "0", "--iterations", "0"], "--iterations and --sp-iterations are 0"),
        (["--teacher", "none"], "an untrained network cannot teach"),
        (["--batch-size", "0"], "--batch-size is 0; expected more than 0"),
        (["--batch-size", "1000000"], "--batch-size asks for 1000000 images per step"),
        (["--test-images", "0"], "--test-images is 0; expected more than 0"),
        (["--sp-iterations", "-5"], "--sp-iterations is -5; expected 0 or more"),
        (["--lr", "nan"], "--lr is nan; expected a finite number"),
        (["--teacher", "/nowhere.safetensors"], "no weights file /nowhere.safetensors"),
        (["--gate-weights", "/nowhere.safetensors"], "no weights file /nowhere.safetensors"),
        (["--preset", "quik"], "unknown preset 'quik'"),
        (["--weights", "torchvision"], "torchvision has no weights for a ResNet-110"),
        (["--weights", "/nowhere.safetensors"], "no weights file /nowhere.safetensors"),
        (["--dataset", "cifar10", "--data-dir", "/nowhere"], "no cifar10: /nowhere"),
    ],
)
@pytest.mark.filterwarnings("ignore:no shipped weights")
def test_bad_flags_end_in_one_line_and_code_2(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hybrid_reinforce", *flags, "--run-dir", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stop:
        main_with_named_errors(
            hybrid_reinforce.Args, hybrid_reinforce.train, defaults=hybrid_reinforce.arguments
        )
    error = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert message in error[-1] and error[-1].startswith("error: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags, message", [
    ({"shortcut": "projektion"}, "did you mean 'projection'"),
    ({"baseline": "batchmean"}, "did you mean 'batch-mean'"),
    ({"relaxation": "softt"}, "did you mean 'soft'"),
    ({"bn": "freeze"}, "did you mean 'frozen'"),
    ({"optimizer": "sdg"}, "did you mean 'sgd'"),
    ({"gate_weights": "hrl.safetensors", "gate_gain": 6.0}, "a gain is for new gates"),
    ({"gate_weights": "hrl.safetensors", "warmup_iterations": 1}, "a preparation trains new gates"),
    ({"weights": "none", "distillation": 0.5}, "an untrained network cannot teach"),
    ({"distillation": 2.0}, "--distillation is 2.0; expected a share between 0 and 1"),
    ({"teacher": ("resnet110-rendered-digits",)}, "the teachers have no share of the loss"),
    ({"eval_every": 0}, "--eval-every is 0"),
    ({"eval_images": -3}, "--eval-images is -3"),
    ({"gate_gain": 0.0}, "--gate-gain is 0.0; expected more than 0"),
    ({"exploration": 0.6}, "exploration floor is 0.6"),
    ({"env": "SkipResNet56-v0", "distillation": 0.5}, "no ResNet-56 on rendered-digits is shipped"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:no shipped weights")
def test_what_presets_set_is_checked_too(flags, message, tmp_path, few_images):
    with pytest.raises(ValueError, match=message):
        hybrid_reinforce.train(small_args(tmp_path, **{"env": "SkipResNet20-v0", **flags}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("agent", [act, blockdrop, finetune, gumbel, pretrain])
def test_help_speaks_of_chains_only_where_an_agent_takes_them(agent, capsys):
    assert not agent.Args.takes_chains
    with pytest.raises(SystemExit):
        parse(agent.Args, ["--help"], agent.Args())
    assert "chain" not in capsys.readouterr().out


def test_help_tells_one_default_of_a_flag(capsys):
    for default, shown, other in (
        (None, "(default: the environment's, usually 1)", "1.4"),
        (1.4, "(default: 1.4)", "the environment's, usually 1)"),
    ):
        with pytest.raises(SystemExit):
            parse(finetune.Args, ["--help"], finetune.Args(alpha=default))
        said = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert shown in said and other not in said


def test_help_names_at_most_29_flags_under_four_headings_and_does_not_wait_for_what_it_does_not_need():
    command = [sys.executable, "-X", "importtime", "-m", "agents.hybrid_reinforce", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert " torch\n" in done.stderr  # an imported module's name ends its line
    assert " torchvision\n" not in done.stderr and " scipy.stats\n" not in done.stderr
    shown, flags = done.stdout, headings(hybrid_reinforce.Args)
    assert len(flags) <= 29 and all(f"--{name.replace('_', '-')} " in shown for name in flags)
    assert all(f"─ {heading} options ─" in shown for heading in ("data", "method", "schedule", "run"))
    assert "{rnn,ff1,ff2}" in shown and "[default: " not in shown
