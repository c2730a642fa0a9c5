"""SkipNet as a decision process: networks, dynamics, gates, rollouts, evaluation, data."""

__version__ = "0.1.0"
