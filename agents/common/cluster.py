"""Many runs at a time, on this machine or on a cluster, through Ray.

Each run has a separate process: a Ray worker that runs the module and ends with it. So whatever ends the
worker (a lost machine, too little memory, `kill -9`) ends the run, and no second process writes its folder.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agents.common.jobs import Job, OneByOne, Pool
from agents.common.worker import own_variables, play

STORE = 80 * 2**20  # bytes of Ray's object store, close to its minimum: only lines of text go through it
CLIENT_PORT = 10_001  # of ray:// addresses that name no port
PATIENCE = 10.0  # seconds to wait for a machine to answer
SHARES = 10_000  # Ray rounds a share of a GPU to a multiple of 1 / SHARES


def pool_of(
    workers: int | None = None,
    threads: int | None = 1,
    gpus: float | None = None,
    address: str | None = None,
) -> Pool:
    """Return a pool of runs; one run at a time on this machine needs no Ray.

    Args:
        workers: runs at a time on this machine; None for as many as fit. More runs than GPUs share them.
        threads: CPU threads of each run. None: PyTorch's own choice for one run at a time, else an equal
            share of the cores.
        gpus: GPUs of each run; a fraction shares one; None for one, if there are any.
        address: a running Ray cluster, such as `"auto"` or `"ray://host:10001"`; None for this machine.

    Raises:
        ModuleNotFoundError: Ray is needed, and is not installed.
    """
    if address is None and workers == 1:
        return OneByOne(threads)
    if find_spec("ray") is None:
        alone = "" if address else ", or run one at a time (--workers 1)"
        raise ModuleNotFoundError(
            f'several runs at a time need Ray, which is not installed: pip install -e ".[sweep]"{alone}'
        )
    return Cluster(address, workers, threads or max(1, cores() // (workers or 1)), gpus)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Cluster:
    """Ray workers; the output of each run goes to a file beside its folder. See `pool_of`."""

    def __init__(
        self, address: str | None, workers: int | None, threads: int, gpus: float | None = None
    ) -> None:
        self.address, self.workers, self.threads, self.gpus = address, workers, threads, gpus
        self.running: dict[Any, Job] = {}

    def __enter__(self) -> Cluster:
        """Start Ray on this machine, or connect to the cluster.

        Raises:
            ConnectionError: there is no cluster at the address.
            ValueError: a malformed address, or no machine with room for a run.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # `play` hides the GPUs itself
        import ray

        if self.address is not None:
            check_address(self.address)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:
            here = max(1, cores() // self.threads) if self.workers is None else self.workers
            quiet |= {"num_cpus": here * self.threads, "object_store_memory": STORE}
            quiet |= {"include_dashboard": False}
        on_sigterm = signal.getsignal(signal.SIGTERM)
        ray.init(self.address or "local", **quiet)
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler aborts the process
        try:
            self._choose_gpus(sum(machine.get("GPU", 0) for machine in self._machines()))
            if not self._fitting():
                raise ValueError(
                    f"no machine has {self.threads} CPUs and {self.gpus:g} GPUs for a run; ask for less"
                )
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """End the workers, which is safe at any moment: a checkpoint is written whole or not at all."""
        import ray

        ray.shutdown()

    @property
    def size(self) -> int:
        """Number of runs that fit on the machines, as they are now."""
        fitting = self._fitting()
        return max(1, fitting if self.workers is None else min(self.workers, fitting))

    def start(self, job: Job) -> None:
        """Hand a job to Ray, which starts it once a machine has room."""
        import ray

        # one process for each run, and no retries by Ray: `work` counts the attempts
        options: dict[str, Any] = {"num_cpus": self.threads, "num_gpus": self.gpus}
        options |= {"max_calls": 1, "max_retries": 0, "scheduling_strategy": "SPREAD"}
        task = ray.remote(**options)(play).options(name=str(job.folder))
        where = (f"{job.folder}.log", os.getcwd(), self.threads, bool(self.gpus), own_variables())
        self.running[task.remote(job.line[2:], *where)] = job

    def wait(self) -> tuple[Job, str]:
        """Wait until any job has ended."""
        import ray

        (ended, *_), _ = ray.wait(list(self.running))
        job = self.running.pop(ended)
        try:
            status = ray.get(ended)
        except ray.exceptions.RayTaskError as error:  # raised before the module ran
            return job, last_line(str(error.cause))
        except ray.exceptions.RayError as error:
            return job, f"its process was lost ({type(error).__name__})"
        log = Path(f"{job.folder}.log")
        text = log.read_text(encoding="utf-8", errors="replace") if status and log.is_file() else ""
        return job, f"exit status {status}: {last_line(text)}" if status else ""

    def _machines(self) -> list[dict[str, float]]:
        import ray

        return [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]

    def _choose_gpus(self, found: float) -> None:
        """Choose the GPUs of each run: one, or a share of one if there are fewer GPUs than runs."""
        if self.gpus is None:
            asked = 1 if self.address or self.workers is None else self.workers
            together = math.ceil(max(1, asked / found)) if found else 0
            self.gpus = math.floor(SHARES / together) / SHARES if together else 0.0

    def _fitting(self) -> int:
        """Count the runs for which the machines have CPUs and GPUs."""
        return sum(
            min(int(machine.get("CPU", 0) // self.threads), self._on_gpus(machine.get("GPU", 0)))
            for machine in self._machines()
        )

    def _on_gpus(self, count: float) -> int:
        """Count the runs for which a machine has GPUs; a share is of one GPU, never of two."""
        if not self.gpus:
            return sys.maxsize
        return int(count) * int(1 / self.gpus + 1e-9) if self.gpus < 1 else int(count // self.gpus)


def check_address(address: str) -> None:
    """Check that a machine answers at the address of a cluster; Ray itself tries for many minutes.

    Raises:
        ConnectionError: no machine answers.
        ValueError: a malformed address.
    """
    if address == "auto":
        return
    client = address.startswith("ray://")
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if client and not colon:
        host, port = port, str(CLIENT_PORT)
    if not (host and port.isdecimal() and int(port) < 2**16):
        raise ValueError(f"--address is {address!r}; expected auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except OSError as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({error}); `ray start --head`, which starts one, "
            "prints its address"
        ) from error


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
