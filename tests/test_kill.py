"""kill -9 at any moment, then --resume: the run ends as if nothing had happened.

A child process is killed by SIGKILL at the k-th call of a function that a run goes through, k drawn at
random: in training steps, in evaluations, between the writes and renames of a checkpoint, at a metric
line. It is resumed and killed again, three times for each of seven places, and then left to end.
"""

import ast
import contextlib
import os
import random
import signal
from pathlib import Path

import pytest
from forked import forked, outcome
from toys import load_first, slow

from agents import hybrid_reinforce
from agents.common import setting
from skipnet_rl import checkpoint, evaluate, files, runs

if not hasattr(os, "fork"):
    pytest.skip("needs fork", allow_module_level=True)

FLAGS = {
    "env": "SkipResNet20-v0",
    "dataset": "rendered-digits",
    "alpha": 3.0,
    "sp_iterations": 3,
    "iterations": 4,
    "tune_iterations": 2,
    "batch_size": 8,
    "eval_every": 1,
    "eval_images": 16,
    "precision": "fp32",
}
PLACES = {
    "training step": (hybrid_reinforce, "train_step"),
    "evaluation": (evaluate, "rollout"),
    "fsync": (files.os, "fsync"),
    "rename of a folder": (checkpoint, "move"),
    "rename of a file": (files, "move"),
    "tensors": (checkpoint, "save_file"),
    "line or file of JSON": (runs.json, "dumps"),
}
KILLS = 3  # at each place
QUICK = {"training step", "rename of a folder"}


def child(folder: Path, resume: bool, place: str | None, survived: int) -> None:
    """Run to the end, or until the call after as many of `place` as are survived."""
    setting.load_images = load_first(32)
    calls = dict.fromkeys(PLACES, 0)

    def watched(name: str, original):
        def call(*args, **kwargs):
            if name == place and calls[name] == survived:
                os.kill(os.getpid(), signal.SIGKILL)
            calls[name] += 1
            return original(*args, **kwargs)

        return call

    for name, (owner, attribute) in PLACES.items():
        setattr(owner, attribute, watched(name, getattr(owner, attribute)))
    args = hybrid_reinforce.Args(**FLAGS, run_dir=folder, resume=resume)
    with (
        Path(os.devnull).open("w") as sink,
        contextlib.redirect_stdout(sink),
        contextlib.redirect_stderr(sink),
    ):
        hybrid_reinforce.train(args)
    (folder / "calls.txt").write_text(repr(calls))


def start(folder: Path, place: str | None = None, survived: int = 0) -> int:
    """The exit code of a run in a process of its own; minus the signal where it was killed."""
    resume = (folder / "args.json").exists()
    return forked(child, folder, resume, place, survived)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start(folder) == 0
    return outcome(folder), ast.literal_eval((folder / "calls.txt").read_text())


@pytest.mark.parametrize(
    "place",  # the others are interrupted writes, too
    [place if place in QUICK else slow(place) for place in PLACES],
)
def test_kills_leave_no_trace(uninterrupted, tmp_path, place, record_property):
    expected, calls = uninterrupted
    rng, folder, moments = random.Random(place), tmp_path / "run", []
    for _ in range(KILLS):
        moments.append(rng.randrange(calls[place] // KILLS))
        assert start(folder, place, moments[-1]) == -signal.SIGKILL, moments
    assert start(folder) == 0
    assert outcome(folder) == expected, moments
    left = {path.name for path in folder.rglob("*.new")}
    assert left <= {"checkpoint.new"}  # of which nothing is read
    record_property("kills", KILLS)


@pytest.mark.parametrize("file", ["state.safetensors", slow("state.json")])
def test_the_checkpoint_before_a_damaged_one(uninterrupted, tmp_path, file):
    expected, _ = uninterrupted
    folder = tmp_path / "run"
    assert start(folder, "training step", 5) == -signal.SIGKILL
    damaged = folder / "checkpoint" / file
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert start(folder) == 0
    assert outcome(folder) == expected
    assert (folder / "checkpoint.damaged").is_dir()
