"""The agents' command line: `skipnet_rl.cli`, and Gymnasium's errors are mistakes of the user, too."""

from __future__ import annotations

from functools import partial

from gymnasium.error import Error as GymnasiumError

from skipnet_rl import cli

main_with_named_errors = partial(cli.main_with_named_errors, errors=(GymnasiumError,))
