"""Processes made by `os.fork`, which have one thread, whatever pools of threads their parent had.

A pool that the parent has used, PyTorch's above all, waits in the child for threads that are not there: a
deadlock without a message. So a child computes with one thread and makes its own pools anew. Importing this
loads no PyTorch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def in_forked_child(call: Callable[[], object]) -> None:
    """Run `call` in each process that is forked from here on, before anything else runs there."""
    if hasattr(os, "register_at_fork"):  # Windows has none, nor forks
        os.register_at_fork(after_in_child=call)


def one_thread() -> None:
    """Let PyTorch compute with one thread, where it is loaded."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def forked_by_multiprocessing() -> bool:
    """Whether `multiprocessing` forked this process; of a bare `os.fork` nothing is known afterwards."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is None or multiprocessing.parent_process() is None:
        return False
    method = type(multiprocessing.current_process())._start_method  # None: the one that is set
    return (method or multiprocessing.get_start_method()) == "fork"


in_forked_child(one_thread)
if forked_by_multiprocessing():  # the fork came before this import, and so did the parent's pool
    one_thread()
