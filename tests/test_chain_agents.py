"""Agents on chains: each finds the best decisions of a toy where they are known; runs from flags to table."""

import json

import pytest
import torch
from stable_baselines3.common.vec_env import VecMonitor
from test_learners import MODELS, NoOpinion
from toys import greedy, load_first, toy_chain

from agents import gumbel, oracle, ppo, reinforce, static
from agents.common.finished import FinishedRun
from agents.common.sb3_policies import ModelPolicy
from envs.sb3 import SB3VecEnv
from envs.vector import SkipNetVectorEnv
from skipnet_rl.chain import ChainMDP
from skipnet_rl.evaluate import evaluate
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


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "RecurrentPPO" else ()) for name in MODELS]
)
def test_stable_baselines3_learns_the_toy(name, toy):
    mdp, records, best = toy
    module, args, numbers, steps = MODELS[name]
    env = VecMonitor(SB3VecEnv(SkipNetVectorEnv(mdp, records, 32)))
    model = module.make_model(env, args, numbers)
    model.learn(steps // 2)
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


@pytest.mark.parametrize("agent", [reinforce, ppo, static, oracle])
def test_a_run(agent, few_images, tmp_path):
    flags = {
        reinforce: {"iterations": 2, "batch_size": 8, "eval_every": 1},
        ppo: {"episodes": 32, "num_envs": 8, "eval_every": 16, "recurrent": True},
        static: {"budgets": (0.6, 1.0)},
        oracle: {},
    }[agent]
    main = {static: "evaluate_all", oracle: "find_routes"}.get(agent, "train")
    result = getattr(agent, main)(agent.Args(**CHAIN, **flags, run_dir=tmp_path / "run"))
    written = json.loads((tmp_path / "run" / "args.json").read_text())
    assert (written["alpha"], written["cost"]) == (0.05, "flops") == (result["alpha"], result["cost"])
    rows = {row["name"]: row for row in result["policies"]}
    # ResNet-14 and ResNet-38, both executed: the first adds 0.32 to what the second costs
    assert rows["all blocks"]["compute_flops"] == pytest.approx(1.32, abs=0.01)
    if agent in (reinforce, ppo):
        mdp, policy = FinishedRun.read(tmp_path / "run").restore(10)
        test = load_first(32)("rendered-digits", "test")
        done = evaluate(mdp, policy, test, precision=result["precision"]).summary("")
        row = result["policies"][-1]
        assert done["loss"] == pytest.approx(row["loss"], rel=1e-4)
        assert done["compute_flops"] == pytest.approx(row["compute_flops"])
    if agent is static:
        assert [each["budget"] for each in result["thresholds"]] == [0.6, 1.0]
        low, high = (rows[f"thresholds, budget {budget}%"]["compute_flops"] for budget in (60, 100))
        assert low < high


def test_agents_that_work_within_one_network_say_so(few_images, tmp_path):
    with pytest.raises(ValueError, match="SkipChain-v0 is a chain of networks.*SkipResNet110-v0"):
        gumbel.train(gumbel.Args(**CHAIN, run_dir=tmp_path / "run"))
