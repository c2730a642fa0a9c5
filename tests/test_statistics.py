"""Intervals against a table, rank correlations against hand and scipy."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from skipnet_rl.statistics import (
    area_under_roc,
    half_width,
    magnitudes,
    mean_interval,
    rank_correlations,
    wilson_interval,
)

ISNAN = pytest.approx((math.nan,) * 3, nan_ok=True)


def test_interval_by_the_t_table():
    # 4, 6, 8, 10, 12: mean 8, variance 40/4 = 10; t of four degrees of freedom is 2.776 in the tables
    assert mean_interval([4, 6, 8, 10, 12]) == pytest.approx((8.0, 2.776 * math.sqrt(10 / 5)), rel=1e-3)


def test_interval_over_many_is_the_normal_one():
    values = np.random.default_rng(0).normal(size=20_000)
    assert mean_interval(values)[1] == pytest.approx(1.96 * values.std() / math.sqrt(20_000), rel=1e-3)


def test_interval_of_one_value_and_of_none():
    assert mean_interval([0.25]) == pytest.approx((0.25, math.nan), nan_ok=True)
    assert mean_interval([3, 3]) == (3, 0)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_wilson_interval_by_hand():
    z2 = 1.959964**2  # all right: n / (n + z²) … 1; none: its mirror image; half: 1/2 ± z / 2 √(n + z²)
    assert wilson_interval(60, 60) == (pytest.approx(60 / (60 + z2)), 1.0)
    assert wilson_interval(60, 60)[0] == pytest.approx(0.9398, abs=5e-5)
    assert wilson_interval(0, 10) == (0.0, pytest.approx(z2 / (10 + z2)))
    low, high = wilson_interval(1, 2)
    assert (low + high, half_width((low, high))) == pytest.approx((1, math.sqrt(z2 / (2 + z2)) / 2))


@pytest.mark.parametrize("n", [1, 3, 400, 10_000])
def test_wilson_interval_is_scipys(n):
    for successes in {0, 1, n // 3, n - 1, n}:
        expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
        low, high = wilson_interval(successes, n)
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert low <= successes / n <= high


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 4), (5, 4), (math.nan, 4)])
def test_no_proportion(successes, n):
    with pytest.raises(ValueError, match="expected"):
        wilson_interval(successes, n)


def test_rank_correlation_by_hand():
    # ranks 1 2 3 4 5 against 2 1 4 3 5: squared differences 1 1 1 1 0, so rho = 1 - 6·4 / (5·24) = 0.8
    found = rank_correlations({"scale": [13.0, 15.0, 20.0, 21.0, 27.0]}, [2, 1, 4, 3, 5])
    assert found["scale"][0] == pytest.approx(0.8)
    # ties share their ranks: 1.5 1.5 3.5 3.5 against 1 2 3 4, covariance 4, sums of squares 4 and 5
    assert rank_correlations({"a": [1, 2, 3, 4]}, [0, 0, 7, 7])["a"][0] == pytest.approx(4 / math.sqrt(20))


def test_rank_correlations_of_many_images():
    draws = np.random.default_rng(1)
    skipped = draws.integers(0, 9, 600)
    factors = {
        "related": torch.from_numpy(skipped + draws.normal(size=600) * 4).float(),
        "unrelated": torch.from_numpy(draws.normal(size=600)),
        "opposed": -skipped,
    }
    found = rank_correlations(factors, skipped, seed=3, resamples=300)
    assert list(found) == list(factors)
    for name, (rho, low, high) in found.items():
        assert rho == pytest.approx(stats.spearmanr(factors[name], skipped).statistic)
        assert low <= rho <= high
    rho, low, high = found["related"]
    assert low > 0 and 0.05 < high - low < 0.3  # 4 · 0.85 / √600 = 0.14 for rho near 0.4
    assert found["unrelated"][1] < 0 < found["unrelated"][2]
    assert found["opposed"] == pytest.approx((-1, -1, -1))
    assert found == rank_correlations(factors, skipped, seed=3, resamples=300)
    assert found["related"][1] != rank_correlations(factors, skipped, seed=4, resamples=300)["related"][1]


def test_interval_is_about_as_wide_as_the_theory_says():
    # for independent columns the deviation of rho is 1 / √(M - 1), Kendall & Gibbons
    draws = np.random.default_rng(2)
    found = rank_correlations({"a": draws.normal(size=900)}, draws.normal(size=900), seed=0)
    assert found["a"][2] - found["a"][1] == pytest.approx(2 * 1.96 / math.sqrt(899), rel=0.15)


def test_constant_columns_have_no_rank_correlation():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rank_correlations({"a": [1.0, 2.0, 3.0]}, [4, 4, 4]) == {"a": ISNAN}
        found = rank_correlations({"a": [1.0, 1.0, 1.0], "b": [1.0, 2.0, 3.0]}, [1, 2, 3])
        assert found["a"] == ISNAN and found["b"][0] == pytest.approx(1)
        # nearly constant: a third of the resamples miss the odd image and have no correlation
        rho, low, high = rank_correlations({"a": range(10)}, [0] * 9 + [1])["a"]
    assert rho == pytest.approx(stats.spearmanr(range(10), [0] * 9 + [1]).statistic)
    assert 0 < low <= high <= 1


def test_magnitudes():
    found = magnitudes({"rotation": torch.tensor([-20.0, 5.0]), "blur": [0.0, 2.0], "down": [-3.0, -1.0]})
    assert list(found) == ["|rotation|", "blur", "down"]
    assert found["|rotation|"].tolist() == [20, 5]
    assert found["blur"].tolist() == [0, 2] and found["down"].tolist() == [-3, -1]


def test_area_under_the_roc_curve_by_hand():
    """Positives 3, 2, 1 and negatives 2, 0: of the six pairs four are in order, and one ties."""
    area, low, high = area_under_roc([3, 2, 1, 2, 0], [True, True, True, False, False])
    assert area == pytest.approx(4.5 / 6)
    # shares of negatives below: 1, 3/4, 1/2, variance 1/16; of positives above: 1/2, 1, variance 1/8
    half = 1.959964 * math.sqrt(1 / 16 / 3 + 1 / 8 / 2)
    assert (low, high) == pytest.approx((area - half, 1.0))


def test_area_of_what_tells_all_of_nothing_and_backwards():
    positive = np.arange(10) < 4
    assert area_under_roc(positive, positive) == (1, 1, 1)
    assert area_under_roc(~positive, positive) == (0, 0, 0)
    assert area_under_roc(np.zeros(10), positive) == (0.5, 0.5, 0.5)


def test_interval_of_the_area_covers_it():
    """Two normals one deviation apart: the area is Φ(1/√2) = 0.7602."""
    draws, positive = np.random.default_rng(0), np.arange(200) < 40
    covered = 0
    for _ in range(400):
        _, low, high = area_under_roc(draws.normal(size=200) + positive, positive)
        covered += low < 0.7602 < high
    assert 0.92 < covered / 400 < 0.98


def test_area_needs_two_of_each_kind():
    with pytest.raises(ValueError, match="1 positive and 2 negative examples; expected at least two of each"):
        area_under_roc([1, 2, 3], [True, False, False])
