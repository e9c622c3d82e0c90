import numpy as np
import pytest
import torch

from tests.cuda_emulator.support import DTYPES, from_bits, in_all_orders, normal, to_bits
from tests.reference import divergence as reference

BETAS = (0, 0.1, 0.5, 0.9, 1)
FIELDS = ("loss", "forward_kl", "reverse_kl")
ROUNDING = {"float32": 1e-5, "bfloat16": 2.0**-8, "float16": 2.0**-11}
INFINITE = torch.inf


def sides(*shape, dtypes=("float32", "float32"), scale=3.0):
    return tuple(
        (normal(*shape, seed=seed) * scale).to(getattr(torch, name)) for seed, name in enumerate(dtypes)
    )


def types(student, teacher):
    return str(student.dtype)[6:], str(teacher.dtype)[6:]


def run(cuda, student, teacher, beta, temperature=1.0, mask=None):
    given = to_bits(student), to_bits(teacher)
    return in_all_orders(
        lambda order: cuda.divergence(*given, mask, beta, temperature, *types(student, teacher), order)
    )


def gradient_of(cuda, student, teacher, upstream, beta, temperature=1.0, mask=None):
    """The gradient, which must be the same bits where it takes the logits' place."""
    statistics = run(cuda, student, teacher, beta, temperature, mask)[3]
    given = to_bits(student), to_bits(teacher), mask, statistics, upstream.astype(np.float32)

    def call(order, overwrite):
        return cuda.divergence_backward(*given, beta, temperature, *types(student, teacher), overwrite, order)

    gradient = in_all_orders(lambda order: call(order, False))
    np.testing.assert_array_equal(call(1, True), gradient)
    return from_bits(gradient, types(student, teacher)[0])


def exact(*tensors):
    return tuple(tensor.double().numpy() for tensor in tensors)


def check(cuda, student, teacher, beta, temperature=1.0):
    found = run(cuda, student, teacher, beta, temperature)
    expected = reference.divergence(*exact(student, teacher), beta, temperature)
    for got, name in zip(found, FIELDS, strict=False):
        np.testing.assert_allclose(got, expected[name], rtol=2e-6, atol=1e-5, err_msg=name)
    upstream = normal(len(student), seed=7).double().numpy()
    gradient = gradient_of(cuda, student, teacher, upstream, beta, temperature)
    wanted = reference.gradient(*exact(student, teacher), upstream, beta, temperature)
    np.testing.assert_allclose(gradient, wanted, rtol=ROUNDING[types(student, teacher)[0]], atol=2e-5)


# One tile is 2,048 pairs.
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("shape", [(2, 1), (3, 65), (2, 2050)])
def test_matches_the_reference(cuda_rows, shape, beta):
    check(cuda_rows, *sides(*shape), beta, 0.8)


@pytest.mark.parametrize("of_teacher", DTYPES)
@pytest.mark.parametrize("of_student", DTYPES)
def test_each_side_has_a_dtype_of_its_own(cuda_rows, of_student, of_teacher):
    # Rows of 72 are aligned, so that groups are read at once.
    for beta in (0, 0.3, 1):
        check(cuda_rows, *sides(3, 72, dtypes=(of_student, of_teacher)), beta)


@pytest.mark.parametrize("beta", BETAS)
def test_impossible_tokens_and_large_logits(cuda_rows, beta):
    student, teacher = sides(5, 300)
    student, teacher = student + 1e4, teacher - 1e4
    student[0, 5:50] = teacher[0, 5:50] = -INFINITE
    student[1, 7:90] = -INFINITE
    teacher[2, 7:90] = -INFINITE
    student[3, 1:] = teacher[3, 1:] = -INFINITE
    found = run(cuda_rows, student, teacher, beta)
    expected = reference.divergence(*exact(student, teacher), beta)
    for got, name in zip(found, FIELDS, strict=False):
        np.testing.assert_allclose(got, expected[name], rtol=2e-6, atol=1e-5, err_msg=name)
    gradient = gradient_of(cuda_rows, student, teacher, np.ones(5), beta)
    wanted = reference.gradient(*exact(student, teacher), np.ones(5), beta)
    finite = np.isfinite(expected["loss"]) | (beta == 0)
    np.testing.assert_allclose(gradient[finite], wanted[finite], rtol=1e-5, atol=5e-6)
    assert not gradient[(student == -INFINITE) & (teacher == -INFINITE)].any()


@pytest.mark.parametrize("beta", [0, 0.5, 1])
@pytest.mark.parametrize("bad", [torch.nan, INFINITE, -INFINITE])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_a_number_spoils_its_row_and_no_other(cuda_rows, side, bad, beta):
    pair = sides(2, 300)
    clean = run(cuda_rows, *pair, beta)
    pair[side][1, slice(None) if bad < 0 else 280] = bad
    for got, expected in zip(run(cuda_rows, *pair, beta)[:3], clean[:3], strict=True):
        assert np.isnan(got[1])
        assert got[0] == expected[0]
    gradient = gradient_of(cuda_rows, *pair, np.ones(2), beta)
    assert np.isnan(gradient[1]).all()
    assert np.isfinite(gradient[0]).all()


def test_masked_rows_are_not_read(cuda_rows):
    student, teacher = sides(4, 70)
    mask = np.array([True, False, True, False])
    upstream = np.array([1.0, np.nan, -2.0, np.nan])
    kept = run(cuda_rows, student[mask], teacher[mask], 0.5)
    expected = gradient_of(cuda_rows, student[mask], teacher[mask], upstream[mask], 0.5)
    student[~mask], teacher[~mask] = torch.nan, INFINITE
    for got, values in zip(run(cuda_rows, student, teacher, 0.5, mask=mask), kept, strict=True):
        np.testing.assert_array_equal(got[mask], values)
        assert not got[~mask].any()
    gradient = gradient_of(cuda_rows, student, teacher, upstream, 0.5, mask=mask)
    np.testing.assert_array_equal(gradient[mask], expected)
    assert not gradient[~mask].any()
