"""Run a test in a forked process, which may be killed or limited."""

import multiprocessing
from collections.abc import Callable


def forked(target: Callable, *args: object) -> int | None:
    """Exit code of a call in a forked process; minus the signal if it was killed."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    process.join(300)
    return process.exitcode
