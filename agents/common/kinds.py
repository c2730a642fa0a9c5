"""Kinds of values in a run's JSON files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Fits = Callable[[Any], bool]  # whether a value is of the kind that a run writes


def is_text(value: Any) -> bool:
    """Whether a value of a JSON file is text."""
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    """Whether it is a number."""
    return isinstance(value, (int, float))


def is_count(value: Any) -> bool:
    """Whether it is a whole number above zero."""
    return isinstance(value, int) and value > 0


def are_numbers(value: Any) -> bool:
    """Whether it is a list of numbers."""
    return isinstance(value, list) and all(map(is_number, value))
