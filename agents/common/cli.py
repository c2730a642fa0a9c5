"""The agents' command line: `skipnet_rl.cli` with grouped flags, in one line Gymnasium's errors, too."""

from __future__ import annotations

from functools import partial

from gymnasium.error import Error as GymnasiumError

from agents.common.flags import parse
from skipnet_rl import cli

main_with_named_errors = partial(cli.main_with_named_errors, errors=(GymnasiumError,), parse=parse)
