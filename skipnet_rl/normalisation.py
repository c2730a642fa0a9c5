"""The mean and deviation that images are normalised with, and those that some weights were trained with.

A network answers worse on images that are normalised otherwise than those it was trained on, and nothing else
would show why.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skipnet_rl.data.images import IMAGENET_STATISTICS, Images, Statistics
from skipnet_rl.stored import known_header

CLOSE = 2e-3  # published statistics are rounded to three digits


def check_statistics(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Raise a ValueError for a mean or std that cannot be one of pixel values in 0 … 1; None is allowed."""
    for name, given, least in (("mean", mean, 0.0), ("std", std, math.ulp(0.0))):
        if given is None:
            continue
        values = _numbers(given)
        if len(values) != 3:
            raise ValueError(f"{name} is {given!r}; expected three numbers, for red, green and blue")
        if not all(least <= value <= 1 for value in values):
            above = ", above 0" if least else ""
            raise ValueError(
                f"{name} is {given!r}; expected pixel values from 0 to 1{above}: divide those of 0 to 255 "
                "by 255"
            )


def normalised(
    images: Images,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: Sequence[str | Path | None] = (),
) -> Images:
    """The same images with the given mean and std, if any.

    Args:
        images: as the data set has them.
        mean, std: per channel, of pixel values in 0 … 1; None: the data set's own.
        weights: names and paths of the networks that will see the images; warns about each that was trained
            with other statistics.

    Raises:
        ValueError: see `check_statistics`.
    """
    check_statistics(mean, std)
    usual = images.statistics
    used = Statistics(
        usual.mean if mean is None else _numbers(mean), usual.std if std is None else _numbers(std)
    )
    for name in dict.fromkeys(weights):
        warn_of_others(name, trained_with(name), used)
    return images.with_statistics(*used)


def warn_of_others(weights: str | Path | None, theirs: Statistics | None, used: Statistics) -> None:
    """Warn if weights were trained with other statistics than those used."""
    if theirs and not _close(theirs, used):
        warnings.warn(
            f"{weights} was trained on images normalised with {_words(theirs)}, and sees them with "
            f"{_words(used)}; give its own as mean and std",
            stacklevel=3,
        )


def trained_with(weights: str | Path | None) -> Statistics | None:
    """The mean and std that a network was trained with; None if unknown."""
    return IMAGENET_STATISTICS if weights == "torchvision" else stated(known_header(weights))


def stated(about: Mapping[str, Any]) -> Statistics | None:
    """The mean and std in the header of a file or in a run's arguments; None if it has none."""
    found = Statistics(_numbers(about.get("mean")), _numbers(about.get("std")))
    return found if len(found.mean) == len(found.std) == 3 else None


def _numbers(given: Any) -> tuple[Any, ...]:
    """The numbers of a sequence; () for anything else."""
    try:
        return tuple(float(value) for value in given)
    except (TypeError, ValueError):
        return ()


def _close(one: Statistics, other: Statistics) -> bool:
    pairs = zip(one[0] + one[1], other[0] + other[1], strict=True)
    return all(abs(left - right) <= CLOSE for left, right in pairs)


def _words(statistics: Statistics) -> str:
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in statistics)
    return f"mean {mean} and std {std}"
