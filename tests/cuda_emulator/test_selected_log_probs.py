import numpy as np
import pytest
import torch

from tests.cuda_emulator.support import DTYPES, from_bits, in_all_orders, normal, to_bits
from tests.reference import selected_log_probs as reference

ROUNDING = {"float32": 1e-5, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def tokens(rows, count, vocab):
    return np.random.default_rng(1).integers(0, vocab, (rows, count))


def run(cuda, logits, ids, temperature=1.0, mask=None):
    given, dtype = to_bits(logits), str(logits.dtype)[6:]
    return in_all_orders(lambda order: cuda.selected_log_probs(given, ids, mask, temperature, dtype, order))


def gradient_of(cuda, logits, ids, upstream, temperature=1.0, mask=None):
    """The gradient, which must be the same bits where it takes the logits' place."""
    dtype = str(logits.dtype)[6:]
    _, _, maximum, log_sum = run(cuda, logits, ids, temperature, mask)
    given = to_bits(logits), ids, mask, maximum, log_sum, upstream.astype(np.float32), temperature, dtype
    gradient = in_all_orders(lambda order: cuda.selected_log_probs_backward(*given, False, order))
    np.testing.assert_array_equal(cuda.selected_log_probs_backward(*given, True, 1), gradient)
    return from_bits(gradient, dtype)


def check(cuda, logits, ids, temperature=1.0):
    found, exact = run(cuda, logits, ids, temperature), logits.double().numpy()
    for got, expected in zip(found, reference.selected(exact, ids, temperature), strict=False):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-5)
    upstream = normal(*ids.shape, seed=7).double().numpy()
    gradient = gradient_of(cuda, logits, ids, upstream, temperature)
    wanted = reference.gradient(exact, ids, upstream, temperature)
    # Float32's rounding of the upstream gradients' sum.
    bound = 5e-6 * (1 + np.abs(upstream).sum(-1).max(initial=0))
    np.testing.assert_allclose(gradient, wanted, rtol=ROUNDING[str(logits.dtype)[6:]], atol=bound)


# One tile is 2,048 logits, a block has 256 threads.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "count"), [((2, 1), 3), ((3, 65), 0), ((3, 72), 300), ((2, 2050), 5)])
def test_matches_the_reference(cuda_rows, shape, count, dtype):
    logits = (normal(*shape) * 3).to(getattr(torch, dtype))
    check(cuda_rows, logits, tokens(shape[0], count, shape[1]), 0.8)


def test_large_logits_and_impossible_tokens(cuda_rows):
    logits = normal(3, 300) * 3 + 1e4
    logits[1, 5:] = -torch.inf
    ids = np.array([[7, 7], [4, 0], [299, 0]])
    check(cuda_rows, logits, ids)
    assert not gradient_of(cuda_rows, logits, ids, np.ones((3, 2)))[1, 5:].any()
    assert run(cuda_rows, logits, ids + (ids < 299))[0][1].tolist()[0] == -np.inf


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_a_number_spoils_its_row_and_no_other(cuda_rows, bad):
    logits, ids = normal(2, 300), tokens(2, 3, 300)
    clean = run(cuda_rows, logits, ids)
    logits[1, slice(None) if bad < 0 else 280] = bad
    for got, expected in zip(run(cuda_rows, logits, ids)[:2], clean[:2], strict=True):
        assert np.isnan(got[1]).all()
        np.testing.assert_array_equal(got[0], expected[0])
    gradient = gradient_of(cuda_rows, logits, ids, np.ones((2, 3)))
    assert np.isnan(gradient[1]).all()
    assert np.isfinite(gradient[0]).all()


def test_masked_rows_are_not_read(cuda_rows):
    logits, ids, mask = normal(4, 70), tokens(4, 3, 70), np.array([True, False, True, False])
    upstream = normal(4, 3, seed=2).numpy()
    kept = run(cuda_rows, logits[mask], ids[mask])
    expected = gradient_of(cuda_rows, logits[mask], ids[mask], upstream[mask])
    logits[~mask], ids[~mask], upstream[~mask] = torch.nan, -100, np.nan
    for got, values in zip(run(cuda_rows, logits, ids, mask=mask), kept, strict=True):
        np.testing.assert_array_equal(got[mask], values)
        assert not got[~mask].any()
    gradient = gradient_of(cuda_rows, logits, ids, upstream, mask=mask)
    np.testing.assert_array_equal(gradient[mask], expected)
    assert not gradient[~mask].any()


def test_ids_outside_are_nan_and_touch_nothing(cuda_rows):
    """They cannot be refused without waiting for the device."""
    logits, ids = normal(1, 70), np.array([[3, -1, 70, 1 << 40]])
    log_probs, entropy, _, _ = run(cuda_rows, logits, ids)
    assert np.isnan(log_probs[0]).tolist() == [False, True, True, True]
    assert np.isfinite(entropy).all()
    assert np.isfinite(gradient_of(cuda_rows, logits, ids, np.ones((1, 4)))).all()
