"""How far a float32-accumulated sum may lie from the float64 one, by the dtype of inputs and result."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Rounding of the stored result, relative to its size: half a unit in the last place, doubled for safety.
RESULT = {"float32": 1.2e-7, "bfloat16": 2.0**-8, "float16": 2.0**-11}

# Error of a float32 sum of n terms, relative to the sum of their absolute values. The worst case is n *
# 6e-8; lanes and pairwise order bring it to a few units whatever n is, and 1-bit sums cost a factor of
# about 3 for their identity.
SUM = 2e-6


def sum_error(
    result: NDArray[np.float64], exact: NDArray[np.float64], magnitude: NDArray[np.float64], dtype: str
) -> float:
    """Largest error in units of what is allowed: at most 1 passes."""
    smallest = 6e-8 if dtype == "float16" else 1e-30  # subnormal spacing of float16
    allowed = RESULT[dtype] * np.abs(exact) + SUM * magnitude + smallest
    assert np.isfinite(result).all()
    return float((np.abs(result - exact) / allowed).max(initial=0.0))
