import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.artifacts import PackedMatrix
from petkit.errors import ArtifactError
from tests.reference import format as reference

# One 3 x 5 matrix for each width, packed by hand: lowest bits first, across row ends, padding at the end.
GOLDEN = {
    1: ([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1], [1, 0, 0, 1, 0]], "cd 26", "0d 16 09"),
    2: ([[0, 1, 2, 3, 0], [1, 2, 3, 0, 1], [2, 3, 0, 1, 2]], "e4 e4 e4 24", "e4 00 39 01 4e 02"),
    4: (np.arange(15).reshape(3, 5).tolist(), "10 32 54 76 98 ba dc 0e", "10 32 04 65 87 09 ba dc 0e"),
    8: (np.arange(250, 235, -1).reshape(3, 5).tolist(), "fa f9 f8 f7 f6 f5 f4 f3 f2 f1 f0 ef ee ed ec", None),
}

shapes = st.tuples(st.integers(1, 9), st.integers(1, 17))
widths = st.sampled_from([1, 2, 4, 8])


def packed(codes: list[list[int]], bits: int) -> PackedMatrix:
    return PackedMatrix.from_codes(np.array(codes), -0.25, 0.5, bits)


@pytest.mark.parametrize("bits", GOLDEN)
def test_stream_is_what_was_packed_by_hand(bits):
    codes, stream, _ = GOLDEN[bits]
    assert packed(codes, bits).stream.tobytes() == bytes.fromhex(stream)
    assert packed(codes, bits).codes().tolist() == codes


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_rows_start_on_bytes(bits):
    codes, _, rows = GOLDEN[bits]
    matrix = packed(codes, bits)
    assert matrix.row_array().tobytes() == bytes.fromhex(rows)
    assert matrix.rows().shape == (3, math.ceil(5 * bits / 8))
    again = PackedMatrix.from_rows(matrix.rows(), torch.tensor(-0.25), torch.tensor(0.5), bits, 5)
    assert again.stream.tobytes() == matrix.stream.tobytes()


@given(shapes, widths, st.integers(0, 2**32 - 1))
def test_codes_rows_and_stream_agree(shape, bits, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, shape)
    matrix = PackedMatrix.from_codes(codes, 0.0, 1.0, bits)
    assert np.array_equal(matrix.codes(), codes)
    assert np.array_equal(reference.unpack(matrix.stream.tobytes(), bits, *shape), codes)
    again = PackedMatrix.from_rows(matrix.rows(), 0.0, 1.0, bits, shape[1])
    assert np.array_equal(again.stream, matrix.stream)


def test_rows_share_nothing_with_the_stream():
    matrix = PackedMatrix.from_codes(np.ones((2, 8), int), 0.0, 1.0, 1)
    matrix.rows().zero_()
    assert matrix.codes().all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_dequantize_follows_the_definition(bits):
    matrix = PackedMatrix.from_codes(
        np.arange(2**bits)[None], float(np.float32(0.1)), float(np.float32(0.3)), bits
    )
    expected = reference.weights(
        reference.Matrix(matrix.codes(), bits, "normal_l1", np.float32(0.1), np.float32(0.3))
    )
    # Levels of two implementations may differ in the last digit of float32.
    np.testing.assert_allclose(matrix.dequantize(), expected, rtol=0, atol=1e-7)
    assert matrix.dequantize().dtype == np.float32


def test_one_column_of_one_bit_costs_one_bit_a_weight():
    assert PackedMatrix.from_codes(np.ones((768, 1), int), 0.0, 1.0, 1).nbytes == 768 // 8 + 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "bits must be 1, 2, 4 or 8, got 3"),
        ({"kind": "nf4"}, "codebook must be one of normal_l1, petl_vit, got 'nf4'"),
        ({"shape": (3, 0)}, "shape must be (out, in)"),
        ({"shift": math.nan}, "must be finite, got shift nan"),
        ({"scale": math.inf}, "must be finite, got shift -0.25 and scale inf"),
        ({"scale": -0.5}, "scale must not be negative, got -0.5"),
        ({"shape": (3, 6)}, "a 3x6 matrix of 1 bits needs a stream of 3 bytes, got 2"),
        ({"stream": np.array([0xCD, 0xA6], np.uint8)}, "the 1 padding bits of the last byte must be zero"),
        ({"stream": np.zeros((1, 2), np.uint8)}, "stream must be uint8 in one dimension"),
        ({"stream": np.zeros(2, np.int8)}, "stream must be uint8 in one dimension, got int8"),
    ],
)
def test_refuses(changes, message):
    good = packed(GOLDEN[1][0], 1)
    values = {name: getattr(good, name) for name in ("shape", "bits", "kind", "shift", "scale", "stream")}
    with pytest.raises(ArtifactError, match=re.escape(message)):
        PackedMatrix(**{**values, **changes})


def test_refuses_codes_that_do_not_fit():
    with pytest.raises(ArtifactError, match=r"codes of 2 bits must lie in \[0, 4\), got 0 to 4"):
        PackedMatrix.from_codes(np.array([[0, 4]]), 0.0, 1.0, 2)
    with pytest.raises(ArtifactError, match="codes must be a matrix"):
        PackedMatrix.from_codes(np.array([0, 1]), 0.0, 1.0, 2)
    with pytest.raises(ArtifactError, match="17 codes of 1 bits need rows of 3 bytes"):
        PackedMatrix.from_rows(torch.zeros(2, 2, dtype=torch.uint8), 0.0, 1.0, 1, 17)
