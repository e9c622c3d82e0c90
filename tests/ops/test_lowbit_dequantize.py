import numpy as np
import pytest
import torch

from petkit.errors import InputError
from petkit.ops import lowbit_codebook, lowbit_dequantize
from petkit.ops.lowbit_dequantize import transpose_packed
from tests.reference import lowbit

BITS = (1, 2, 4, 8)
SHAPES = [(0, 5), (5, 0), (1, 1), (1, 63), (63, 1), (3, 65), (17, 130), (2, 65537)]


def random_codes(*shape, bits, seed=0):
    return np.random.default_rng(seed).integers(0, 2**bits, shape)


def scalar(value):
    return torch.tensor(value, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["normal_l1", "petl_vit"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_matches_the_reference(kernels, bits, shape, kind):
    codes = random_codes(*shape, bits=bits)
    packed = (
        torch.from_numpy(lowbit.pack_rows(codes, bits)) if codes.size < 10**4 else pack_quickly(codes, bits)
    )
    dense = lowbit_dequantize(packed, scalar(0.25), scalar(0.5), bits, shape[1], kind)
    # A shift and scale that are powers of two leave one rounding, that of the sum.
    expected = lowbit.dequantize(codes, 0.25, 0.5, lowbit_codebook(bits, kind).double().numpy())
    np.testing.assert_array_equal(dense.numpy(), expected.astype(np.float32))


def pack_quickly(codes, bits):
    as_bits = (codes[..., None] >> np.arange(bits)) & 1
    flat = as_bits.reshape(codes.shape[0], -1).astype(np.uint8)
    return torch.from_numpy(np.packbits(flat, axis=-1, bitorder="little"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", BITS)
def test_half_precision_is_one_rounding_of_float32(kernels, bits, dtype):
    packed = torch.from_numpy(lowbit.pack_rows(random_codes(9, 77, bits=bits), bits))
    arguments = (packed, scalar(0.1), scalar(0.37), bits, 77)
    expected = lowbit_dequantize(*arguments).to(dtype)
    assert torch.equal(lowbit_dequantize(*arguments, dtype=dtype), expected)


def test_packed_codes_that_do_not_lie_in_order(kernels):
    packed = torch.from_numpy(lowbit.pack_rows(random_codes(10, 64, bits=1), 1))
    got = lowbit_dequantize(packed[::3], scalar(0.0), scalar(1.0), 1, 64)
    assert torch.equal(got, lowbit_dequantize(packed[::3].contiguous(), scalar(0.0), scalar(1.0), 1, 64))


@pytest.mark.parametrize("bits", BITS)
def test_opcheck(kernels, bits):
    packed = torch.from_numpy(lowbit.pack_rows(random_codes(4, 19, bits=bits), bits))
    arguments = (packed, scalar(0.1), scalar(0.4), lowbit_codebook(bits), bits, 19, torch.bfloat16)
    torch.library.opcheck(torch.ops.petkit.lowbit_dequantize.default, arguments)


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (3, 65), (65, 3), (17, 130), (768, 8), (0, 4), (4, 0)])
@pytest.mark.parametrize("bits", BITS)
def test_transposition(kernels, bits, shape):
    codes = random_codes(2, *shape, bits=bits)
    packed = torch.from_numpy(np.stack([lowbit.pack_rows(matrix, bits) for matrix in codes]))
    expected = np.stack([lowbit.pack_rows(matrix.T, bits) for matrix in codes])
    np.testing.assert_array_equal(transpose_packed(packed, bits, shape[1]).numpy(), expected)


def test_transposition_opcheck(kernels):
    packed = torch.from_numpy(lowbit.pack_rows(random_codes(12, 19, bits=2), 2))[None]
    torch.library.opcheck(torch.ops.petkit.lowbit_transpose.default, (packed, 2, 19))


def test_refusals():
    packed = torch.zeros((3, 2), dtype=torch.uint8)
    with pytest.raises(
        InputError, match=r"packed must be uint8 \(out, 3\) for 17 codes of 1 bits a row, got .* \(3, 2\)"
    ):
        lowbit_dequantize(packed, scalar(0.0), scalar(1.0), 1, 17)
    with pytest.raises(InputError, match=r"packed must be uint8 .* got torch\.float32"):
        lowbit_dequantize(packed.float(), scalar(0.0), scalar(1.0), 1, 16)
    with pytest.raises(InputError, match=r"scale must be a float32 scalar, got torch\.float32 \(1,\)"):
        lowbit_dequantize(packed, scalar(0.0), torch.ones(1), 1, 16)
    with pytest.raises(InputError, match=r"dtype must be float32, bfloat16 or float16, got torch\.int8"):
        lowbit_dequantize(packed, scalar(0.0), scalar(1.0), 1, 16, dtype=torch.int8)
    with pytest.raises(InputError, match=r"packed must be uint8 \(n, rows, 3\)"):
        transpose_packed(packed, 1, 17)
