"""Entry point of every command: flags to a dataclass, errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from gymnasium.error import Error as GymnasiumError

from agents.common.parsing import parse
from agents.common.processes import check_processes
from skipnet_rl.distributed import together
from skipnet_rl.terminal import forgiving_streams, say

ArgsT = TypeVar("ArgsT")


def main_with_named_errors(
    args_type: type[ArgsT],
    run: Callable[[ArgsT], Any],
    errors: tuple[type[Exception], ...] = (),
    defaults: Callable[[], ArgsT] | None = None,
) -> None:
    """Parse the command line and run; an error of the user is reported in one line, with exit code 2.

    Args:
        args_type: dataclass of the flags; if it has `debug` set, errors show their traceback.
        run: the command.
        errors: exceptions that are errors of the user, besides ValueError, OSError and Gymnasium's.
        defaults: returns the defaults, if they depend on the given flags; `--help` shows them.
    """
    args = None
    named: tuple[type[Exception], ...] = (ValueError, OSError, GymnasiumError, *errors)
    with forgiving_streams():
        try:
            args = parse(args_type, default=defaults() if defaults else None)
            with together():
                check_processes(args)
                run(args)
        except named as error:
            if getattr(args, "debug", "--debug" in sys.argv):
                raise
            say(f"error: {error}", sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            remedy = "; continue with --resume and the same --run-dir" if hasattr(args, "resume") else ""
            say(f"interrupted{remedy}", sys.stderr)
            sys.exit(130)
