import numpy as np
import pytest

from petkit.ops import lowbit_codebook
from tests.cuda_emulator.support import (
    BITS,
    CODEBOOKS,
    DTYPES,
    from_bits,
    in_all_orders,
    normal,
    pack,
    random_codes,
    to_bits,
)
from tests.reference import lowbit
from tests.reference.tolerance import sum_error

SHIFT, SCALE = np.float32(0.01), np.float32(0.3)
# (rows, out, in): empty, single, odd; one row (short and long), few rows, many rows; bytes of a row on and
# off the boundaries of vector loads; more than one tile each way.
SHAPES = [
    (0, 5, 9),
    (3, 0, 5),
    (3, 5, 0),
    (1, 1, 1),
    (1, 17, 63),
    (1, 5, 4096),
    (1, 3, 8193),
    (2, 16, 8),
    (5, 17, 65),
    (32, 3, 1040),
    (33, 17, 65),
    (40, 70, 64),
    (65, 3, 130),
]


def dense(codes, bits, kind="normal_l1"):
    levels = lowbit_codebook(bits, kind).double().numpy()
    return lowbit.dequantize(codes, float(SHIFT), float(SCALE), levels)


def check_forward(cuda, bits, shape, dtype, kind="normal_l1"):
    rows, out, columns = shape
    codes, x = random_codes(out, columns, bits=bits), normal(rows, columns, dtype=dtype)
    packed, levels = pack(codes, bits), lowbit_codebook(bits, kind).numpy()
    y = in_all_orders(lambda order: cuda.linear(to_bits(x), packed, SHIFT, SCALE, levels, dtype, bits, order))
    weight, inputs = dense(codes, bits, kind), x.double().numpy()
    assert y.shape == (rows, out)
    magnitude = np.abs(inputs) @ np.abs(weight).T
    assert sum_error(from_bits(y, dtype), inputs @ weight.T, magnitude, dtype) <= 1


def check_backward(cuda, bits, shape, dtype, kind="normal_l1"):
    rows, out, columns = shape
    codes, grad = random_codes(out, columns, bits=bits), normal(rows, out, dtype=dtype)
    packed, levels = pack(codes, bits), lowbit_codebook(bits, kind).numpy()
    grad_x = in_all_orders(
        lambda order: cuda.linear_backward(
            to_bits(grad), packed, SHIFT, SCALE, levels, dtype, bits, columns, order
        )
    )
    weight, upstream = dense(codes, bits, kind), grad.double().numpy()
    assert grad_x.shape == (rows, columns)
    magnitude = np.abs(upstream) @ np.abs(weight)
    assert sum_error(from_bits(grad_x, dtype), upstream @ weight, magnitude, dtype) <= 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("bits", "kind"), CODEBOOKS)
def test_forward(cuda, bits, kind, shape):
    check_forward(cuda, bits, shape, "float32", kind)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("shape", [(1, 17, 63), (1, 3, 4104), (5, 17, 65), (33, 17, 72), (130, 70, 65)])
@pytest.mark.parametrize("bits", BITS)
def test_forward_half_precision(cuda, bits, shape, dtype):
    check_forward(cuda, bits, shape, dtype)


@pytest.mark.parametrize(
    "shape", [(0, 5, 9), (3, 0, 5), (3, 5, 0), (1, 1, 1), (1, 63, 65), (33, 65, 64), (65, 40, 130)]
)
@pytest.mark.parametrize(("bits", "kind"), CODEBOOKS)
def test_backward(cuda, bits, kind, shape):
    check_backward(cuda, bits, shape, "float32", kind)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("shape", [(3, 0, 5), (1, 1, 1), (33, 17, 72), (130, 65, 70)])
@pytest.mark.parametrize("bits", BITS)
def test_backward_half_precision(cuda, bits, shape, dtype):
    check_backward(cuda, bits, shape, dtype)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_padding_bits_do_not_matter(cuda, rows):
    packed, x = pack(random_codes(18, 35, bits=1), 1), normal(rows, 35).numpy()
    dirty, levels = packed.copy(), lowbit_codebook(1).numpy()
    dirty[:, -1] |= 0b11111000
    results = [cuda.linear(x, each, SHIFT, SCALE, levels, "float32", 1, 0) for each in (packed, dirty)]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("rows", [3, 40])
def test_one_infinite_input_stays_in_its_row(cuda, rows):
    packed, x = pack(random_codes(18, 35, bits=2), 2), normal(rows, 35).numpy()
    x[1, 3] = np.inf
    y = cuda.linear(x, packed, SHIFT, SCALE, lowbit_codebook(2).numpy(), "float32", 2, 0)
    others = np.arange(rows) != 1
    assert np.isfinite(y[others]).all()
    assert not np.isfinite(y[1]).any()
