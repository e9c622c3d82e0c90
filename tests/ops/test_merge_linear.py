import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError
from petkit.ops import merge_linear
from tests.ops.merge_cases import (
    COUNTS,
    DTYPES,
    SIZES,
    assert_same,
    default,
    name_of,
    normal,
    weights_of,
)
from tests.reference import merge
from tests.reference.tolerance import sum_error
from tests.threads import threads


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("count", SIZES)
def test_matches_the_reference_and_the_default(kernels, count, dtype):
    for n in COUNTS:
        result = DTYPES[n % 3]
        models, weights = normal(n, count, dtype=dtype), weights_of(n)
        got = merge_linear(models, weights, result)
        assert_same(got, default("merge_linear", models, weights, result))
        wide, rounded = models.double().numpy(), weights.float().double().numpy()
        expected, magnitude = merge.linear(wide, rounded), merge.linear(np.abs(wide), np.abs(rounded))
        assert got.dtype == result
        assert sum_error(got.double().numpy(), expected, magnitude, name_of(result)) <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_one_model_of_weight_1_is_the_model(kernels, dtype):
    # Every pattern of a half, infinities and subnormal numbers among them.
    halves = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    models = normal(1 << 16) * torch.randint(2, (1 << 16,)) if dtype == torch.float32 else halves.view(dtype)
    assert_same(merge_linear(models[None], float64(1)), models)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows(kernels, broken, dtype):
    models = normal(3, 300, dtype=dtype)
    models[1, 17::40] = broken
    models[2, 299] = broken
    got = merge_linear(models, float64(0.5, 0.25, 0))
    # 0 times infinity is nan.
    assert got.isfinite().logical_not().nonzero()[:, 0].tolist() == [*range(17, 300, 40), 299]
    assert got[299].isnan()


def test_the_result_takes_the_dtype_of_the_models(kernels):
    assert merge_linear(normal(2, 3, dtype=torch.bfloat16), float64(1, 1)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_rows_that_lie_apart_or_out_of_order(kernels, dtype):
    wide = normal(3, 1000, dtype=dtype)
    for models in (wide[:, 33:700], wide[::2, 1:2], wide[:, ::3], wide[:, :90].T[:5], wide[:1].expand(4, -1)):
        weights = weights_of(len(models))
        assert_same(merge_linear(models, weights), merge_linear(models.clone(), weights))


def test_threads_change_nothing(kernels):
    models, weights = normal(3, 300_001, dtype=torch.bfloat16), weights_of(3)
    with threads(2):
        two = merge_linear(models, weights)
    with threads(1):
        assert_same(merge_linear(models, weights), two)


@pytest.mark.parametrize("result", DTYPES, ids=name_of)
def test_opcheck(kernels, result):
    arguments = (normal(3, 21, dtype=torch.bfloat16), weights_of(3), result)
    torch.library.opcheck(torch.ops.petkit.merge_linear.default, arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0]], float64(1)), "models must be a tensor, got list"),
        ((normal(3), float64(1)), r"models must be \(n, count\) with n >= 1, got \(3,\)"),
        ((normal(0, 3), float64()), r"models must be \(n, count\) with n >= 1, got \(0, 3\)"),
        (
            (normal(1, 3).double(), float64(1)),
            "models must be float32, bfloat16 or float16, got torch.float64",
        ),
        ((normal(1, 3), [1.0]), "weights must be a tensor, got list"),
        (
            (normal(1, 3), torch.ones(1)),
            r"weights must be float64 \(1,\) on the CPU, got torch.float32 \(1,\)",
        ),
        (
            (normal(1, 3), float64(1, 2)),
            r"weights must be float64 \(1,\) on the CPU, got torch.float64 \(2,\)",
        ),
        (
            (normal(1, 3), float64(1), torch.int8),
            "dtype must be float32, bfloat16 or float16, got torch.int8",
        ),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InputError, match=message):
        merge_linear(*arguments)


def test_the_operator_itself_refuses_what_would_read_out_of_bounds():
    if not torch._C._dispatch_has_kernel_for_dispatch_key("petkit::merge_linear", "CPU"):
        pytest.skip("the default has torch's own bounds checks")
    op = torch.ops.petkit.merge_linear
    with pytest.raises(RuntimeError, match="weights must hold 2 numbers, got 1"):
        op(normal(2, 3), float64(1), torch.float32)
    with pytest.raises(RuntimeError, match="weights must be Double, got Float"):
        op(normal(1, 3), torch.ones(1), torch.float32)
    with pytest.raises(RuntimeError, match="models must hold at least one row"):
        op(normal(0, 3), float64(), torch.float32)


@given(st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=9))
def test_equal_models_of_weights_that_sum_to_1_are_their_model(rows):
    model = torch.tensor(rows[0])
    models = model.expand(len(rows), 3)
    weights = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    # A product and a sum of each row are rounded.
    assert torch.allclose(merge_linear(models, weights), model, rtol=2e-6, atol=0)
