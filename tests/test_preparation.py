"""Networks are measured before training and prepared if needed; the best of a run is kept."""

import dataclasses
import json

import pytest
import torch
from test_agents import gated_file, small_args
from toys import hybrid_learner, toy_net, two_colours

from agents import gumbel, hybrid_reinforce
from agents.common import runner, setting
from agents.common.preparation import TRIED, look
from agents.common.setting import Setting
from agents.common.verdict import shortcomings
from skipnet_rl.checkpoint import read_tensors
from skipnet_rl.errors import WeightsError
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.runs import Run
from skipnet_rl.tolerance import SKIPPED, Tolerance, absence_costs

ADVICE = ("raise it", "lower it")


def test_the_gates_of_a_prepared_network_know_its_rates():
    """The toy needs its second block, and not its third."""
    data = two_colours()
    net = toy_net(data)
    costs = absence_costs(RoutingMDP(net), data)
    assert costs[0] > 0.1 > abs(costs[1])
    args = hybrid_reinforce.Args(
        batch_size=16,
        warmup_iterations=40,
        iterations=1,
        gate_lr=0.2,
        lr=0.0,
        distillation=0.0,
        schedule="constant",
        precision="fp32",
    )
    learner = hybrid_learner(args, net, (), costs)
    for step in range(args.warmup_iterations):
        episode = hybrid_reinforce.train_step(learner, data, step, "warmup", args)
    assert episode.actions[:, 0].all(), "a block that is not skipped always runs"
    rates = episode.gate_logits.sigmoid().mean(dim=0).tolist()
    assert rates == pytest.approx([TRIED, SKIPPED], abs=0.1)


@pytest.mark.parametrize("skipping, steps", [(0.88, 0), (0.5, 3)])
def test_a_tolerant_network_is_not_prepared(tmp_path, monkeypatch, few_images, capsys, skipping, steps):
    monkeypatch.setattr(
        setting, "measure_tolerance", lambda mdp, images, *_, **__: Tolerance(len(images), 0.9, skipping, 0.0)
    )
    args = small_args(tmp_path, warmup_iterations=3)
    found, tolerance = look(Setting.of(args))
    assert found.args.warmup_iterations == steps and tolerance.skipping == skipping
    assert (found.absence_costs is None) == (steps == 0)
    assert ("preparation: 3 steps" in capsys.readouterr().out) == (steps == 3)


def test_a_preset_without_the_preparation_that_a_network_needs_says_so(
    tmp_path, monkeypatch, few_images, capsys
):
    monkeypatch.setattr(
        setting, "measure_tolerance", lambda mdp, images, *_, **__: Tolerance(len(images), 0.9, 0.5, 0.0)
    )
    look(Setting.of(small_args(tmp_path, warmup_iterations=0)))
    assert "--preset plain" in capsys.readouterr().out
    shipped = "resnet110-rendered-digits-hrl"  # trained gates know what their network can spare
    gated = small_args(tmp_path, env="SkipResNet110-v0", weights=shipped, gate_weights=shipped)
    look(Setting.of(dataclasses.replace(gated, warmup_iterations=0)))
    assert "preparation" not in capsys.readouterr().out


def test_a_network_at_chance_is_called_so(tmp_path, monkeypatch, few_images, capsys):
    """13 of 100 images right with ten classes: Wilson's interval begins at 7.8 %."""
    for whole, said in ((0.13, True), (0.9, False)):
        monkeypatch.setattr(
            setting, "measure_tolerance", lambda *_, whole=whole, **__: Tolerance(100, whole, whole, 0.0)
        )
        look(Setting.of(small_args(tmp_path)))
        assert ("hardly better than chance" in capsys.readouterr().out) == said


@pytest.mark.parametrize(
    "whole, accuracy, flops, said",
    [
        (0.93, 0.93, 0.6, []),
        (0.93, 0.915, 0.98, []),
        (0.93, 0.93, 1.0, ["nothing is saved"]),
        (0.93, 0.90, 0.6, ["accuracy is lost"]),
        (0.93, 0.90, 1.002, ["nothing is saved", "accuracy is lost"]),
    ],
)
def test_notes_at_the_end_of_a_run(whole, accuracy, flops, said):
    found = shortcomings(whole, accuracy, flops, ADVICE)
    assert [note.split(":")[0] for note in found] == said
    if len(found) < 2:
        assert all(note.endswith(("raise it", "lower it")) for note in found)
    else:  # not both of two opposites
        assert found[1].endswith("start from another network (--weights)")


def test_the_best_by_the_return_is_kept(tmp_path, monkeypatch, few_images):
    """Not the last: the return is made to be best after step 3."""
    returns = iter([0.1, 0.2, 0.9, 0.3, 0.2])
    seen = []

    def validate(self, mdp, policy, mode="greedy"):
        found = self.evaluate(mdp, policy, mode, self.val.first(8)).summary("")
        seen.append((next(returns), mdp.net.fc.weight.detach().half().clone()))
        return {**found, "return": seen[-1][0]}

    monkeypatch.setattr(Setting, "validate", validate)
    args = small_args(tmp_path, sp_iterations=0, iterations=5, tune_iterations=0, eval_every=1, lr=0.05)
    monkeypatch.setattr(runner, "verdict", lambda *args: [])
    result = hybrid_reinforce.train(args)
    assert result["kept"]["step"] == 3 and result["kept"]["return"] == 0.9
    kept = read_tensors(tmp_path / "run" / "hrl.safetensors")["net.fc.weight"]
    assert torch.equal(kept, seen[2][1]) and not torch.equal(kept, seen[4][1])


def test_the_start_is_kept_if_nothing_is_better(tmp_path, few_images):
    """With learning rates that destroy the network."""
    start = gated_file(tmp_path)
    args = small_args(
        tmp_path, weights=str(start), gate_weights=str(start), sp_iterations=0, lr=1.0, gate_lr=1.0
    )
    result = hybrid_reinforce.train(args)
    assert result["kept"]["step"] == 0 and "nothing better was found" in result["notes"][-1]
    before, after = read_tensors(start), read_tensors(tmp_path / "run" / "hrl.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert stored["notes"] == result["notes"]


def test_gumbel_is_prepared_and_resumes_in_its_preparation(tmp_path, monkeypatch, few_images):
    """ResNet-20's weights for rendered-digits were trained without skips."""
    args = gumbel.Args(
        env="SkipResNet20-v0",
        dataset="rendered-digits",
        eval_images=16,
        precision="fp32",
        batch_size=8,
        warmup_iterations=2,
        iterations=2,
        eval_every=1,
        run_dir=tmp_path / "run",
    )
    whole = gumbel.train(args)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["warmup", "warmup", "train", "train"]
    save = Run.save

    def interrupted(self, state):
        save(self, state)
        raise KeyboardInterrupt

    args = dataclasses.replace(args, run_dir=tmp_path / "again")
    monkeypatch.setattr(Run, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gumbel.train(args)
    monkeypatch.setattr(Run, "save", save)
    assert gumbel.train(dataclasses.replace(args, resume=True))["policies"] == whole["policies"]


def test_without_a_trained_network_there_is_advice(tmp_path, few_images):
    args = small_args(tmp_path, env="SkipResNet32-v0")
    with pytest.raises(WeightsError, match="agents.pretrain"):
        hybrid_reinforce.train(args)
    assert not (tmp_path / "run").exists()
