import numpy as np
import pytest
import torch

from petkit.ops import lowbit_codebook
from tests.cuda_emulator.support import BITS, CODEBOOKS, DTYPES, from_bits, in_all_orders, pack, random_codes
from tests.reference import lowbit

SHAPES = [(0, 7), (5, 0), (1, 1), (1, 63), (3, 65), (9, 64), (33, 96), (2, 65537)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("bits", "kind"), CODEBOOKS)
def test_matches_the_reference(cuda, bits, kind, shape, dtype):
    codes, levels = random_codes(*shape, bits=bits), lowbit_codebook(bits, kind).numpy()
    shift, scale = np.float32(0.013), np.float32(0.31)
    weight = in_all_orders(
        lambda order: cuda.dequantize(pack(codes, bits), shift, scale, levels, dtype, bits, shape[1], order)
    )
    # Two float32 roundings and one of the element type, in this order.
    values = torch.from_numpy(shift + scale * levels).to(getattr(torch, dtype)).double().numpy()
    np.testing.assert_array_equal(from_bits(weight, dtype), values[codes])
    exact = lowbit.dequantize(codes, float(shift), float(scale), levels.astype(np.float64))
    tolerance = {"float32": 2e-7, "bfloat16": 2.0**-8, "float16": 2.0**-10}[dtype]
    np.testing.assert_allclose(from_bits(weight, dtype), exact, rtol=tolerance, atol=1e-8)


@pytest.mark.parametrize(
    "shape", [(0, 3, 5), (1, 1, 1), (2, 63, 65), (3, 8, 64), (2, 40, 17), (2, 5, 0), (2, 0, 5)]
)
@pytest.mark.parametrize("bits", BITS)
def test_transpose(cuda, bits, shape):
    codes = random_codes(*shape, bits=bits)
    transposed = in_all_orders(lambda order: cuda.transpose(pack(codes, bits), bits, shape[2], order))
    np.testing.assert_array_equal(transposed, pack(codes.transpose(0, 2, 1), bits))
