import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError
from petkit.ops import magnitudes_within
from tests.ops.merge_cases import COUNTS, DTYPES, SIZES, default, family, name_of, normal
from tests.reference import merge
from tests.threads import threads


def check(base, models, low, high):
    got = magnitudes_within(base, models, vector(low), vector(high))
    counts, values = merge.magnitudes_within(
        base.float().numpy(), models.float().numpy(), np.float32(low), np.float32(high)
    )
    assert (got.counts.dtype, got.values.dtype) == (torch.int64, torch.float32)
    np.testing.assert_array_equal(got.counts.numpy(), counts)
    np.testing.assert_array_equal(got.values.numpy(), values)
    for own, other in zip(
        got, default("magnitudes_within", base, models, vector(low), vector(high)), strict=True
    ):
        assert torch.equal(own, other)
    return got


def vector(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("count", SIZES)
def test_matches_the_reference_and_the_default(kernels, count, dtype):
    for n in COUNTS[::2]:
        base, models = family(n, count, dtype)
        # Ends that are magnitudes of the models, so that some are equal to them.
        sizes = (models.float() - base.float()).abs().sort(1).values
        low, high = (sizes[:, count * part // 8].tolist() if count else [0.5] * n for part in (4, 6))
        check(base, models, low, high)
        check(base, models, low, low)
        check(base, models, [0.0] * n, low)
        check(base, models, [0.0] * n, [0.0] * n)
        check(base, models, low, [math.inf] * n)
        everything = check(base, models, [0.0] * n, [math.inf] * n)
        assert everything.counts.sum(1).tolist() == [count] * n


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_infinity_is_a_number_and_nan_is_none(kernels, dtype):
    base, models = torch.zeros(100, dtype=dtype), torch.zeros(1, 100, dtype=dtype)
    models[0, 3], models[0, 4], models[0, 98], models[0, 99] = torch.nan, -torch.inf, torch.inf, -2
    assert check(base, models, [0.0], [math.inf]).counts.tolist() == [[0, 96, 1, 2]]
    assert check(base, models, [0.0], [2.0]).counts.tolist() == [[0, 96, 0, 1]]
    assert check(base, models, [2.0], [2.0]).counts.tolist() == [[96, 1, 0, 0]]
    assert check(base, models, [math.inf], [math.inf]).counts.tolist() == [[97, 2, 0, 0]]
    assert check(base, models, [1.0], [3.0]).values.tolist() == [2]


def test_subnormal_differences_keep_their_digits(kernels):
    models = (torch.arange(40) * 2.0**-149)[None]
    tiny = 2.0**-149
    assert check(torch.zeros(40), models, [3 * tiny], [7 * tiny]).counts.tolist() == [[3, 1, 3, 1]]


def test_values_are_in_the_order_of_places(kernels):
    models = torch.arange(70001.0).repeat(2, 1)
    found = check(torch.zeros(70001), models, [9.0, 40000.0], [60000.0, 70001.0])
    assert torch.equal(found.values, torch.cat([torch.arange(10.0, 60000), torch.arange(40001.0, 70001)]))


@given(
    st.lists(st.floats(width=32, allow_infinity=False, allow_nan=False), min_size=1, max_size=50), st.data()
)
def test_any_numbers_have_one_place(values, data):
    ends = sorted(abs(data.draw(st.sampled_from(values))) for _ in range(2))
    found = check(torch.zeros(len(values)), torch.tensor([values]), ends[:1], ends[1:])
    rest = sum(abs(one) > ends[1] for one in values)
    assert found.counts.sum().item() + rest == len(values)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_rows_that_lie_apart_or_out_of_order(kernels, dtype):
    base, wide = family(3, 1000, dtype)
    check(base[33:700], wide[:, 33:700], [0.1] * 3, [0.3] * 3)
    check(base[::3], wide[:, ::3], [0.1] * 3, [0.3] * 3)
    check(base[5:6], wide[::2, 5:6], [0.0] * 2, [1.0] * 2)


@pytest.mark.parametrize("n", [1, 3])
def test_threads_change_nothing(kernels, n):
    base, models = family(n, (1 << 20) + 7, torch.bfloat16)
    ends = vector([0.2] * n), vector([0.21] * n)
    with threads(2):
        two = magnitudes_within(base, models, *ends)
    with threads(1):
        one = magnitudes_within(base, models, *ends)
    assert torch.equal(one.counts, two.counts)
    assert torch.equal(one.values, two.values)


def test_opcheck(kernels):
    base, models = family(2, 21, torch.float16)
    arguments = (base, models, vector([0.0, 0.1]), vector([0.3, 0.1]))
    torch.library.opcheck(torch.ops.petkit.magnitudes_within.default, arguments)


@pytest.mark.parametrize(
    ("base", "low", "high", "message"),
    [
        (normal(4), [0, 0], [1, 1], r"base must be torch.float32 \(3,\) on cpu .* got torch.float32 \(4,\)"),
        (normal(3), [0], [1, 1], r"low must be float64 \(2,\) on the CPU, got torch.float64 \(1,\)"),
        (normal(3), [0, 0], [1], r"high must be float64 \(2,\) on the CPU, got torch.float64 \(1,\)"),
        (normal(3), [0, 2], [1, 1], "low and high must be 0 <= low <= high, got 2.0 and 1.0"),
        (normal(3), [-1, 0], [1, 1], "low and high must be 0 <= low <= high, got -1.0 and 1.0"),
        (normal(3), [0, math.nan], [1, 1], "low and high must be 0 <= low <= high, got nan and 1.0"),
    ],
)
def test_refusals(base, low, high, message):
    with pytest.raises(InputError, match=message):
        magnitudes_within(base, normal(2, 3), vector(low), vector(high))


def test_the_operator_itself_refuses_other_shapes():
    op = torch.ops.petkit.magnitudes_within
    if not torch._C._dispatch_has_kernel_for_dispatch_key("petkit::magnitudes_within", "CPU"):
        pytest.skip("the default has torch's own checks")
    with pytest.raises(RuntimeError, match="base must hold 3 numbers, got 5"):
        op(normal(5), normal(1, 3), vector([0]), vector([1]))
    with pytest.raises(RuntimeError, match="high must hold 1 numbers, got 2"):
        op(normal(3), normal(1, 3), vector([0]), vector([1, 1]))
