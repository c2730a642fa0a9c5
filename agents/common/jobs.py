"""Runs as jobs: finished ones are skipped, interrupted ones continue, failed ones are tried once more.

A pool runs them: `OneByOne`, or `agents.common.cluster.Cluster` for many at a time.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from skipnet_rl.files import remove_folder
from skipnet_rl.runs import without_places
from skipnet_rl.terminal import say


@dataclass(frozen=True)
class Job:
    """A module with its flags, and its run folder. Without `--resume` it starts over if interrupted."""

    folder: Path
    command: tuple[str, ...]

    @property
    def line(self) -> list[str]:
        """The command line."""
        return ["python", "-m", *self.command, "--run-dir", str(self.folder)]

    def done(self) -> bool:
        """Return whether the run is finished; raises a ValueError if another command made it."""
        path = self.folder / "result.json"
        if not path.is_file():
            return False
        stored = shlex.split(json.loads(path.read_text(encoding="utf-8"))["command"])
        made_by, line = (without_places(words, run_dir=False) for words in (stored, self.line))
        if made_by != line:
            raise ValueError(f"{self.folder} was made by {made_by}, not by {line}; name another folder")
        return True

    def needs(self, others: Iterable[Job]) -> bool:
        """Whether its flags, `--flag FILE` or `--flag=FILE`, name the folder of one of the others."""
        files = [text for word in self.command for text in (word, word.partition("=")[2])]
        return any(other.makes(file) for other in others for file in files)

    def makes(self, path: str) -> bool:
        """Whether a path is inside its folder."""
        return path.startswith(f"{self.folder}/")

    def prepare(self) -> None:
        """Make room for an attempt: a run that cannot be resumed starts in a new folder."""
        if "--resume" not in self.command and (self.folder / "args.json").exists():
            remove_folder(self.folder)
        self.folder.parent.mkdir(parents=True, exist_ok=True)


class Pool(Protocol):
    """Runs jobs, as a context."""

    @property
    def size(self) -> int:
        """Jobs at a time, at least 1."""
        ...

    def start(self, job: Job) -> None:
        """Start a job."""
        ...

    def wait(self) -> tuple[Job, str]:
        """Wait until a job has ended; returns it, and what went wrong, empty if nothing did."""
        ...

    def __enter__(self) -> Pool:
        """Take the processes or machines that it runs on."""
        ...

    def __exit__(self, *error: object) -> None:
        """End whatever still runs."""
        ...


class OneByOne:
    """One process at a time on this machine, whose output goes to the terminal.

    Args:
        threads: CPU threads of each; None for PyTorch's own choice.
    """

    size = 1

    def __init__(self, threads: int | None = None) -> None:
        self.env = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        self.running: tuple[Job, subprocess.Popen[bytes]] | None = None

    def start(self, job: Job) -> None:
        """Start a process that the terminal's Ctrl-C does not reach: the pool ends it, with one message."""
        with sigint_held_back():
            self.running = job, subprocess.Popen([sys.executable, *job.line[1:]], env=os.environ | self.env)

    def wait(self) -> tuple[Job, str]:
        """Wait for it; an exit status other than 0 is what went wrong."""
        assert self.running is not None, "no job was started"
        job, process = self.running
        status = process.wait()
        self.running = None
        return job, f"exit status {status}" if status else ""

    def __enter__(self) -> OneByOne:
        """Take nothing."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the process, if one runs."""
        if self.running is not None:
            process = self.running[1]
            process.terminate()  # at any moment: a checkpoint is written whole or not at all
            process.wait()


@contextmanager
def sigint_held_back() -> Iterator[None]:
    """Block SIGINT in this block, and for good in the processes that it starts.

    They stay in the terminal's process group, so that they end with the terminal and stop on Ctrl-Z.
    """
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work(pool: Pool, take: Callable[[], Job | None], ended: Callable[[Job, bool], None]) -> None:
    """Keep a pool busy until no job is left to start and none is running.

    Args:
        pool: runs the jobs.
        take: returns the next job, or None if there is none for now.
        ended: called with each job that has ended, and whether it is done; if not, it failed twice.
    """
    running: set[Job] = set()
    failed_once: set[Job] = set()

    def start(job: Job) -> None:
        say(f"$ {shlex.join(job.line)}")
        job.prepare()
        pool.start(job)
        running.add(job)

    with pool:
        while True:
            while len(running) < pool.size and (job := take()) is not None:
                start(job)
            if not running:
                return
            job, problem = pool.wait()
            running.remove(job)
            problem = problem or ("" if job.done() else "it left no result.json")
            if problem and job not in failed_once:
                failed_once.add(job)
                say(f"{job.folder}: {problem}; trying once more")
                start(job)
                continue
            if problem:
                say(f"{job.folder}: {problem}; given up")
            ended(job, not problem)


def run(jobs: Sequence[Job], pool: Pool) -> list[Job]:
    """Run the jobs that are not done, each after those that it needs.

    Returns:
        The jobs that failed, and those that were not started because they need one of these.
    """
    waiting = [job for job in jobs if not job.done()]
    unfinished = list(waiting)

    def take() -> Job | None:
        ready = next((job for job in waiting if not job.needs(unfinished)), None)
        if ready is not None:
            waiting.remove(ready)
        return ready

    def ended(job: Job, done: bool) -> None:
        if done:
            unfinished.remove(job)
            say(f"{job.folder}: done, {len(jobs) - len(unfinished)} of {len(jobs)}")

    if waiting:
        work(pool, take, ended)
    return unfinished


def list_commands(jobs: Iterable[Job]) -> None:
    """Print each job's folder and its command line, or that it is done."""
    for job in jobs:
        say(f"{job.folder}: {'done' if job.done() else shlex.join(job.line)}")


def exit_if_failed(failed: Sequence[Job]) -> None:
    """End the process with exit status 1 if a job failed."""
    if failed:
        sys.exit(f"failed: {', '.join(str(job.folder) for job in failed)}; repeat the command to continue")


def end_runs_on_sigterm() -> None:
    """Let SIGTERM do what Ctrl-C does: a pool's runs end with this process, which says so.

    Of the exceptions that a signal could raise, Ray, while it waits, passes on KeyboardInterrupt alone.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
