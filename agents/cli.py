"""What every agent's command line shares: flags to dataclass, one-line errors, the device."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import tyro
from gymnasium.error import Error as GymnasiumError

ArgsT = TypeVar("ArgsT")


def main_with_named_errors(args_type: type[ArgsT], run: Callable[[ArgsT], Any]) -> None:
    """Parse the command line and run; a user's mistake ends in one line and exit code 2."""
    args = tyro.cli(args_type)
    try:
        run(args)
    except (ValueError, OSError, GymnasiumError) as error:
        if getattr(args, "debug", False):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        remedy = "; go on with --resume and the same --run-dir" if hasattr(args, "resume") else ""
        print(f"interrupted{remedy}", file=sys.stderr)
        sys.exit(130)
