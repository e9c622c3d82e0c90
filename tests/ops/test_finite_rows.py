import numpy as np
import pytest
import torch

from petkit.errors import InputError
from petkit.ops import finite_rows
from tests.ops.merge_cases import COUNTS, DTYPES, SIZES, default, name_of, normal
from tests.reference import merge
from tests.threads import threads


def check(models):
    got = finite_rows(models)
    assert got.dtype == torch.bool
    np.testing.assert_array_equal(got.numpy(), merge.finite_rows(models.double().numpy()))
    assert torch.equal(got, default("finite_rows", models))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("count", SIZES)
def test_matches_the_reference_and_the_default(kernels, count, dtype):
    for n in COUNTS:
        models = normal(n, count, dtype=dtype)
        check(models)
        for row, place, broken in (
            (0, 0, torch.nan),
            (n // 2, count // 2, torch.inf),
            (n - 1, -1, -torch.inf),
        ):
            if count:
                models[row, place] = broken
                check(models)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_the_largest_numbers_are_finite(kernels, dtype):
    for sign in (1, -1):
        models = torch.full((1, 777), sign * torch.finfo(dtype).max, dtype=dtype)
        assert finite_rows(models).tolist() == [True]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_one_number_anywhere_is_enough(kernels, broken):
    for place in range(70):
        models = torch.zeros(2, 70, dtype=torch.bfloat16)
        models[1, place] = broken
        assert finite_rows(models).tolist() == [True, False]


def test_rows_that_lie_apart_or_out_of_order(kernels):
    wide = normal(4, 1000)
    wide[1, 100], wide[2, 301] = torch.nan, torch.inf
    for models in (wide[:, :301], wide[:, 101:], wide[:, ::3], wide[::2], wide.T[:7]):
        check(models)


def test_threads_change_nothing(kernels):
    models = normal(3, 200_001, dtype=torch.float16)
    models[1, 150_000] = torch.nan
    for count in (1, 2):
        with threads(count):
            assert finite_rows(models).tolist() == [True, False, True]


def test_opcheck(kernels):
    torch.library.opcheck(torch.ops.petkit.finite_rows.default, (normal(3, 21),))


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([[1.0]], "models must be a tensor, got list"),
        (normal(3), r"models must be \(n, count\) with n >= 1, got \(3,\)"),
        (normal(0, 3), r"models must be \(n, count\) with n >= 1, got \(0, 3\)"),
        (torch.zeros(1, 3).long(), "models must be float32, bfloat16 or float16, got torch.int64"),
    ],
)
def test_refusals(models, message):
    with pytest.raises(InputError, match=message):
        finite_rows(models)
