"""Seeds of a vector environment, in the forms that Gymnasium's own accept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
from gymnasium.utils.seeding import np_random

WANTED = "integers >= 0 or None"


def as_seed(seed: Any) -> Any:
    """Convert NumPy's integers to Python's, which Gymnasium requires; leave anything else."""
    return int(seed) if isinstance(seed, np.integer) else seed


def is_list(seed: Any) -> TypeGuard[Sequence[Any]]:
    """Whether `seed` is a list, one seed per sub-environment."""
    return isinstance(seed, (Sequence, np.ndarray)) and not isinstance(seed, (str, bytes))


def check_seeds(seeds: Sequence[Any], count: int) -> list[int | None]:
    """Check one seed per sub-environment.

    Raises:
        ValueError: not `count` seeds, or a seed that is neither None nor an integer >= 0.
    """
    checked = [as_seed(seed) for seed in seeds]
    if len(checked) != count:
        raise ValueError(
            f"seed has {len(checked)} entries; expected {count} {WANTED}, one per sub-environment"
        )
    for seed in checked:
        if seed is not None and not (isinstance(seed, int) and seed >= 0):
            raise ValueError(
                f"seed has an entry {seed!r}; expected {count} {WANTED}, one per sub-environment"
            )
    return checked


def generators(
    seeds: Sequence[int | None], before: Sequence[np.random.Generator] | None, shared: np.random.Generator
) -> list[np.random.Generator]:
    """Make a random generator for each sub-environment.

    Args:
        seeds: [B]; None keeps the previous generator of a sub-environment.
        before: previous generators [B], or None; `shared` then draws each seed that is None.
        shared: generator of all sub-environments together.
    """
    made = []
    for row, seed in enumerate(seeds):
        if seed is None and before is not None:
            made.append(before[row])
        else:
            made.append(np_random(int(shared.integers(2**63)) if seed is None else seed)[0])
    return made
