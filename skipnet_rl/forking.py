"""Safe computation in processes made by `os.fork`.

A forked process has one thread. A thread pool that its parent has used, above all PyTorch's, waits there for
threads that do not exist: a silent deadlock. So a child computes with one thread and makes new pools.
Importing this module does not import PyTorch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def in_forked_child(call: Callable[[], object]) -> None:
    """Run `call` first in each process that is forked from now on."""
    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
        os.register_at_fork(after_in_child=call)


def one_thread() -> None:
    """Make PyTorch compute with one thread, if it is loaded."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def forked_by_multiprocessing() -> bool:
    """Whether `multiprocessing` forked this process; a plain `os.fork` cannot be detected afterwards."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is None or multiprocessing.parent_process() is None:
        return False
    method = type(multiprocessing.current_process())._start_method  # None: the default
    return (method or multiprocessing.get_start_method()) == "fork"


in_forked_child(one_thread)
if forked_by_multiprocessing():  # forked before this import, perhaps with a used pool
    one_thread()
