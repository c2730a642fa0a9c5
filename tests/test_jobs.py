"""Commands that build on one another run in order, once, and end when the runner ends."""

import contextlib
import importlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
import tyro

from agents.common import jobs
from agents.common.cluster import Cluster, pool_of
from agents.common.jobs import Job, OneByOne
from benchmarks import policies

MODULE = """
import json, os, shlex, sys, time
from pathlib import Path
code, *_, place = sys.argv[1:]
folder, begun = Path(place), time.monotonic()
folder.mkdir(parents=True, exist_ok=True)
(folder / "pid").write_text(str(os.getpid()))
(folder / "attempts").open("a").write("x")
exec(code)
command = shlex.join(["python", "-m", "played", *sys.argv[1:]])
found = {"command": command, "times": [begun, time.monotonic()], "threads": os.environ.get("OMP_NUM_THREADS")}
(folder / "result.json").write_text(json.dumps(found))
"""
FLAKY = "if len((folder / 'attempts').read_text()) < {}: raise SystemExit(2)"


@pytest.fixture
def played(tmp_path, monkeypatch):
    """Make jobs of a module that runs a line of code, and leaves its process, its attempts and its times."""
    (tmp_path / "played.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)

    def make(*needs, code="pass", flags=("--resume",)):
        files = (f"{other.folder}/weights.safetensors" for other in needs)
        return Job(tmp_path / f"row/{next(names)}", ("played", code, *flags, *files))

    names = iter("abcdefgh")
    return make


class Instant(OneByOne):
    """A pool that finishes its jobs in the order that it is told to, without running anything."""

    def __init__(self, size, *problems):
        self.size, self.problems, self.started, self.open = size, list(problems), [], []

    def start(self, job):
        self.started.append(job)
        self.open.append(job)
        assert len(self.open) <= self.size

    def wait(self):
        job, problem = self.open.pop(0), self.problems.pop(0) if self.problems else ""
        if not problem:
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / "result.json").write_text(json.dumps({"command": " ".join(job.line)}))
        return job, problem

    def __exit__(self, *error):
        """Nothing runs."""


def result(job):
    return json.loads((job.folder / "result.json").read_text())


def attempts(job):
    return len((job.folder / "attempts").read_text())


def test_jobs_run_side_by_side_where_none_needs_the_other(tmp_path):
    first, second, third, last = (Job(tmp_path / name, ("m", name)) for name in "abcd")
    second = Job(second.folder, (*second.command, f"{first.folder}/w"))
    third = Job(third.folder, (*third.command, f"--weights={first.folder}/w"))
    last = Job(last.folder, ("m", f"{third.folder}/w"))
    listed = [first, second, last, third]
    assert jobs.run(listed, pool := Instant(2)) == []
    assert pool.started == [first, second, third, last]
    assert jobs.run(listed, pool := Instant(2)) == [] and not pool.started  # what is done is not run again


def test_a_failed_job_is_tried_once_more(tmp_path, capsys):
    lost, other = (Job(tmp_path / name, ("m", name)) for name in "ab")
    assert jobs.run([lost, other], pool := Instant(1, "it was lost")) == []
    assert pool.started == [lost, lost, other]
    assert f"{lost.folder}: it was lost; trying once more" in capsys.readouterr().out
    ill = Job(tmp_path / "c", ("m",))
    assert jobs.run([ill, other], pool := Instant(1, "it was lost", "it failed")) == [ill]
    assert pool.started == [ill, ill]
    assert f"{ill.folder}: it failed; given up" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=f"failed: {ill.folder}; repeat the command to continue"):
        jobs.exit_if_failed([ill])


def test_what_needs_a_failed_job_is_not_run_and_the_rest_is(played, capsys):
    failing, flaky = played(code="raise SystemExit(2)"), played(code=FLAKY.format(2))
    listed = [failing, played(failing), flaky, played(flaky, code="assert threads == '3'")]
    assert jobs.run(listed, OneByOne()) == [failing, listed[1], listed[3]]
    assert attempts(failing) == attempts(flaky) == 2
    assert not listed[1].folder.exists() and flaky.done()
    assert f"{failing.folder}: exit status 2; given up" in capsys.readouterr().out


def test_a_job_has_the_threads_that_it_is_given(played):
    job = played()
    jobs.run([job], pool_of(workers=1, threads=3))
    assert result(job)["threads"] == "3"


def test_what_was_interrupted_goes_on_or_starts_anew(played):
    """By `--resume`, which is then in the command; without it the folder is emptied first."""
    for flags, kept in (((), False), (("--resume",), True)):
        job = played(flags=flags)
        job.folder.mkdir(parents=True)
        for name in ("args.json", "checkpoint"):
            (job.folder / name).write_text("{}")
        assert jobs.run([job], OneByOne()) == []
        assert job.done() and (job.folder / "checkpoint").exists() == kept


def test_only_a_run_is_removed(played):
    job = played(flags=())
    job.folder.mkdir(parents=True)
    (job.folder / "thesis.tex").touch()
    assert jobs.run([job], OneByOne()) == []
    assert (job.folder / "thesis.tex").exists()


def test_a_folder_of_another_command_is_refused(tmp_path):
    job = Job(tmp_path, ("agents.pretrain", "--epochs", "2", "--resume"))
    assert not job.done()
    for places in ("--data-dir /mine --resume", "--device cpu"):
        for folder in (tmp_path, "elsewhere"):
            command = f"python -m agents.pretrain --epochs 2 {places} --run-dir {folder}"
            (tmp_path / "result.json").write_text(json.dumps({"command": command}))
            assert job.done()
    (tmp_path / "result.json").write_text(json.dumps({"command": command.replace("2", "3", 1)}))
    with pytest.raises(ValueError, match="epochs 3, not by .*epochs 2; name another folder"):
        jobs.run([job], OneByOne())


def test_processes_end_with_the_runner(played, monkeypatch):
    """A signal while it waits is an exception, see `jobs.end_runs_on_sigterm`."""
    job = played(code="time.sleep(60)")

    def interrupted(pool):
        while not (job.folder / "pid").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(OneByOne, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        jobs.run([job], OneByOne())
    process = int((job.folder / "pid").read_text())
    with contextlib.suppress(ChildProcessError):  # the runner has waited for it already
        assert os.waitpid(process, 0)[1] == signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_sigterm_is_an_interruption():
    before = signal.getsignal(signal.SIGTERM)
    try:
        jobs.end_runs_on_sigterm()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_job_does_not_see_the_ctrl_c_that_ends_its_runner(played):
    """It would print its own traceback, whatever it is importing."""
    job = played(code="os.kill(os.getpid(), 2)")
    assert jobs.run([job], OneByOne()) == [] and attempts(job) == 1
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # the runner does, as before


def test_several_at_a_time_need_ray(monkeypatch):
    monkeypatch.setattr("agents.common.cluster.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"need Ray.*pip install .*sweep.*--workers 1"):
        pool_of(workers=2)
    assert isinstance(pool_of(workers=1), OneByOne)


@pytest.mark.parametrize(
    "machines, threads, asked, gpus, runs",
    [
        ([{"CPU": 8}], 2, {}, 0, 4),
        ([{"CPU": 8}, {"CPU": 3}], 2, {"address": "auto"}, 0, 5),
        ([{"CPU": 8, "GPU": 1}], 1, {}, 1, 1),
        ([{"CPU": 8, "GPU": 2}], 1, {"workers": 2}, 1, 2),
        ([{"CPU": 8, "GPU": 2}], 1, {"workers": 3}, 0.5, 3),
        ([{"CPU": 8, "GPU": 1}], 1, {"workers": 7}, 0.1428, 7),
        ([{"CPU": 8, "GPU": 2}] * 2, 1, {"address": "auto"}, 1, 4),
        ([{"CPU": 8, "GPU": 2}] * 2, 1, {"address": "auto", "gpus": 0.4}, 0.4, 8),
        ([{"CPU": 8, "GPU": 4}], 1, {"address": "auto", "gpus": 2}, 2, 2),
        ([{"CPU": 8, "GPU": 4}], 1, {"address": "auto", "gpus": 0}, 0, 8),
    ],
)
def test_as_many_runs_as_fit(monkeypatch, machines, threads, asked, gpus, runs):
    """A run has whole threads, and a share of a GPU does not spread over two."""
    monkeypatch.setattr(Cluster, "_machines", lambda pool: machines)
    pool = Cluster(asked.get("address"), asked.get("workers"), threads, asked.get("gpus"))
    pool._choose_gpus(sum(machine.get("GPU", 0) for machine in machines))
    assert (pool.gpus, pool.size) == (gpus, runs)


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


@pytest.mark.slow
def test_rays_workers(played, monkeypatch, capfd):
    """Side by side; with one thread whatever is inherited; one that is killed or fails is tried once more."""
    pytest.importorskip("ray")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    first = played(code="import torch; assert torch.get_num_threads() == 1; print('heard')")
    meet = "while not (folder.parent / '{}' / 'pid').exists(): time.sleep(0.01)"
    pair = [played(first, code=meet.format("c")), played(first, code=meet.format("b"))]
    killed = played(code="if len((folder / 'attempts').read_text()) < 2: os.kill(os.getpid(), 9)")
    failing = played(code="raise SystemExit('no such thing')")
    listed = [first, *pair, killed, failing]
    assert jobs.run(listed, pool_of(workers=2)) == [failing]
    assert result(first)["threads"] == "1"
    assert first.folder.with_name("a.log").read_text().strip() == "heard"
    assert [attempts(job) for job in listed] == [1, 1, 1, 2, 2]
    assert max(result(job)["times"][0] for job in pair) < min(result(job)["times"][1] for job in pair)
    said = capfd.readouterr().out
    assert f"{killed.folder}: its process was lost (WorkerCrashedError); trying once more" in said
    assert f"{failing.folder}: exit status 1: no such thing; given up" in said
    assert len({(job.folder / "pid").read_text() for job in listed}) == 5  # none inherits another's state
