import math

import numpy as np
import pytest
from scipy import stats

from petkit.errors import InputError
from petkit.report.statistics import (
    Interval,
    mean_interval,
    paired_bootstrap,
    student_t_cdf,
    student_t_quantile,
)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 101])
@pytest.mark.parametrize("value", [-3.0, -0.2, 0.0, 0.7, 2.5])
def test_student_t_cdf_agrees_with_scipy(degrees, value):
    assert student_t_cdf(value, degrees) == pytest.approx(stats.t.cdf(value, degrees), abs=1e-12)


@pytest.mark.parametrize("degrees", [1, 2, 4, 9, 60])
@pytest.mark.parametrize("probability", [0.005, 0.5, 0.9, 0.975])
def test_student_t_quantile_agrees_with_scipy(degrees, probability):
    expected = stats.t.ppf(probability, degrees)
    assert student_t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_mean_interval_agrees_with_scipy():
    values = [0.81, 0.84, 0.79, 0.83, 0.80]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    got = mean_interval(values)
    assert (got.estimate, got.low, got.high) == pytest.approx((np.mean(values), low, high))
    assert got.half_width == pytest.approx((high - low) / 2)


def test_one_seed_has_a_mean_and_no_interval():
    got = mean_interval([0.5])
    assert got.estimate == 0.5
    assert math.isnan(got.low)
    assert math.isnan(got.half_width)


def test_paired_bootstrap_covers_the_difference_and_repeats_with_its_seed():
    first, second = [1.0, 1.0, 0.0, 1.0] * 50, [1.0, 0.0, 0.0, 1.0] * 50
    got = paired_bootstrap(first, second, seed=3)
    assert got.estimate == 0.25
    assert 0.15 < got.low < 0.25 < got.high < 0.35
    assert got == paired_bootstrap(first, second, seed=3)


def test_paired_bootstrap_of_equal_scores_is_zero():
    assert paired_bootstrap([1.0, 0.0], [1.0, 0.0], seed=0) == Interval(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "at least one number"),
        (lambda: mean_interval([1.0, math.nan]), "must be finite"),
        (lambda: mean_interval([1.0, 2.0], confidence=1.0), "strictly between 0 and 1"),
        (lambda: student_t_cdf(0.0, 0), "degrees must be at least 1, got 0"),
        (lambda: paired_bootstrap([1.0], [], seed=0), "got 1 and 0"),
        (lambda: paired_bootstrap([1.0], [1.0], seed=0, resamples=0), "resamples must be >= 1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()
