"""Diverging training is detected, reported once with its step, and never saved."""

import dataclasses
import json

import pytest
import torch

from agents import hybrid_reinforce, pretrain
from agents.common.watch import LATE, DivergenceError, Reading, Watch, check_finite
from skipnet_rl.checkpoint import load_checkpoint
from skipnet_rl.rollout import Trajectory


def episode(actions: torch.Tensor, loss: float = 1.0, logit: float = 0.0) -> Trajectory:
    count = len(actions)
    return Trajectory(
        torch.full(actions.shape, logit),
        actions.float(),
        torch.zeros(actions.shape),
        torch.zeros(count, 10),
        torch.zeros(count, dtype=torch.int64),
        torch.full((count,), loss),
    )


MIXED = torch.tensor([[0, 1, 0], [1, 0, 1]])


@pytest.mark.parametrize("loss", [torch.nan, torch.inf])
def test_nan_loss(loss):
    with pytest.raises(DivergenceError, match=r"the loss is (nan|inf) at step 7 \(HRL\)"):
        Watch().step(7, "hrl", episode(MIXED, loss=loss))


def test_nan_log_odds():
    with pytest.raises(DivergenceError, match=r"log-odds are nan at step 3 \(SP\)"):
        Watch().step(3, "sp", episode(MIXED, logit=torch.nan))
    Watch().step(3, "sp", episode(MIXED, logit=torch.inf))  # a policy that is certain


@pytest.mark.parametrize("action, word", [(0, "skip"), (1, "execute")])
def test_collapse_is_reported_once_with_its_step(action, word, capsys):
    watch = Watch(window=3)
    alike = torch.full((2, 3), action)
    for done, actions in enumerate([alike, alike, MIXED, *[alike] * 9], start=1):
        watch.step(done, "hrl", episode(actions))
    lines = [line for line in capsys.readouterr().out.splitlines() if "for 3 steps the gates" in line]
    assert len(lines) == 1
    assert lines[0].startswith("step 6 (HRL): ") and f"{word} every block" in lines[0]


def test_stages_that_do_not_draw_are_not_collapsed(capsys):
    watch = Watch(window=2)
    for stage in ("sp", "tune", "warmup", "ponder"):
        for done in range(1, 9):
            watch.step(done, stage, episode(torch.ones(2, 3)))
    assert capsys.readouterr().out == ""


def test_unvisited_blocks_are_named_once(capsys):
    watch = Watch(window=3)
    never = torch.tensor([[1, 0, 0], [1, 0, 1]])
    for done in range(1, 9):
        watch.step(done, "hrl", episode(never))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "step 3 (HRL): block 3 is executed by no image for 3 steps"
    )  # the first always runs


class Late:
    """Stands for the event of a copy from a GPU: it has happened when `here` is set."""

    here = False

    def query(self):
        return self.here

    def synchronize(self):
        self.here = True


def test_numbers_of_a_gpu_are_checked_when_they_arrive(monkeypatch):
    """In order, under the number of their own step; `settle` waits for all."""
    events, of = [], Reading.of
    monkeypatch.setattr(
        Reading, "of", lambda *args: of(*args)._replace(copied=events.append(Late()) or events[-1])
    )
    watch = Watch()
    watch.step(1, "hrl", episode(MIXED))
    watch.step(2, "hrl", episode(MIXED, loss=torch.nan))  # still on its way
    with pytest.raises(DivergenceError, match="at step 2 "):
        watch.settle()
    watch = Watch()
    for done in range(1, 2 + LATE):
        watch.step(done, "hrl", episode(MIXED, loss=torch.nan if done == 2 else 1.0))
    assert not events[-1].here and len(watch.coming) == LATE  # no further behind
    for event in events:
        event.here = True
    with pytest.raises(DivergenceError, match="at step 2 "):
        watch.step(9 + LATE, "hrl", episode(MIXED))


def test_nan_in_the_state():
    state = {
        "model": {"net.fc.weight": torch.ones(2)},
        "moments": [torch.tensor([1.0, torch.nan])],
        "step": 3,
    }
    with pytest.raises(DivergenceError, match=r"moments.0 holds a NaN or an infinity at step 9"):
        check_finite(state, 9, "hrl")
    check_finite({"counts": torch.tensor([1]), "w": torch.ones(1)}, 9, "hrl")


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(tmp_path, few_images, monkeypatch):
    """A gradient that turns NaN in HRL's second step, whose own loss is still a number."""
    args = hybrid_reinforce.Args(
        env="SkipResNet20-v0",
        dataset="rendered-digits",
        sp_iterations=2,
        iterations=4,
        tune_iterations=0,
        batch_size=16,
        eval_every=1,
        eval_images=16,
        precision="fp32",
        run_dir=tmp_path / "run",
    )
    honest = hybrid_reinforce.hrl_loss
    calls = []

    def poisoned(*args):
        calls.append(1)
        return honest(*args) * (torch.nan if len(calls) == 2 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(hybrid_reinforce, "hrl_loss", poisoned)
        with pytest.raises(DivergenceError, match=r"at step 4 \(HRL\)"):
            hybrid_reinforce.train(args)
    state = load_checkpoint(tmp_path / "run" / "checkpoint")
    assert state["step"] == 3
    check_finite(state, 3, "hrl")
    assert not (tmp_path / "run" / "result.json").exists()
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps[:3] == [1, 2, 3]
    hybrid_reinforce.train(dataclasses.replace(args, resume=True))  # healthy again, it goes on from there
    assert (tmp_path / "run" / "result.json").exists()


def test_pretraining_that_diverges(tmp_path, few_images):
    args = pretrain.Args(
        depth=20,
        dataset="rendered-digits",
        epochs=20,
        batch_size=32,
        lr=1e9,
        warmup=0.0,
        precision="fp32",
        run_dir=tmp_path / "run",
    )
    with pytest.raises(DivergenceError, match=r"\(PRETRAIN\); the run stops"):
        pretrain.train(args)
    assert not (tmp_path / "run" / "result.json").exists()
