"""SkipNet as a decision process: networks, dynamics, gates, rollouts, evaluation, data."""

from skipnet_rl import forking as forking  # before any network computes: what a fork leaves behind

__version__ = "0.1.0"
