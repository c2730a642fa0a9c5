"""What every command line shares: flags to dataclass, one-line errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from skipnet_rl.terminal import forgiving_streams, say

ArgsT = TypeVar("ArgsT")


def main_with_named_errors(
    args_type: type[ArgsT],
    run: Callable[[ArgsT], Any],
    errors: tuple[type[Exception], ...] = (),
    defaults: Callable[[], ArgsT] | None = None,
    parse: Callable[..., ArgsT] = tyro.cli,
) -> None:
    """Parse the command line and run; a user's mistake ends in one line and exit code 2.

    Args:
        args_type: a dataclass; with `debug` set an error keeps its traceback.
        run: what to do.
        errors: kinds of mistakes beside ValueError and OSError.
        defaults: gives the flags' defaults where they follow from flags that are given; `--help` shows them.
        parse: reads the command line into `args_type`, with `defaults` as its `default`.
    """
    with forgiving_streams():
        _run(args_type, run, errors, defaults, parse)


def _run(
    args_type: type[ArgsT],
    run: Callable[[ArgsT], Any],
    errors: tuple[type[Exception], ...],
    defaults: Callable[[], ArgsT] | None,
    parse: Callable[..., ArgsT],
) -> None:
    args = None
    mistakes: tuple[type[Exception], ...] = (ValueError, OSError, *errors)
    try:
        args = parse(args_type, default=defaults()) if defaults else parse(args_type)
        run(args)
    except mistakes as error:
        if getattr(args, "debug", "--debug" in sys.argv):
            raise
        say(f"error: {error}", sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        remedy = "; go on with --resume and the same --run-dir" if hasattr(args, "resume") else ""
        say(f"interrupted{remedy}", sys.stderr)
        sys.exit(130)
