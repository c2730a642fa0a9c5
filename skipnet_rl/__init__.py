"""SkipNet as a decision process: networks, dynamics, gates, rollouts, evaluation, data."""

from typing import TYPE_CHECKING, Any

from skipnet_rl import forking as forking  # first: it registers a hook for forks

if TYPE_CHECKING:
    from skipnet_rl.adaptation import adapt as adapt

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`adapt`, imported at its first use: importing the package does not import PyTorch."""
    if name == "adapt":
        from skipnet_rl.adaptation import adapt

        return adapt
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
