"""Three digits, and no exponent where people write none."""

import math

import pytest

from petkit.report.rounding import significant


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (842.53, 3, "843"),
        (53.38, 3, "53.4"),
        (4271.9, 3, "4,270"),
        (1234567.0, 3, "1,230,000"),
        (999.9, 3, "1,000"),
        (0.5, 3, "0.5"),
        (0.0, 3, "0"),
        (1.6734e-6, 3, "1.67e-06"),
        (-1234.5, 2, "-1,200"),
        (math.inf, 3, "inf"),
        (math.nan, 3, "nan"),
    ],
)
def test_significant(value, digits, text):
    assert significant(value, digits) == text
