"""A run says at its end if the policy that it keeps saves nothing or loses accuracy."""

import copy
import json
import re
from dataclasses import replace

import pytest
import torch
from toys import load_first

from agents import a2c, act, blockdrop, dqn, finetune, gumbel, hybrid_reinforce, ppo, reinforce
from agents.common import setting
from agents.common.parsing import headings
from agents.common.setting import Setting
from agents.common.verdict import verdict
from skipnet_rl.checkpoint import save_weights
from skipnet_rl.evaluate import evaluate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute, FixedRoute
from skipnet_rl.problem import load_network
from skipnet_rl.rollout import rollout
from skipnet_rl.tolerance import Tolerance

AGENTS = (a2c, act, blockdrop, dqn, finetune, gumbel, hybrid_reinforce, ppo, reinforce)
USELESS, NEEDED = 7, 2  # decisions about the block that does nothing, and about the one that matters most
WIDE = 2048  # layers of this width cost PPO nearly as much as a ResNet-20


@pytest.fixture
def network(tmp_path, monkeypatch) -> dict:
    """Flags of a run on a ResNet-20 for the digits whose last block does nothing, with 64 images a split."""
    monkeypatch.setattr(setting, "load_images", load_first(64))
    net = load_network("auto", 20, 10, "rendered-digits")
    torch.nn.init.zeros_(net.blocks[-1].bn2.weight)
    torch.nn.init.zeros_(net.blocks[-1].bn2.bias)
    about = {"kind": "plain", **net.about(), "dataset": "rendered-digits", "num_classes": 10}
    save_weights(tmp_path / "net.safetensors", net, about)
    return {
        "env": "SkipResNet20-v0",
        "dataset": "rendered-digits",
        "weights": str(tmp_path / "net.safetensors"),
        "precision": "fp32",
        "eval_images": 64,
        "lr": 0.0,
        "run_dir": tmp_path / "run",
    }


def route_without(*skipped: int) -> torch.Tensor:
    """A route [8] that skips these decisions' blocks."""
    route = torch.ones(8, dtype=torch.bool)
    route[list(skipped)] = False
    return route


def right(flags: dict, route: torch.Tensor) -> float:
    """Accuracy of a route on the validation images of a policy over a frozen network."""
    made = Setting.of(reinforce.Args(**{**flags, "batch_size": 8}))
    assert made.val.split == "selection" and len(made.val) == 64
    return evaluate(RoutingMDP(made.net), AlwaysExecute(), made.val, routes=route.expand(64, 8)).accuracy


class Given(FixedRoute):
    """Gates that always choose one route, at no cost."""

    def __init__(self, route: torch.Tensor) -> None:
        super().__init__(route)
        self.unused = torch.nn.Parameter(torch.zeros(1))  # an optimizer wants a weight

    def macs(self) -> int:
        """Nothing is computed."""
        return 0


def run_agents_policy(monkeypatch, flags: dict, route: torch.Tensor | None) -> dict:
    """REINFORCE that learns nothing: gates with one route, or, for None, ones that convolve."""

    def play(learner, data, step, stage, args):
        with torch.no_grad():
            return rollout(learner.mdp, learner.policy, *data.batch(torch.arange(8)))

    if route is not None:
        monkeypatch.setattr(reinforce, "new_gate", lambda gate, mdp: (gate, Given(route)))
        monkeypatch.setattr(reinforce, "train_step", play)
    return reinforce.train(reinforce.Args(**flags, gate="ff1", iterations=1, batch_size=8))


def sb3s_policy(monkeypatch, flags: dict, route: torch.Tensor | None) -> dict:
    """PPO that learns nothing: layers of one unit that know one route, or, for None, wide ones."""

    def set_route(model):
        with torch.no_grad():
            for layer in (*model.policy.mlp_extractor.policy_net[::2], model.policy.action_net):
                layer.weight.zero_()
                layer.bias.zero_()
            first, second = model.policy.mlp_extractor.policy_net[::2]
            first.weight[0, -8:] = 20.0 * ~route  # the block's one-hot comes last
            second.weight[:] = 20.0
            model.policy.action_net.weight[:, 0] = torch.tensor([20.0, -20.0])  # skip, execute
            model.policy.action_net.bias[:] = torch.tensor([-5.0, 5.0])

    if route is not None:
        monkeypatch.setattr(ppo, "start_near_execute", set_route)
    width = WIDE if route is None else 1
    return ppo.train(ppo.Args(**flags, width=width, episodes=32, num_envs=32, epochs=1, minibatches=2))


@pytest.fixture(params=[run_agents_policy, sb3s_policy], ids=["reinforce", "ppo"])
def train(request, monkeypatch):
    """Train one agent, which ends with a given route: flags and route → result, advice."""
    longer = "--iterations" if request.param is run_agents_policy else "--episodes"
    advice = f"Raise --alpha, or train longer ({longer})", f"Lower --alpha, or train longer ({longer})"
    return lambda flags, route: (request.param(monkeypatch, flags, route), advice)


def check_said(result: dict, folder, shown: str) -> None:
    """The notes are stored, and they are the last lines of the output."""
    assert json.loads((folder / "result.json").read_text())["notes"] == result["notes"]
    said = shown.splitlines()
    notes = [f"note: {note}" for note in result["notes"]]
    assert [line for line in said if line.startswith("note:")] == notes
    assert said[len(said) - len(notes) :] == notes


def test_a_policy_that_executes_everything(train, network, tmp_path, capsys):
    result, (save, _) = train(network, route_without())
    assert result["notes"] == [f"nothing is saved: 100.0% of the FLOPs remain. {save}"]
    check_said(result, tmp_path / "run", capsys.readouterr().out)


def test_a_policy_that_loses_accuracy(train, network, tmp_path, capsys):
    route = route_without(NEEDED)
    whole, accuracy = right(network, route_without()), right(network, route)
    assert whole > accuracy + 0.5
    capsys.readouterr()
    result, (_, spare) = train(network, route)
    assert result["notes"] == [
        f"accuracy is lost: {accuracy:.1%} of the validation images are right, {whole:.1%} with all blocks. "
        + spare
    ]
    check_said(result, tmp_path / "run", capsys.readouterr().out)


def test_a_policy_that_costs_more_than_it_saves(train, network, tmp_path, capsys):
    result, (save, _) = train(network, None)
    row = result["policies"][-1]
    assert row["executed_blocks_mean"] == 8 and row["policy_flops"] > 0.1
    assert row["compute_flops"] == pytest.approx(1 + row["policy_flops"])
    assert result["notes"] == [
        f"nothing is saved: {1 + row['policy_flops']:.1%} of the FLOPs remain. "
        f"The policy itself costs {row['policy_flops']:.1%}, more than its skips save. {save}"
    ]
    check_said(result, tmp_path / "run", capsys.readouterr().out)


def test_a_policy_that_is_fine(train, network, tmp_path, capsys):
    result, _ = train(network, route_without(USELESS))
    assert result["policies"][-1]["execution_rate"] == [1] * 7 + [0]
    assert result["notes"] == []
    check_said(result, tmp_path / "run", capsys.readouterr().out)


def test_a_gumbel_run_has_its_own_note_last(network):
    """Its gates start at "execute"."""
    flags = {**network, "gate_lr": 0.0, "warmup_iterations": 0, "iterations": 1, "batch_size": 8}
    nothing, missed = gumbel.train(gumbel.Args(**flags))["notes"]
    assert nothing.startswith("nothing is saved: 100.0%") and "Lower --target, raise --penalty" in nothing
    assert missed.startswith("the target is missed: 100.0% of the decisions execute")


def test_the_whole_network_is_played_once(network, monkeypatch):
    """The measurement before training counts if it saw the same images."""
    made = Setting.of(gumbel.Args(**network, batch_size=8))
    kept = {"accuracy": 0.5, "compute_flops": 0.6}
    (note,) = verdict(made, kept, 0.0)
    whole = evaluate(RoutingMDP(made.net), AlwaysExecute(), made.val).accuracy
    assert f"50.0% of the validation images are right, {whole:.1%} with" in note
    monkeypatch.setattr(Setting, "validate", None)
    assert verdict(made, kept, 0.0, Tolerance(64, 0.519, 0.4, 0.0)) == []
    assert "52.1% with all" in verdict(made, kept, 0.0, Tolerance(64, 0.521, 0.4, 0.0))[0]


@pytest.mark.parametrize("agent", [reinforce, gumbel], ids=["frozen", "trained"])
def test_a_policy_over_a_frozen_network_is_not_blamed_for_that_network(agent, network):
    """A run from shipped gates shows the best plain network, too, which only training could equal."""
    made = Setting.of(agent.Args(**network, batch_size=8))
    weak = copy.deepcopy(made.net)
    torch.nn.init.zeros_(weak.fc.weight)
    beside = replace(made, net=weak, plain=made.net, plain_name="better")
    own, plain = (made.validate(RoutingMDP(net), AlwaysExecute())["accuracy"] for net in (weak, made.net))
    assert own < 0.3 and plain > 0.7
    blame = f"{own:.1%} of the validation images are right, {plain:.1%} with all blocks"
    for tolerance in (None, Tolerance(64, own, 0.1, 0.0)):
        notes = verdict(beside, {"accuracy": own, "compute_flops": 0.6}, 0.0, tolerance)
        assert [blame in note for note in notes] == ([] if made.args.frozen else [True])


@pytest.mark.parametrize("agent", AGENTS)
def test_advice_names_flags_of_the_agent(agent):
    known = {f"--{flag.replace('_', '-')}" for flag in headings(agent.Args)}
    for line in agent.Args.advice:
        named = set(re.findall(r"--[a-z-]+", line))
        assert named and named <= known, line
