"""The work of a Ray worker: it becomes a run.

Importing this module does not import PyTorch, which reads the number of threads when it is loaded.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout

PREFIX = "SKIPNET_"  # of the environment variables that a run reads, such as SKIPNET_DATA


def own_variables() -> dict[str, str]:
    """Return the environment variables of this process that a run reads, on whatever machine."""
    return {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}


def play(
    words: Sequence[str],
    log: str,
    place: str,
    threads: int,
    sees_gpus: bool,
    variables: Mapping[str, str],
) -> int:
    """Run a module as `python -m` does, in this process; returns the exit status.

    Args:
        words: the module and its flags.
        log: file that its output is added to.
        place: folder that relative paths start from.
        threads: CPU threads.
        sees_gpus: whether it may use the GPUs that Ray gave to this process.
        variables: environment variables; a worker inherits those of the process that started Ray.

    Raises:
        FileNotFoundError: there is no such folder on this machine.
    """
    if not os.path.isdir(place):
        raise FileNotFoundError(
            f"{place} is not on {socket.gethostname()}; the machines of a cluster need a shared file system"
        )
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.chdir(place)
    sys.path.insert(0, place)
    os.environ |= {**variables, "OMP_NUM_THREADS": str(threads)}
    if not sees_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.argv = list(words)
    with open(log, "a", buffering=1, encoding="utf-8") as file:
        for standard in (1, 2):  # also for what Python does not print
            os.dup2(file.fileno(), standard)
        with redirect_stdout(file), redirect_stderr(file):
            return _status_of(words[0])


def _end_with(parent: int) -> None:
    """End this process once its parent, Ray's process on this machine, has ended.

    Ray counts the run as lost then, but does not end it: it would write the same folder as the next attempt.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _status_of(module: str) -> int:
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
