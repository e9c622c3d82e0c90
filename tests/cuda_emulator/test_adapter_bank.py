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
from tests.reference import adapter_bank as reference
from tests.reference import lowbit
from tests.reference.tolerance import sum_error

# (tokens, adapters, hidden, in, out): empty, single, odd, three tiles of x.
SHAPES = [
    (0, 3, 4, 16, 16),
    (1, 1, 1, 1, 1),
    (5, 3, 8, 63, 65),
    (9, 7, 5, 64, 96),
    (6, 2, 33, 48, 17),
    (4, 2, 3, 2100, 24),
    (3, 2, 4, 0, 5),
]


class Adapters:
    """Random packed adapters and their float64 weights."""

    def __init__(self, adapters, hidden, columns, out, bits, kind="normal_l1"):
        levels = lowbit_codebook(bits, kind)
        self.bits, self.out, self.levels = bits, out, levels.numpy()
        down = random_codes(adapters, hidden, columns, bits=bits)
        up = random_codes(adapters, out, hidden, bits=bits, seed=1)
        self.down, self.up = pack(down, bits), pack(up.transpose(0, 2, 1), bits)
        self.constants = np.random.default_rng(2).uniform(0.05, 1, (adapters, 5)).astype(np.float32)
        c, exact = self.constants.astype(np.float64), levels.double().numpy()
        self.wide_down = np.stack(
            [lowbit.dequantize(d, k[0], k[1], exact) for d, k in zip(down, c, strict=True)]
        )
        self.wide_up = np.stack([lowbit.dequantize(u, k[2], k[3], exact) for u, k in zip(up, c, strict=True)])
        self.scaling = c[:, 4]

    def run(self, cuda, x, ids, relu=True, tokens_per_block=1):
        dtype = str(x.dtype)[6:]
        return in_all_orders(
            lambda order: cuda.adapter_bank(
                to_bits(x),
                ids,
                self.down,
                self.up,
                self.constants,
                self.levels,
                dtype,
                self.bits,
                self.out,
                relu,
                tokens_per_block,
                order,
            )
        )

    def check(self, cuda, x, ids, relu=True, tokens_per_block=1):
        dtype = str(x.dtype)[6:]
        y = from_bits(self.run(cuda, x, ids, relu, tokens_per_block), dtype)
        exact, magnitude = reference.adapter_bank(
            x.double().numpy(), ids, self.wide_down, self.wide_up, self.scaling, relu
        )
        assert y.shape == exact.shape
        assert sum_error(y, exact, magnitude, dtype) <= 1


def mixed_ids(tokens, adapters):
    """Runs of one adapter, changes within a block, and tokens without adapter."""
    return np.sort(np.random.default_rng(3).integers(-1, adapters, tokens)).astype(np.int64)


@pytest.mark.parametrize("tokens_per_block", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("bits", "kind"), CODEBOOKS)
def test_matches_the_reference(cuda, bits, kind, shape, tokens_per_block):
    tokens, adapters, hidden, columns, out = shape
    bank, x = Adapters(adapters, hidden, columns, out, bits, kind), normal(tokens, columns, seed=9)
    for relu in (True, False):
        bank.check(cuda, x, mixed_ids(tokens, adapters), relu, tokens_per_block)


@pytest.mark.parametrize("tokens_per_block", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("bits", BITS)
def test_half_precision(cuda, bits, dtype, tokens_per_block):
    bank, x = Adapters(4, 8, 70, 50, bits), normal(11, 70, seed=9, dtype=dtype)
    bank.check(cuda, x, mixed_ids(11, 4), tokens_per_block=tokens_per_block)


def test_the_blocking_does_not_change_a_bit(cuda):
    bank, x, ids = Adapters(3, 6, 96, 40, 1), normal(13, 96), np.array([2] * 7 + [0, -1, 1, 1, -1, 2])
    np.testing.assert_array_equal(bank.run(cuda, x, ids, True, 1), bank.run(cuda, x, ids, True, 4))


@pytest.mark.parametrize("tokens_per_block", [1, 4])
def test_no_adapter_gives_zeros_and_a_missing_one_nan(cuda, tokens_per_block):
    bank, x, ids = Adapters(2, 4, 20, 30, 1), normal(6, 20), np.array([-1, 2, 0, -2, -1, 99])
    y = bank.run(cuda, x, ids, True, tokens_per_block)
    np.testing.assert_array_equal(y[[0, 4]], 0)
    assert np.isnan(y[[1, 3, 5]]).all()
    assert np.isfinite(y[2]).all()


def test_an_empty_slot_gives_zeros(cuda):
    bank, x = Adapters(2, 4, 20, 30, 1), normal(3, 20)
    bank.down[1], bank.up[1], bank.constants[1] = 0, 0, 0
    np.testing.assert_array_equal(bank.run(cuda, x, np.array([1, 0, 1]))[[0, 2]], 0)
