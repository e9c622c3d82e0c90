import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError
from petkit.ops import magnitude_counts
from tests.ops.merge_cases import COUNTS, DTYPES, SIZES, default, family, name_of, normal
from tests.reference import merge
from tests.threads import threads


def check(base, models, prefix=None):
    got = magnitude_counts(base, models, None if prefix is None else torch.tensor(prefix))
    expected = merge.magnitude_counts(
        base.float().numpy(), models.float().numpy(), prefix or [-1] * len(models)
    )
    assert got.dtype == torch.int64
    np.testing.assert_array_equal(got.numpy(), expected)
    halves = torch.tensor(prefix or [-1] * len(models))
    assert torch.equal(got, default("magnitude_counts", base, models, halves))
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("count", SIZES)
def test_matches_the_reference_and_the_default(kernels, count, dtype):
    for n in COUNTS[::2]:
        base, models = family(n, count, dtype)
        upper = check(base, models)
        assert upper.sum(1).tolist() == [count] * n
        # The fullest halves, none of the highest, and some model by its upper half.
        fullest = upper.argmax(1).tolist()
        check(base, models, fullest)
        check(base, models, [*fullest[1:], -1])
        check(base, models, [0x7FFF] * n)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_what_is_not_finite_comes_last(kernels, dtype):
    base, models = torch.zeros(100, dtype=dtype), torch.zeros(1, 100, dtype=dtype)
    models[0, 3], models[0, 4], models[0, 99] = torch.nan, -torch.inf, torch.inf
    counts = check(base, models)[0]
    assert counts.nonzero()[:, 0].tolist() == [0, 0x7F80, 0x7FC0]
    assert counts[[0, 0x7F80, 0x7FC0]].tolist() == [97, 2, 1]
    check(base, models, [0x7F80])
    check(base, models, [0x7FC0])
    check(base, models, [0])


def test_subnormal_differences_keep_their_digits(kernels):
    base = torch.zeros(40)
    models = (torch.arange(40) * 2.0**-149)[None]
    assert check(base, models, [0])[0, :40].tolist() == [1] * 40


def kth_magnitude(base, models, ranks):
    """The ranks-th smallest magnitude of each model, from two histograms."""
    upper, rest = step(magnitude_counts(base, models), torch.tensor(ranks))
    lower, _ = step(magnitude_counts(base, models, upper), rest)
    return (upper << 16 | lower).to(torch.int32).view(torch.float32)


def step(counts, ranks):
    totals = counts.cumsum(1)
    halves = torch.searchsorted(totals, ranks[:, None], right=True)[:, 0]
    return halves, ranks - (totals - counts).gather(1, halves[:, None])[:, 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("rank", [0, 1, 777, 4999, 5000])
def test_two_passes_select_what_sorting_does(kernels, rank, dtype):
    base, models = family(4, 5001, dtype)
    ranks = [rank, 5000 - rank, rank // 2, 2500]
    sizes = np.sort(np.abs(models.float().numpy() - base.float().numpy()), axis=1)
    expected = [row[at] for row, at in zip(sizes, ranks, strict=True)]
    np.testing.assert_array_equal(kth_magnitude(base, models, ranks).numpy(), expected)


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50), st.data()
)
def test_any_numbers_are_selected_exactly(values, data):
    rank = data.draw(st.integers(0, len(values) - 1))
    models = torch.tensor([values])
    expected = np.sort(np.abs(np.array(values, np.float32)))[rank]
    assert kth_magnitude(torch.zeros(len(values)), models, [rank]).item() == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_rows_that_lie_apart_or_out_of_order(kernels, dtype):
    base, wide = family(3, 1000, dtype)
    check(base[33:700], wide[:, 33:700])
    check(base[::3], wide[:, ::3])
    check(base[5:6], wide[::2, 5:6])


@pytest.mark.parametrize("n", [1, 3])
def test_threads_change_nothing(kernels, n):
    # More blocks than one thread takes.
    base, models = family(n, (1 << 21) + 7, torch.bfloat16)
    for prefix in (None, torch.full((n,), 0x3E80)):
        with threads(2):
            two = magnitude_counts(base, models, prefix)
        with threads(1):
            assert torch.equal(magnitude_counts(base, models, prefix), two)


def test_opcheck(kernels):
    base, models = family(2, 21, torch.float16)
    for prefix in ([-1, -1], [0x3E80, 0]):
        arguments = (base, models, torch.tensor(prefix))
        torch.library.opcheck(torch.ops.petkit.magnitude_counts.default, arguments)


@pytest.mark.parametrize(
    ("base", "prefix", "message"),
    [
        (normal(4), None, r"base must be torch.float32 \(3,\) on cpu .* got torch.float32 \(4,\)"),
        (normal(3, 1), None, "base must be torch.float32"),
        (normal(3), [0, 0], "prefix must be a tensor, got list"),
        (normal(3), torch.zeros(2), r"prefix must be int64 \(2,\) on the CPU, got torch.float32 \(2,\)"),
        (normal(3), torch.tensor([0]), r"prefix must be int64 \(2,\) on the CPU, got torch.int64 \(1,\)"),
        (normal(3), torch.tensor([0, 1 << 15]), "prefix must lie between -1 and 32767, got 32768"),
        (normal(3), torch.tensor([-2, 0]), "prefix must lie between -1 and 32767, got -2"),
    ],
)
def test_refusals(base, prefix, message):
    with pytest.raises(InputError, match=message):
        magnitude_counts(base, normal(2, 3), prefix)


def test_the_operator_itself_refuses_what_would_count_out_of_bounds():
    if not torch._C._dispatch_has_kernel_for_dispatch_key("petkit::magnitude_counts", "CPU"):
        pytest.skip("the default has torch's own bounds checks")
    op = torch.ops.petkit.magnitude_counts
    with pytest.raises(RuntimeError, match="prefix must lie between -1 and 32767, got 40000"):
        op(normal(3), normal(1, 3), torch.tensor([40000]))
    with pytest.raises(RuntimeError, match="base must hold 3 numbers, got 5"):
        op(normal(5), normal(1, 3), torch.tensor([-1]))
