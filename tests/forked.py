"""A test's own process, which may be killed or limited: a fork, so that nothing is imported anew."""

import multiprocessing
from collections.abc import Callable


def forked(target: Callable, *args: object) -> int | None:
    """The exit code of a call in a process of its own; minus the signal where it was killed."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    process.join(300)
    return process.exitcode
