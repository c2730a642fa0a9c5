"""Agents on chains: each finds the best decisions of a toy where they are known; runs from flags to table."""

import copy
import itertools
import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from stable_baselines3.common.vec_env import VecMonitor
from test_chain import every_route, lively_chain
from test_learners import MODELS, NoOpinion
from test_mdp import batch
from toys import Replay, greedy, load_first, spoken, toy_chain, two_colours, written

from agents import compare, gumbel, hybrid_reinforce, oracle, ppo, reinforce, static
from agents.common import setting
from agents.common.chains import held_out_episodes
from agents.common.finished import FinishedRun
from agents.common.preset_choice import FEWEST
from agents.common.presets import PRESETS
from agents.common.sb3_policies import ModelPolicy
from envs.sb3 import SB3VecEnv
from envs.vector import SkipNetVectorEnv
from skipnet_rl.belief import BeliefGate
from skipnet_rl.chain import Chain, ChainMDP
from skipnet_rl.checkpoint import read_tensors
from skipnet_rl.data.imageset import training_index
from skipnet_rl.errors import WeightsError
from skipnet_rl.evaluate import evaluate
from skipnet_rl.member import Member
from skipnet_rl.randomness import Stream, step_generator
from skipnet_rl.rollout import rollout
from skipnet_rl.thresholds import tune

CHAIN = {"env": "SkipChain-v0", "dataset": "rendered-digits", "weights": "none", "device": "cpu"}


@pytest.fixture
def toy():
    """The process, its records, and the best decision about each image.

    To ask is worth log 0.99 - log 0.45 = 0.79 nats where the first network guesses, and nothing where it
    knows; it costs alpha = 0.2.
    """
    chain, records = toy_chain()
    mdp = ChainMDP(chain, alpha=0.2)
    images, labels = records.batch(torch.arange(64))
    returns = [
        rollout(mdp, NoOpinion(), images, labels, routes=torch.full((64, 1), asked)).returns
        for asked in (False, True)
    ]
    best = returns[1] > returns[0]
    assert best.tolist() == [False, False, True, True] * 16
    assert (returns[1] - returns[0]).abs().min() > 0.15
    return mdp, records, best


# with the numbers of the other toy one seed in five or eight never learns to look at the image
STEADY = {"PPO": {"lr": 1e-3, "entropy": 0.02}, "A2C": {"entropy": 0.02}}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "RecurrentPPO" else ()) for name in MODELS]
)
def test_stable_baselines3_learns_the_toy(name, toy):
    mdp, records, best = toy
    module, args, numbers, steps = MODELS[name]
    numbers = {**numbers, **STEADY.get(name, {})}
    env = VecMonitor(SB3VecEnv(SkipNetVectorEnv(mdp, records, 32)))
    model = module.make_model(env, args, numbers)
    model.learn(steps)
    assert greedy(mdp, ModelPolicy(model.policy, 1), records).actions[:, 0].bool().tolist() == best.tolist()


def test_reinforce_learns_the_toy(toy):
    mdp, records, best = toy
    args = reinforce.Args(batch_size=64, lr=0.05)
    learner = reinforce.Learner(args, mdp, "fp32")
    for step in range(100):
        reinforce.train_step(learner, records, step, "train", args)
    assert greedy(mdp, learner.gate, records).actions[:, 0].bool().tolist() == best.tolist()


def test_thresholds_solve_the_toy(toy):
    mdp, records, best = toy
    (tuned,) = tune(records, mdp.whole_macs, [0.7], weights=[0.0])
    assert greedy(mdp, tuned.policy(), records).actions[:, 0].bool().tolist() == best.tolist()


def test_the_oracle_asks_where_the_first_network_is_wrong(toy):
    mdp, records, best = toy
    assert oracle.every_route(mdp, *records.batch(torch.arange(64)))[:, 0].tolist() == best.tolist()


def test_the_oracle_finds_the_fewest_flops_of_a_chain():
    """The second network costs a fifth of the third and is right about every other image."""
    data = two_colours(8)
    right = torch.nn.functional.one_hot(data.labels, 2).double()
    wrong, knows = 0.9 - 0.8 * right, 0.1 + 0.8 * right
    second = torch.where(torch.arange(8)[:, None] % 2 == 0, knows, wrong)
    macs = [10, 20, 100]
    records = written(data, torch.stack([wrong, second, knows], dim=1), macs)
    mdp = ChainMDP(Chain([spoken(str(n), cost, number=n) for n, cost in enumerate(macs)], mix=0.0))
    found = oracle.every_route(mdp, *records.batch(torch.arange(8)))
    assert found.int().tolist() == [[1, 0], [0, 1]] * 4


def deciding_chain():
    """Three networks, the second with gates of its own, and a gate that decides by the image."""
    torch.manual_seed(0)
    mdp = ChainMDP(lively_chain(mix=[0.3, 0.6]).eval(), alpha=0.3)
    gate = BeliefGate(mdp).double()
    torch.nn.init.normal_(gate.layers[-1].weight, std=0.1)
    return mdp, gate


def gradients(loss, mdp, gate):
    """d loss / d (networks, gate) as one vector; zero where there is none."""
    parameters = [*mdp.net.parameters(), *gate.parameters()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    pairs = zip(found, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def test_the_hybrid_gradient_of_a_chain_is_exact_in_expectation():
    """Over all routes of two images, against the derivative of the expected loss less the saving."""
    mdp, gate = deciding_chain()
    images, labels = (part[:2] for part in batch(5))
    args = hybrid_reinforce.Args(alpha=0.3, baseline="none", routes=1)
    objective, mean = 0.0, 0.0
    for first, second in itertools.product(every_route(2), repeat=2):
        episode = rollout(mdp, gate, images, labels, routes=torch.stack([first, second]))
        p = episode.log_probs.sum().exp()
        saving = 0.15 * ((1 - episode.actions) * mdp.cost).sum(dim=1)
        objective = objective + p * (episode.loss - saving).mean()
        mean = mean + p.item() * gradients(hybrid_reinforce.hrl_loss(episode, args), mdp, gate)
    torch.testing.assert_close(mean, gradients(objective, mdp, gate), rtol=1e-6, atol=1e-8)
    own = sum(p.numel() for p in gate.parameters())
    assert mean[:-own].norm() > 1e-3 and mean[-own:].norm() > 1e-3


def test_a_network_learns_from_the_images_that_reach_it():
    mdp, _ = deciding_chain()
    images, labels = batch(5)
    last = list(mdp.net.members[2].net.parameters())
    route = torch.tensor([[0, 0], [0, 1], [1, 0], [0, 1], [1, 0]])
    reached = rollout(mdp, Replay(route[[1, 3]]), images[[1, 3]], labels[[1, 3]]).loss.sum()
    every = rollout(mdp, Replay(route), images, labels).loss.sum()
    for one, other in zip(torch.autograd.grad(every, last), torch.autograd.grad(reached, last), strict=True):
        torch.testing.assert_close(one, other)


def step(data, held_out, bn="frozen"):
    """The weights before a step of hybrid REINFORCE on a chain, and after it."""
    args = hybrid_reinforce.Args(batch_size=8, routes=4, bn=bn, alpha=0.3, optimizer="sgd", lr=0.1)
    mdp, gate = deciding_chain()
    mdp.net.float()
    learner = hybrid_reinforce.Learner(args, mdp, "fp32")
    learner.gate.load_state_dict(gate.float().state_dict())
    learner.held_out = held_out
    before = copy.deepcopy(learner.model.state_dict())
    episode = hybrid_reinforce.train_step(learner, data, 0, "hrl", args)
    assert len(episode.labels) == 8  # different images, each on one route
    return before, learner.model.state_dict()


def differing(one, other):
    """The parts of two models whose tensors differ: `"net"` and `"gate"`."""
    return {name.split(".")[0] for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize("bn", ["frozen", "train"])
def test_the_gate_learns_from_held_out_images_and_the_networks_from_the_others(bn):
    """Batch norms included: with `train` they follow the training images alone, and the gate sees them."""
    data, others = two_colours(16), two_colours(48)
    before, after = step(data, data, bn)
    assert differing(before, after) == {"net", "gate"}
    _, other_held_out = step(data, others, bn)
    assert differing(after, other_held_out) == {"gate"}
    _, other_trained = step(others, data, bn)
    assert differing(after, other_trained) == ({"net"} if bn == "frozen" else {"net", "gate"})


def test_held_out_episodes_are_those_of_the_chain():
    mdp, gate = deciding_chain()
    args = hybrid_reinforce.Args(batch_size=8, routes=4)
    data = two_colours(16)
    learner = SimpleNamespace(mdp=mdp, gate=gate, held_out=data, policies={"hrl": (gate, "sample")})
    episode = held_out_episodes(learner, 3, args)
    index = training_index(3, 2, 16, args.seed, Stream.HELD_OUT_ORDER)
    draws = step_generator(args.seed, 3, torch.device("cpu"), Stream.HELD_OUT_AUGMENTATION)
    images, labels = data.training_batch(index, draws)
    routes = episode.actions.bool()
    assert len(routes.unique(dim=0)) > 1
    images, labels = images.double().repeat_interleave(4, 0), labels.repeat_interleave(4)
    live = rollout(mdp, gate, images, labels, routes=routes)
    for name in ("loss", "rewards", "gate_logits"):
        torch.testing.assert_close(getattr(episode, name).double(), getattr(live, name), rtol=1e-4, atol=1e-5)
    learner.held_out = None
    assert held_out_episodes(learner, 0, args) is None


def test_networks_and_gate_have_splits_of_their_own():
    flags = {"env": "SkipChain20x110-v0", "dataset": "rendered-digits"}
    args = hybrid_reinforce.arguments(["--env", flags["env"], "--dataset", flags["dataset"]])
    place = setting.Setting.of(replace(args, **flags, device="cpu"))
    splits = [each.split for each in (place.train, place.val, place.held_out(), place.test)]
    assert splits == ["train", "selection", "calibration", "test"]
    assert isinstance(place.net.members[0], Member)  # not a record of its answers


@pytest.mark.parametrize("agent", [reinforce, ppo, static, oracle, hybrid_reinforce])
def test_a_run(agent, few_images, tmp_path, monkeypatch, capsys):
    flags = {
        reinforce: {"iterations": 2, "batch_size": 8, "eval_every": 1},
        ppo: {"episodes": 32, "num_envs": 8, "eval_every": 16, "recurrent": True},
        static: {"budgets": (0.6, 1.0)},
        oracle: {},
        hybrid_reinforce: {
            **{"iterations": 2, "tune_iterations": 1, "sp_iterations": 0, "batch_size": 8, "eval_every": 1},
            **{"routes": 2, "bn": "frozen", "alpha": 0.05, "cost": "flops"},
        },
    }[agent]
    main = {static: "evaluate_all", oracle: "find_routes"}.get(agent, "train")
    result = getattr(agent, main)(agent.Args(**CHAIN, **flags, run_dir=tmp_path / "run"))
    written = json.loads((tmp_path / "run" / "args.json").read_text())
    assert (written["alpha"], written["cost"]) == (0.05, "flops") == (result["alpha"], result["cost"])
    rows = {row["name"]: row for row in result["policies"]}
    # ResNet-14 and ResNet-38, both executed: the first adds 0.32 to what the second costs
    assert rows["all blocks"]["compute_flops"] == pytest.approx(1.32, abs=0.01)
    if agent in (reinforce, ppo, hybrid_reinforce):
        assert result["learned_on"] == "calibration"
        mdp, policy = FinishedRun.read(tmp_path / "run").restore(10)
        test = load_first(32)("rendered-digits", "test")
        done = evaluate(mdp, policy, test, precision=result["precision"]).summary("")
        row = result["policies"][-1]
        if agent is hybrid_reinforce:
            assert "time: about" in capsys.readouterr().out
            stored = read_tensors(tmp_path / "run" / "hrl.safetensors")
            whole = torch.nn.ModuleDict({"net": mdp.net, "gate": policy}).state_dict()
            assert all(torch.equal(value.half(), stored[name].half()) for name, value in whole.items())
            monkeypatch.setattr(compare, "load_images", load_first(32))
            assert compare.verify(FinishedRun.read(tmp_path / "run"), None, "cpu") == []
        assert done["loss"] == pytest.approx(row["loss"], rel=1e-4)
        assert done["compute_flops"] == pytest.approx(row["compute_flops"])
    if agent is static:
        assert [each["budget"] for each in result["thresholds"]] == [0.6, 1.0]
        low, high = (rows[f"thresholds, budget {budget}%"]["compute_flops"] for budget in (60, 100))
        assert low < high


def test_thresholds_are_verified_at_their_own_mix(few_images, tmp_path, monkeypatch):
    """Where it is not the default of 0.3, at which the same routes have other answers."""
    monkeypatch.setattr(static, "tune", partial(tune, weights=[0.9]))
    monkeypatch.setattr(compare, "load_images", load_first(32))
    static.evaluate_all(static.Args(**CHAIN, budgets=(1.32,), run_dir=tmp_path / "run"))
    run = FinishedRun.read(tmp_path / "run")
    row = run.result["policies"][-1]
    assert row["mix"] == [0.9]
    assert not any("mix" in other for other in run.result["policies"][:-1])
    assert compare.verify(run, None, "cpu") == []
    del row["mix"]
    assert any(f"{row['name']}: loss is" in line for line in compare.verify(run, None, "cpu"))


def test_agents_that_work_within_one_network_say_so(few_images, tmp_path):
    with pytest.raises(ValueError, match="SkipChain-v0 is a chain of networks.*SkipResNet110-v0"):
        gumbel.train(gumbel.Args(**CHAIN, run_dir=tmp_path / "run"))


def test_a_chain_of_networks_that_are_not_shipped_is_refused(few_images, tmp_path):
    flags = {"dataset": "rendered-digits", "batch_size": 8, "run_dir": tmp_path / "run"}
    args = reinforce.Args(env="SkipChain14x38-v0", **flags)
    with pytest.raises(WeightsError, match="no ResNet-14 on rendered-digits .*SkipChain20x110-v0"):
        reinforce.train(args)
    assert not (tmp_path / "run").exists()


def test_hybrid_reinforce_knows_what_suits_a_chain():
    args = hybrid_reinforce.arguments(["--env", "SkipChain14x38x110-v0"])
    assert (args.preset, args.alpha, args.cost, args.bn) == ("chain", pytest.approx(0.1), "flops", "frozen")
    shorter = hybrid_reinforce.arguments(["--env", "SkipChain14x38-v0", "--device", "cpu"])
    assert shorter.iterations == PRESETS["chain"]["iterations"] > args.iterations >= FEWEST
    with pytest.raises(ValueError, match="--preset quick is for one network; .* use --preset chain"):
        hybrid_reinforce.arguments(["--env", "SkipChain14x38-v0", "--preset", "quick"])
    with pytest.raises(ValueError, match="--preset chain is for chains of networks"):
        hybrid_reinforce.arguments(["--preset", "chain"])
    with pytest.raises(ValueError, match="unknown preset 'qick'"):
        hybrid_reinforce.arguments(["--env", "SkipChain14x38-v0", "--preset", "qick"])
    untrained = hybrid_reinforce.arguments(["--env", "SkipChain14x38-v0", "--weights", "none"])
    assert untrained.distillation == 0.0


@pytest.mark.parametrize("flags", [
    {"sp_iterations": 1}, {"teacher": ("resnet20-cifar10",)}, {"gate_weights": "resnet74-cifar10-hrl-0.5"},
    {"bn": "recalibrate"}, {"baseline": "value"},
])  # fmt: skip
def test_what_a_chain_has_not_is_refused(flags):
    args = hybrid_reinforce.arguments(["--env", "SkipChain14x38-v0"])
    with pytest.raises(ValueError, match="on a chain"):
        replace(args, env="SkipChain14x38-v0", **flags).check()


def test_a_resumed_run_on_a_chain_keeps_its_values(few_images, tmp_path):
    words = [
        "--env",
        "SkipChain-v0",
        "--dataset",
        "rendered-digits",
        "--weights",
        "none",
        "--iterations",
        "2",
    ]
    words += ["--tune-iterations", "1", "--batch-size", "8", "--device", "cpu", "--run-dir", str(tmp_path)]
    places = {"env": "SkipChain-v0", "dataset": "rendered-digits", "weights": "none", "device": "cpu"}
    given = {**places, "iterations": 2, "tune_iterations": 1, "batch_size": 8, "run_dir": tmp_path}
    first = hybrid_reinforce.train(replace(hybrid_reinforce.arguments(words), **given))
    again = hybrid_reinforce.arguments([*words, "--resume"])
    resumed = hybrid_reinforce.train(replace(again, **given, resume=True))
    assert resumed["policies"] == first["policies"] and resumed["cost"] == "flops"
