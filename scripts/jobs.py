"""Run commands that build on one another: finished ones are skipped, interrupted ones go on."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from skipnet_rl.runs import without_places
from skipnet_rl.terminal import say


@dataclass(frozen=True)
class Job:
    """A module with its flags, and its run folder. Without `--resume` it starts anew if interrupted."""

    folder: Path
    command: tuple[str, ...]

    @property
    def line(self) -> list[str]:
        """The command line."""
        return ["python", "-m", *self.command, "--run-dir", str(self.folder)]

    def done(self) -> bool:
        """Whether the run is finished; a ValueError where another command made it."""
        path = self.folder / "result.json"
        if not path.is_file():
            return False
        made_by = without_places(shlex.split(json.loads(path.read_text(encoding="utf-8"))["command"]))
        if made_by != (line := without_places(self.line)):
            raise ValueError(f"{self.folder} is of {made_by}, not of {line}; name another folder")
        return True

    def needs(self, others: Iterable[Job]) -> bool:
        """Whether its flags name the folder of one of the others."""
        return any(flag.startswith(f"{other.folder}/") for other in others for flag in self.command)


def run(jobs: Sequence[Job], at_once: int = 1, **env: str) -> None:
    """Run what is not done, each job after those that it needs; exits with 1 at the end if one failed.

    With several at a time, each writes its output to a file beside its folder.
    """
    waiting = [job for job in jobs if not job.done()]
    failed: list[Job] = []
    running: dict[Job, subprocess.Popen[bytes]] = {}
    try:
        while True:
            ready = [job for job in waiting if not job.needs([*waiting, *running, *failed])]
            for job in ready[: at_once - len(running)]:
                waiting.remove(job)
                running[job] = _start(job, at_once > 1, env)
            if not running:
                break  # nothing is left, or it needs a job that failed
            time.sleep(0.2)
            for job in [job for job, process in running.items() if process.poll() is not None]:
                if running.pop(job).returncode or not job.done():
                    failed.append(job)
    finally:
        for process in running.values():
            process.terminate()  # at any moment: a checkpoint is written whole or not at all
    if failed:
        sys.exit(f"failed: {', '.join(str(job.folder) for job in failed)}; the same command goes on")


def _start(job: Job, logged: bool, env: dict[str, str]) -> subprocess.Popen[bytes]:
    say(f"$ {shlex.join(job.line)}")
    if "--resume" not in job.command:
        shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{job.folder}.log", "ab") if logged else nullcontext() as log:
        return subprocess.Popen([sys.executable, *job.line[1:]], stdout=log, stderr=log, env=os.environ | env)
