import numpy as np
import pytest
import torch

from petkit.errors import InputError
from petkit.ops import lowbit_codebook
from tests.reference import lowbit

BITS = (1, 2, 4, 8)


@pytest.mark.parametrize("bits", BITS)
def test_levels_are_the_l1_optimum(bits):
    levels = lowbit_codebook(bits).double().numpy()
    # float32 storage moves a level by at most 2.4e-7 near 4; the tail cells of 8 bits amplify that by about
    # 10.
    assert lowbit.is_optimal(levels, tolerance=3e-6)


@pytest.mark.parametrize("kind", ["normal_l1", "petl_vit"])
@pytest.mark.parametrize("bits", BITS)
def test_levels_rise_and_are_symmetric(bits, kind):
    levels = lowbit_codebook(bits, kind)
    assert levels.shape == (2**bits,)
    assert levels.dtype == torch.float32
    assert torch.all(levels[1:] > levels[:-1])
    assert torch.equal(levels, -levels.flip(0))


def test_published_levels():
    assert lowbit_codebook(1)[1].item() == pytest.approx(0.6745, abs=5e-5)
    np.testing.assert_allclose(lowbit_codebook(2)[2:], [0.3778, 1.2657], atol=5e-5)
    expected = [0.1056, 0.3190, 0.5401, 0.7752, 1.0340, 1.3331, 1.7077, 2.2655]
    np.testing.assert_allclose(lowbit_codebook(4)[8:], expected, atol=5e-5)
    assert lowbit_codebook(8)[-1].item() == pytest.approx(3.785, abs=5e-4)


@pytest.mark.parametrize(("bits", "error"), [(1, 0.4732), (2, 0.2658), (4, 0.0746), (8, 0.00488)])
def test_published_mean_errors(bits, error):
    assert lowbit.mean_error(lowbit_codebook(bits).double().numpy()) == pytest.approx(error, rel=2e-3)


def test_the_original_table_has_not_converged_at_8_bits():
    levels = lowbit_codebook(8, "petl_vit").double().numpy()
    assert levels[-1] == pytest.approx(2.81, abs=5e-3)
    assert lowbit.mean_error(levels) == pytest.approx(0.0223, rel=5e-3)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_tables_agree_below_8_bits(bits):
    # After 500 steps the 4-bit iteration is still 3e-8 from its limit.
    torch.testing.assert_close(lowbit_codebook(bits), lowbit_codebook(bits, "petl_vit"), rtol=0, atol=2e-7)


def test_a_caller_may_write_to_the_levels():
    lowbit_codebook(1).zero_()
    assert lowbit_codebook(1)[1] > 0


@pytest.mark.parametrize("bits", [0, 3, 16, -1])
def test_other_bits_are_refused(bits):
    with pytest.raises(InputError, match=f"bits must be 1, 2, 4 or 8, got {bits}"):
        lowbit_codebook(bits)


def test_another_kind_is_refused():
    with pytest.raises(InputError, match="kind must be normal_l1 or petl_vit, got 'nf4'"):
        lowbit_codebook(4, "nf4")
