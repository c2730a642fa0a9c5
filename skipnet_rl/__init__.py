"""SkipNet as a decision process: networks, dynamics, gates, rollouts, evaluation, data."""

from skipnet_rl import forking as forking  # first: it registers a hook for forks

__version__ = "0.1.0"
