import math

import numpy as np
import pytest
from scipy import stats

from petkit.errors import InputError
from petkit.report.statistics import mean_interval


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "at least one number"),
        (lambda: mean_interval([1.0, math.nan]), "must be finite"),
        (lambda: mean_interval([1.0, 2.0], confidence=1.0), "strictly between 0 and 1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()
