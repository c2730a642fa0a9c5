"""Trained gates at other budgets, from the files of a run."""

import json
import sys

import pytest
import torch

from agents import evaluate as budget
from agents import hybrid_reinforce, setting
from skipnet_rl.data import load_images
from skipnet_rl.errors import WeightsError


def few(*args, **kwargs):
    return load_images(*args, **kwargs).subset(torch.arange(64))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run with a feed-forward gate."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setting, "load_images", few)
        hybrid_reinforce.train(
            hybrid_reinforce.Args(
                env="SkipResNet20-v0", dataset="rendered-digits", gate="ff2", warmup_iterations=1,
                sp_iterations=2, iterations=2, batch_size=8, eval_images=16, precision="fp32", run_dir=folder,
            )
        )  # fmt: skip
    return folder


def test_bias_zero_is_the_run_and_more_bias_more_blocks(finished, monkeypatch):
    monkeypatch.setattr(budget, "load_images", few)
    args = budget.Args(run_dir=finished, split="test", biases=(30.0, 0.0, -30.0), precision="fp32")
    rows = budget.trace(args)["policies"]
    assert [row["name"] for row in rows] == ["bias -30", "bias +0", "bias +30", "all blocks"]
    ran = json.loads((finished / "result.json").read_text())["policies"][-1]
    for key in ("accuracy", "compute_blocks", "compute_flops"):
        assert rows[1][key] == pytest.approx(ran[key])
    assert rows[1]["loss"] == pytest.approx(ran["loss"], rel=2e-2)  # the file is in half precision
    assert rows[0]["compute_blocks"] == pytest.approx(1 / 9) and rows[2]["compute_blocks"] == 1
    assert rows[2]["compute_flops"] > 1.1  # the gates cost 12 %, executed or not
    assert rows[3]["compute_flops"] == 1 and rows[3]["accuracy"] == rows[2]["accuracy"]
    assert (finished / "plots" / "budget-test-greedy.png").is_file()
    assert json.loads((finished / "budget-test-greedy.json").read_text())["policies"] == rows


def test_sampled_gates(finished, monkeypatch):
    monkeypatch.setattr(budget, "load_images", few)
    args = budget.Args(run_dir=finished, mode="sample", biases=(-2.0,), precision="fp32")
    first, again = (budget.trace(args)["policies"][0] for _ in range(2))
    assert first == again
    assert first["unique_routes"] > 8  # sampled from p near 1/2


def test_folders_without_a_run(tmp_path, finished):
    with pytest.raises(FileNotFoundError, match="no run in .*args.json"):
        budget.trained(tmp_path, "hrl", 10)
    (tmp_path / "args.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="not a run of agents.hybrid_reinforce"):
        budget.trained(tmp_path, "hrl", 10)
    with pytest.raises(WeightsError, match="no weights file .*warm.safetensors"):
        budget.trained(finished, "warm", 10)


def test_a_missing_run_is_one_line(tmp_path, monkeypatch, capsys):
    from agents.cli import main_with_named_errors

    monkeypatch.setattr(sys, "argv", ["evaluate", "--run-dir", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as stop:
        main_with_named_errors(budget.Args, budget.trace)
    assert stop.value.code == 2
    assert "no run in" in capsys.readouterr().err
