"""What a Ray worker does: it becomes a run.

Importing this module imports no PyTorch, which reads the number of threads when it is loaded.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout


def play(words: Sequence[str], log: str, place: str, threads: int, sees_gpus: bool) -> int:
    """Run a module as `python -m` does, in this process; returns the exit status.

    Args:
        words: the module and its flags.
        log: file that its output is added to.
        place: folder that relative paths start from.
        threads: CPU threads.
        sees_gpus: whether it may use the GPUs that Ray gave to this process.

    Raises:
        FileNotFoundError: there is no such folder on this machine.
    """
    if not os.path.isdir(place):
        raise FileNotFoundError(
            f"{place} is not on {socket.gethostname()}; a cluster's machines need a file system in common"
        )
    os.chdir(place)
    sys.path.insert(0, place)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # a worker inherits that of the process that started Ray
    if not sees_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.argv = list(words)
    with open(log, "a", buffering=1, encoding="utf-8") as file:
        for standard in (1, 2):  # also what is not printed by Python
            os.dup2(file.fileno(), standard)
        with redirect_stdout(file), redirect_stderr(file):
            return _status_of(words[0])


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
