import numpy as np
import pytest
import torch

from tests.cuda_emulator.support import DTYPES, from_bits, in_all_orders, normal, to_bits
from tests.reference import token_statistics as reference

FIELDS = ("log_z", "entropy", "varentropy", "max_prob")
# One tile is 2,048 logits.
SHAPES = [(3, 1), (2, 7), (3, 65), (2, 2047), (2, 2050), (1, 9001)]


def run(cuda, logits, ids=None, top_k=0, temperature=1.0):
    given, dtype = to_bits(logits), str(logits.dtype)[6:]
    tokens = None if ids is None else ids.numpy()
    return in_all_orders(lambda order: cuda.token_statistics(given, tokens, top_k, temperature, dtype, order))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_reference(cuda, shape, dtype):
    logits = (normal(*shape).float() * 3).to(getattr(torch, dtype))
    ids = torch.arange(shape[0]) * 7 % shape[1]
    top_k = min(5, shape[1])
    found = run(cuda, logits, ids, top_k, 0.8)
    exact = logits.double().numpy()
    for got, (name, expected) in zip(found, reference.statistics(exact, 0.8).items(), strict=False):
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-5, err_msg=name)
    log_p = reference.log_softmax(exact, 0.8)
    np.testing.assert_allclose(found[4], log_p[np.arange(len(ids)), ids], rtol=1e-6, atol=1e-5)
    best = reference.largest(exact, top_k)
    np.testing.assert_array_equal(found[6], best)
    np.testing.assert_allclose(found[5], np.take_along_axis(log_p, best, -1), rtol=1e-6, atol=1e-5)


def test_large_logits_lose_no_digits(cuda):
    logits = normal(2, 3000) * 3 + 1e4
    expected = reference.statistics(logits.double().numpy())
    np.testing.assert_allclose(run(cuda, logits)[1], expected["entropy"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 64, 2048])
@pytest.mark.parametrize("kind", ["rising", "equal", "random"])
def test_the_largest_when_every_tile_brings_new_ones(cuda, kind, top_k):
    columns = torch.arange(7000.0)
    logits = {"rising": columns, "equal": columns * 0, "random": normal(7000)}[kind][None]
    found = run(cuda, logits, top_k=top_k)
    np.testing.assert_array_equal(found[6], reference.largest(logits.double().numpy(), top_k))


def test_impossible_tokens(cuda):
    logits = normal(2, 2500)
    logits[0, 5:] = -torch.inf
    logits[1] = -torch.inf
    found = run(cuda, logits, torch.tensor([7, 0]), 3)
    expected = reference.statistics(logits[:1].double().numpy())
    for got, name in zip(found, FIELDS, strict=False):
        np.testing.assert_allclose(got[0], expected[name][0], rtol=2e-6, atol=1e-6)
        assert got[1] == -np.inf if name == "log_z" else np.isnan(got[1])
    assert found[4][0] == -np.inf


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 9, 2400])
def test_nan_and_infinity_spoil_their_row_and_no_other(cuda, bad, place):
    logits = normal(2, 2500)
    clean = run(cuda, logits)
    logits[1, place] = bad
    for got, expected in zip(run(cuda, logits)[:4], clean[:4], strict=True):
        assert np.isnan(got[1])
        assert got[0] == expected[0]


def test_a_nan_among_impossible_tokens_shows(cuda):
    logits = torch.full((1, 2500), -torch.inf)
    logits[0, 1234] = torch.nan
    assert np.isnan(run(cuda, logits)[1]).all()


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 1), (3, 65), (2, 2050)])
def test_gradient(cuda, shape, dtype, chosen):
    logits = (normal(*shape).float() * 3).to(getattr(torch, dtype))
    logits[0, shape[1] // 2 + 1 :] = -torch.inf
    ids = torch.arange(shape[0]) % shape[1] if chosen else None
    _, entropy, *_, maximum, log_sum = run(cuda, logits, ids, temperature=0.6)
    a, b, c = normal(3, shape[0], seed=2).numpy()
    columns = np.stack([maximum, log_sum, entropy, a, b, c]).astype(np.float32)
    tokens = None if ids is None else ids.numpy()
    got = in_all_orders(
        lambda order: cuda.token_statistics_backward(to_bits(logits), tokens, columns, 0.6, dtype, order)
    )
    upstream = (a.astype(np.float64), b.astype(np.float64), c * float(chosen))
    place = np.zeros(shape[0], int) if ids is None else ids.numpy()
    expected = reference.gradient(logits.double().numpy(), place, upstream, 0.6)
    rounding = {"float32": 1e-5, "bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    np.testing.assert_allclose(from_bits(got, dtype), expected, rtol=rounding, atol=1e-5)
