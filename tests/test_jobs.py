"""Commands that build on one another run in order, once, and end when the runner ends."""

import contextlib
import importlib
import json
import os
import shlex
import signal
import sys
import time

import pytest
import tyro

from benchmarks import policies
from scripts import jobs


@pytest.fixture
def played(tmp_path, monkeypatch):
    """Make jobs that are small scripts, each of which leaves its name, its process and its times."""

    def make(*needs, code="pass", flags=()):
        script = (
            "import json, os, pathlib, sys, time\n"
            "folder, begun = pathlib.Path(sys.argv[-1]), time.monotonic()\n"
            "folder.mkdir(parents=True, exist_ok=True)\n"
            "(folder / 'pid').write_text(str(os.getpid()))\n"
            f"{code}\n"
            "result = {'command': os.environ['LINE'], 'times': [begun, time.monotonic()]}\n"
            "(folder / 'result.json').write_text(json.dumps(result))"
        )
        files = (f"{other.folder}/weights.safetensors" for other in needs)
        return jobs.Job(tmp_path / f"row/{next(names)}", (script, *flags, *files))

    def popen(command, env, **given):
        line = shlex.join(["python", *command[1:]])
        return real([sys.executable, "-c", command[2], command[-1]], env={**env, "LINE": line}, **given)

    names, real = iter("abcdefgh"), jobs.subprocess.Popen
    monkeypatch.setattr(jobs.subprocess, "Popen", popen)
    return make


def times(job):
    return json.loads((job.folder / "result.json").read_text())["times"]


def test_jobs_run_side_by_side_where_none_needs_the_other(played):
    first = played()
    pair = [played(first, code="time.sleep(2); print('heard')"), played(first, code="time.sleep(2)")]
    last = played(pair[1])
    listed = [first, pair[0], last, pair[1]]
    jobs.run(listed, at_once=2)
    begun, ended = zip(*map(times, (first, *pair, last)), strict=True)
    assert ended[0] < min(begun[1:3]) and max(begun[1:3]) < min(ended[1:3]) and ended[2] < begun[3]
    assert pair[0].folder.with_name("b.log").read_text().strip() == "heard"
    before = times(first)
    jobs.run(listed, at_once=2)
    assert times(first) == before  # what is done is not run again


def test_what_needs_a_failed_job_is_not_run_and_the_rest_is(played, capsys):
    for at_once in (1, 2):
        failing = played(code="raise SystemExit(2)")
        listed = [failing, played(failing), played()]
        with pytest.raises(SystemExit, match=f"failed: {failing.folder}; the same command goes on"):
            jobs.run(listed, at_once)
        assert not listed[1].folder.exists() and listed[2].done()
        assert f"$ python -m {shlex.join(failing.command)}" in capsys.readouterr().out


def test_what_was_interrupted_goes_on_or_starts_anew(played):
    """By `--resume`, which is then in the command; without it the folder is emptied first."""
    for flags, kept in (((), False), (("--resume",), True)):
        job = played(flags=flags)
        job.folder.mkdir(parents=True)
        (job.folder / "args.json").write_text("{}")
        jobs.run([job])
        assert job.done() and (job.folder / "args.json").exists() == kept


def test_a_folder_of_another_command_is_refused(tmp_path):
    job = jobs.Job(tmp_path, ("agents.pretrain", "--epochs", "2", "--resume"))
    assert not job.done()
    for places in ("--data-dir /mine --resume", "--device cpu"):
        command = f"python -m agents.pretrain --epochs 2 {places} --run-dir {tmp_path}"
        (tmp_path / "result.json").write_text(json.dumps({"command": command}))
        assert job.done()
    (tmp_path / "result.json").write_text(json.dumps({"command": command.replace("2", "3", 1)}))
    with pytest.raises(ValueError, match="epochs 3 .* not of .*epochs 2 .*name another folder"):
        jobs.run([job])


def test_processes_end_with_the_runner(played, monkeypatch):
    """A signal while it waits is an exception, see `scripts.reproduce`."""
    listed = [played(code="time.sleep(60)"), played(code="time.sleep(60)")]

    def interrupted(seconds):
        if all((job.folder / "pid").exists() for job in listed):
            raise KeyboardInterrupt
        pause(seconds)

    pause = time.sleep
    monkeypatch.setattr(jobs.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        jobs.run(listed, at_once=2)
    monkeypatch.undo()
    for job in listed:
        process = int((job.folder / "pid").read_text())
        with contextlib.suppress(ChildProcessError):  # the runner has waited for it already
            assert os.waitpid(process, 0)[1] == signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_the_sweep_of_policies():
    sweep = policies.commands(policies.Options(seeds=2, only=("static", "ppo")))
    assert [job.folder.name for job in sweep] == [
        "static-0",
        "ppo-0",
        "ppo-recurrent-0",
        "ppo-1",
        "ppo-recurrent-1",
    ]
    for job in sweep:
        args = tyro.cli(importlib.import_module(job.command[0]).Args, args=job.line[3:])
        assert args.run_dir == job.folder and args.weights == "resnet20-cifar10-skips"
