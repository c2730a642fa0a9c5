"""95 % intervals of means, proportions and rank correlations, over seeds or images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit  # quantiles without scipy.stats, whose import takes a second


def mean_interval(values: Sequence[float] | NDArray[Any]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student's t); with one value the half width is nan.

    Raises:
        ValueError: no values.

    >>> mean, half = mean_interval([1.0, 2.0, 3.0])
    >>> print(f"{mean:.0f} ± {half:.2f}")
    2 ± 2.48
    """
    sample = np.asarray(values, dtype=float)
    n = len(sample)
    if n == 0:
        raise ValueError("no values; expected at least one to take the mean of")
    mean = float(sample.mean())
    if n < 2:
        return mean, math.nan
    return mean, float(stdtrit(n - 1, 0.975) * sample.std(ddof=1) / math.sqrt(n))


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212).

    Unlike the normal approximation it has a width when everything succeeds, and it stays within 0 … 1.

    Args:
        successes: number of successes, such as right answers; not a whole number if it is a mean over seeds.
        n: number of trials, such as images.

    Returns:
        The ends (low, high), as shares of n.

    Raises:
        ValueError: n below 1, or successes outside 0 … n.

    >>> low, high = wilson_interval(60, 60)
    >>> print(f"{low:.1%} – {high:.1%}")
    94.0% – 100.0%
    """
    if n < 1:
        raise ValueError(f"a proportion of {n} trials; expected at least 1")
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}; expected 0 … {n}")
    share, z = successes / n, float(ndtri(0.975))
    middle = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    low = 0.0 if successes == 0 else (middle - half) / scale  # exactly; the formula would round
    high = 1.0 if successes == n else (middle + half) / scale
    return low, high


def half_width(interval: Sequence[float]) -> float:
    """Half of the distance between the ends (low, high) of an interval."""
    low, high = interval
    return (high - low) / 2


def accuracy_difference(one: ArrayLike, other: ArrayLike) -> dict[str, float]:
    """Difference in accuracy between two policies on the same images, as `accuracy` and half width `ci95`.

    The 95 % interval is paired: both policies are right, or both wrong, on most images, so it is narrower
    than that of either accuracy.

    Args:
        one, other: whether each image is classified correctly, [M] bool, or the probability of it.
    """
    gain, half = mean_interval(np.asarray(one, dtype=float) - np.asarray(other, dtype=float))
    return {"accuracy": gain, "ci95": half}


def magnitudes(factors: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
    """The factors, with factors of both signs replaced by their absolute value under the name `|name|`.

    A rotation or a shear is difficult at both ends, which a rank correlation with the signed value misses.
    """
    found = {}
    for name, values in factors.items():
        column = np.asarray(values)
        signed = column.min(initial=0) < 0 < column.max(initial=0)
        found[f"|{name}|" if signed else name] = np.abs(column) if signed else column
    return found


def rank_correlations(
    factors: Mapping[str, ArrayLike], skipped: ArrayLike, seed: int = 0, resamples: int = 1000
) -> dict[str, tuple[float, float, float]]:
    """Spearman's rank correlation of each factor with the number of skipped blocks, and its interval.

    Args:
        factors: difficulty factors [M] by name, on the CPU; see `magnitudes` for signed ones.
        skipped: number of skipped blocks of each image [M].
        seed: random seed of the bootstrap over images; its resamples are the same for every factor.
        resamples: number of resamples; those in which a column is constant are left out.

    Returns:
        name → (rho, low, high) with the 95 % percentile interval; nan if the factor or the number of skipped
        blocks is constant.
    """
    columns = np.column_stack([np.asarray(skipped), *map(np.asarray, factors.values())]).astype(float)
    names, m = list(factors), len(columns)
    varied = (columns != columns[:1]).any(axis=0)
    kept = [0, *(1 + number for number in range(len(names)) if varied[1 + number])]
    found = dict.fromkeys(names, (math.nan, math.nan, math.nan))
    if not varied[0] or len(kept) == 1:
        return found
    columns = columns[:, kept]
    rho = _correlations_of_first(columns)
    draws = np.random.default_rng(seed)
    drawn = np.array([_correlations_of_first(columns[draws.integers(m, size=m)]) for _ in range(resamples)])
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    for number, column in enumerate(kept[1:]):
        found[names[column - 1]] = float(rho[number]), float(low[number]), float(high[number])
    return found


def _correlations_of_first(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank correlations of column 0 of [M, 1 + F] with the others, [F]; nan for a constant column."""
    from scipy.stats import rankdata

    ranks = rankdata(columns, axis=0)  # ties get the mean of their ranks
    ranks -= ranks.mean(axis=0)
    scale = np.sqrt((ranks**2).sum(axis=0))
    with np.errstate(invalid="ignore"):
        return ranks[:, 0] @ ranks[:, 1:] / (scale[0] * scale[1:])


def area_under_roc(scores: ArrayLike, positive: ArrayLike) -> tuple[float, float, float]:
    """The chance that a positive example has a higher score than a negative one, and its 95 % interval.

    Ties count half. 0.5 is chance, 1 a score that tells the two apart without error. The interval is that of
    DeLong, DeLong and Clarke-Pearson (1988, Biometrics 44, 837-845), cut off at 0 and 1.

    Args:
        scores: of M examples.
        positive: whether each is a positive one, [M] bool.

    Returns:
        (area, low, high).

    Raises:
        ValueError: fewer than two positive or two negative examples.

    >>> area, low, high = area_under_roc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    >>> print(f"{area:.2f}")
    0.75
    """
    from scipy.stats import rankdata

    values, chosen = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    m, n = int(chosen.sum()), int((~chosen).sum())
    if m < 2 or n < 2:
        raise ValueError(f"{m} positive and {n} negative examples; expected at least two of each")
    ranks = rankdata(values)  # ties take the mean of their ranks
    below = (ranks[chosen] - rankdata(values[chosen])) / n  # of each positive: negatives that it exceeds
    above = 1 - (ranks[~chosen] - rankdata(values[~chosen])) / m  # of each negative: positives above it
    area = float(below.mean())
    half = float(ndtri(0.975)) * math.sqrt(below.var(ddof=1) / m + above.var(ddof=1) / n)
    return area, max(0.0, area - half), min(1.0, area + half)
