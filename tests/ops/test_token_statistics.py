from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad

from petkit.errors import InputError
from petkit.ops import TokenStatistics, token_statistics
from tests.reference import token_statistics as reference
from tests.threads import threads

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What users are promised, in nats: entropy and log-probability within 1e-5 of float64 on the same inputs.
NATS = 1e-5
# Rows and vocabulary: one token, around the vector widths, around a block of 4,096, a real vocabulary.
SHAPES = [(3, 1), (2, 2), (5, 15), (4, 63), (3, 65), (2, 4095), (2, 4097), (1, 50257), (65537, 3)]


def normal(*shape, scale=3.0, seed=0, dtype=torch.float32):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def tokens(rows, vocab, seed=1):
    return torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(seed))


def check(found: TokenStatistics, logits, temperature=1.0, ids=None, top_k=0):
    exact = logits.double().numpy()
    expected = reference.statistics(exact, temperature)
    for name, values in expected.items():
        got = getattr(found, name)
        assert got.dtype == torch.float32
        # The result itself is rounded to float32; log_z and its like may be large numbers.
        np.testing.assert_allclose(got.double().numpy(), values, rtol=2e-6, atol=NATS, err_msg=name)
    np.testing.assert_allclose(found.entropy.double().numpy(), expected["entropy"], rtol=0, atol=NATS)
    log_p = reference.log_softmax(exact, temperature)
    if ids is not None:
        chosen = np.take_along_axis(log_p, ids[:, None].numpy(), -1)[:, 0]
        np.testing.assert_allclose(found.log_prob.double().numpy(), chosen, rtol=1e-6, atol=NATS)
    if top_k:
        best = reference.largest(exact, top_k)
        assert np.array_equal(found.top_ids.numpy(), best)
        top = np.take_along_axis(log_p, best, -1)
        np.testing.assert_allclose(found.top_log_probs.double().numpy(), top, rtol=1e-6, atol=NATS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_reference(kernels, shape, dtype):
    logits, ids = normal(*shape, dtype=dtype), tokens(*shape)
    top_k = min(5, shape[1])
    check(token_statistics(logits, ids, top_k), logits, ids=ids, top_k=top_k)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 5.0])
@pytest.mark.parametrize(("scale", "offset"), [(0.0, 0.0), (0.01, 0.0), (30.0, 0.0), (3.0, 1e4), (3.0, -1e4)])
def test_flat_peaked_and_far_from_zero(kernels, scale, offset, temperature):
    logits, ids = normal(3, 9001, scale=scale) + offset, tokens(3, 9001)
    found = token_statistics(logits, ids, 3, temperature)
    check(found, logits, temperature, ids, 3)


def test_any_shape_and_strides(kernels):
    logits = normal(7, 33, 6).permute(2, 0, 1)
    ids = tokens(42, 33).view(6, 7)
    found = token_statistics(logits, ids, 4)
    assert found.entropy.shape == found.log_prob.shape == (6, 7)
    assert found.top_ids.shape == found.top_log_probs.shape == (6, 7, 4)
    flat = TokenStatistics(*(part.reshape(42, *part.shape[2:]) for part in found))
    check(flat, logits.reshape(42, 33), ids=ids.view(-1), top_k=4)
    assert token_statistics(logits[0, 0]).entropy.shape == ()


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
def test_no_rows(kernels, shape):
    found = token_statistics(torch.zeros(shape), torch.zeros(shape[:-1], dtype=torch.int64), 2)
    assert found.entropy.shape == shape[:-1]
    assert found.top_ids.shape == (*shape[:-1], 2)


def test_what_was_not_asked_for_is_none(kernels):
    found = token_statistics(normal(2, 9))
    assert (found.log_prob, found.top_log_probs, found.top_ids) == (None, None, None)


def test_impossible_tokens(kernels):
    logits = normal(4, 5000)
    logits[0, 10:] = -torch.inf
    logits[1, :-1] = -torch.inf
    logits[2, ::2] = -torch.inf
    found = token_statistics(logits, torch.tensor([0, 0, 1, 7]), 3)
    check(TokenStatistics(*(part[[0, 2, 3]] for part in found)), logits[[0, 2, 3]], top_k=3)
    assert found.entropy[1] < 1e-30
    assert found.max_prob[1] == 1
    assert found.log_prob[1] == -torch.inf
    # Behind the only possible token come the impossible ones in their order.
    assert found.top_ids[1].tolist() == [4999, 0, 1]
    assert found.top_log_probs[1].tolist() == [0, -torch.inf, -torch.inf]


def test_a_row_without_any_possible_token(kernels):
    found = token_statistics(torch.full((1, 5000), -torch.inf), top_k=2)
    assert found.log_z.item() == -torch.inf
    assert all(torch.isnan(part).all() for part in (found.entropy, found.varentropy, found.max_prob))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 17, 4096, 8999])
@pytest.mark.parametrize("spread", [1.0, 1000.0])
def test_nan_and_infinity_spoil_their_row_and_no_other(kernels, bad, place, spread):
    """Also in a block that is otherwise so small that it would be passed over."""
    logits = normal(3, 9000, scale=1.0)
    logits[:, :64] += spread
    expected = token_statistics(logits)
    logits[1, place] = bad
    found = token_statistics(logits)
    for name in ("log_z", "entropy", "varentropy", "max_prob"):
        got, kept = getattr(found, name), getattr(expected, name)
        assert torch.isnan(got[1]), name
        assert torch.equal(got[[0, 2]], kept[[0, 2]])


@pytest.mark.parametrize("top_k", [1, 2, 50, 5000])
def test_equal_logits_come_in_the_order_of_their_ids(kernels, top_k):
    logits = torch.randint(4, (3, 5000), generator=torch.Generator().manual_seed(0)).float()
    found = token_statistics(logits, top_k=top_k)
    assert np.array_equal(found.top_ids.numpy(), reference.largest(logits.double().numpy(), top_k))


def test_rising_logits_replace_all_candidates(kernels):
    logits = torch.arange(20000.0).div(1000)[None]
    found = token_statistics(logits, top_k=7)
    assert found.top_ids.tolist() == [list(range(19999, 19992, -1))]


def test_threads_do_not_change_a_bit(kernels):
    logits, ids = normal(9, 5001), tokens(9, 5001)
    with threads(1):
        alone = token_statistics(logits, ids, 5)
    with threads(3):
        together = token_statistics(logits, ids, 5)
    one_by_one = [token_statistics(logits[i : i + 1], ids[i : i + 1], 5) for i in range(9)]
    for name in TokenStatistics._fields:
        assert torch.equal(getattr(together, name), getattr(alone, name))
        assert torch.equal(torch.cat([getattr(one, name) for one in one_by_one]), getattr(alone, name))


def gradient_of(logits, ids, upstream, temperature):
    live = logits.clone().requires_grad_()
    found = token_statistics(live, ids, temperature=temperature)
    pairs = zip((found.log_z, found.entropy, found.log_prob), upstream, strict=True)
    sum((value * weight).sum() for value, weight in pairs).backward()
    return live.grad


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 1), (4, 63), (5, 4097)])
def test_gradient(kernels, shape, dtype, temperature):
    logits, ids = normal(*shape, dtype=dtype), tokens(*shape)
    upstream = [normal(shape[0], scale=1.0, seed=seed) for seed in (2, 3, 4)]
    got = gradient_of(logits, ids, upstream, temperature)
    weights = tuple(part.double().numpy() for part in upstream)
    expected = reference.gradient(logits.double().numpy(), ids.numpy(), weights, temperature)
    assert got.dtype == dtype
    # One rounding of the stored gradient, on top of float32's of values around 1.
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=rounding, atol=3e-6)


def test_gradient_against_finite_differences(kernels):
    logits, ids = normal(2, 7), tokens(2, 7)
    upstream = tuple(np.array(row) for row in ([0.3, -1.0], [2.0, 0.5], [-0.7, 1.1]))

    def value(x):
        found = reference.statistics(x, 0.8)
        log_prob = reference.log_softmax(x, 0.8)[np.arange(2), ids.numpy()]
        a, b, c = upstream
        return (a * found["log_z"] + b * found["entropy"] + c * log_prob).sum()

    exact = logits.double().numpy()
    expected = np.zeros_like(exact)
    for place in np.ndindex(exact.shape):
        step = np.zeros_like(exact)
        step[place] = 1e-6
        expected[place] = (value(exact + step) - value(exact - step)) / 2e-6
    got = gradient_of(logits, ids, [torch.tensor(part).float() for part in upstream], 0.8)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-5)


def test_gradient_with_impossible_tokens_and_far_from_zero(kernels):
    logits, ids = normal(2, 300) + 1e4, torch.tensor([4, 5])
    logits[:, 100:200] = -torch.inf
    upstream = [torch.ones(2), torch.ones(2), torch.ones(2)]
    got = gradient_of(logits, ids, upstream, 1.0)
    weights = tuple(part.double().numpy() for part in upstream)
    expected = reference.gradient(logits.double().numpy(), ids.numpy(), weights)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-5)
    assert not got[:, 100:200].any()


def test_one_output_alone_has_its_gradient(kernels):
    logits = normal(3, 40).requires_grad_()
    token_statistics(logits).entropy.sum().backward()
    zero = np.zeros(3)
    expected = reference.gradient(
        logits.detach().double().numpy(), np.zeros(3, int), (zero, np.ones(3), zero)
    )
    np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=0, atol=1e-6)
    assert not token_statistics(logits).varentropy.requires_grad
    assert not token_statistics(logits).max_prob.requires_grad


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # read by opcheck itself
@pytest.mark.parametrize("chosen", [True, False])
def test_opcheck(kernels, chosen):
    logits = normal(3, 21).requires_grad_()
    ids = tokens(3, 21) if chosen else torch.empty(0, dtype=torch.int64)
    torch.library.opcheck(torch.ops.petkit.token_statistics.default, (logits, ids, 2, 0.9))
    _, entropy, *_, maximum, log_sum = torch.ops.petkit.token_statistics(logits.detach(), ids, 0, 0.9)
    grads = (normal(3, seed=2), normal(3, seed=3), normal(len(ids), seed=4))
    arguments = (logits.detach(), ids, maximum, log_sum, entropy, *grads, 0.9)
    torch.library.opcheck(torch.ops.petkit.token_statistics_backward.default, arguments)


# torch's own forward mode uses what torch deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_transforms_of_torch_func():
    logits = torch.randn(3, 7)

    def entropy(x):
        return token_statistics(x).entropy.sum()

    message = r"no derivatives by torch\.func \(grad, jacrev, jvp\) and in forward mode: use backward\(\)"
    for derive in (torch.func.grad(entropy), torch.func.jacrev(entropy)):
        with pytest.raises(InputError, match=message):
            derive(logits)
    with pytest.raises(InputError, match=message):
        torch.func.jvp(entropy, (logits,), (logits,))
    with forward_ad.dual_level(), pytest.raises(InputError, match=message):
        entropy(forward_ad.make_dual(logits, logits))
    with forward_ad.dual_level():
        assert entropy(logits) > 0


def test_under_compile():
    compiled = torch.compile(lambda x, ids: token_statistics(x, ids, 2), backend="eager", fullgraph=True)
    logits, ids = normal(2, 3, 20), tokens(6, 20).view(2, 3)
    for got, expected in zip(compiled(logits, ids), token_statistics(logits, ids, 2), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3).double(),), "logits must be float32, bfloat16 or float16, got torch.float64"),
        ((torch.zeros(2, 0),), r"logits must be \(..., vocab\) with vocab >= 1, got \(2, 0\)"),
        ((torch.tensor(1.0),), r"logits must be \(..., vocab\) with vocab >= 1, got \(\)"),
        ((torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)), r"token_ids must be integers \(2,\) for"),
        ((torch.zeros(2, 3), torch.zeros(2)), "token_ids must be integers"),
        ((torch.zeros(2, 3), torch.tensor([0, 3])), "token_ids must lie between 0 and 2, got 3"),
        ((torch.zeros(2, 3), torch.tensor([-100, 0])), "between 0 and 2, got -100: leave masked positions"),
        ((torch.zeros(2, 3), None, 4), "top_k must be a whole number between 0 and 3, got 4"),
        ((torch.zeros(2, 3), None, -1), "top_k must be a whole number between 0 and 3, got -1"),
        ((torch.zeros(2, 3), None, 2.5), r"top_k must be a whole number between 0 and 3, got 2\.5"),
        ((torch.zeros(2, 3), None, "2"), "top_k must be a whole number between 0 and 3, got '2'"),
        ((torch.zeros(2, 3), [0, 1]), r"token_ids must be a tensor, got list; use torch\.tensor"),
        (([[0.0, 1.0]],), "logits must be a tensor, got list"),
        ((torch.zeros(2, 3), None, 0, 0.0), "temperature must lie between 1e-30 and 1e.30, got 0.0"),
        ((torch.zeros(2, 3), None, 0, 1e-40), "temperature must lie between 1e-30 and 1e.30, got 1e-40"),
        ((torch.zeros(2, 3), None, 0, float("inf")), "temperature must lie between .* got inf"),
        ((torch.zeros(2, 3), None, 0, float("nan")), "temperature must lie between .* got nan"),
        ((torch.zeros(2, 3), None, 0, "0.7"), "temperature must be a number, got '0.7'"),
        ((torch.zeros(2, 3), None, 0, None), "temperature must be a number, got None"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InputError, match=message):
        token_statistics(*arguments)


def test_a_second_derivative_is_refused(kernels):
    logits = normal(2, 9).requires_grad_()
    found = token_statistics(logits, tokens(2, 9))
    (gradient,) = torch.autograd.grad((found.entropy + found.log_prob).sum(), logits, create_graph=True)
    with pytest.raises(InputError, match="token_statistics can be differentiated once"):
        torch.autograd.grad((gradient**2).sum(), logits)


@pytest.mark.parametrize("temperature", [1e-30, 1e30])
def test_the_limits_of_the_temperature(kernels, temperature):
    logits = torch.tensor([[3.0, 3.0, 1.0], [1e4, -1e4, 9999.0], [1.0, -torch.inf, 0.0]])
    ids = torch.tensor([0, 0, 0])
    found = token_statistics(logits.requires_grad_(), ids, 2, temperature)
    (found.entropy + found.log_prob).sum().backward()
    # Frozen, only the largest logits are left; boiling, all possible ones are alike.
    left = np.array([2, 1, 1] if temperature < 1 else [3, 3, 2])
    np.testing.assert_allclose(found.entropy.detach().numpy(), np.log(left), rtol=0, atol=NATS)
    np.testing.assert_allclose(found.log_prob.detach().numpy(), -np.log(left), rtol=0, atol=NATS)
    assert found.log_z.isfinite().all()
    assert logits.grad.isfinite().all()


def test_numbers_of_numpy_are_numbers(kernels):
    logits = normal(2, 9)
    found = token_statistics(logits, None, np.int64(2), np.float32(0.5))
    assert torch.equal(found.top_log_probs, token_statistics(logits, None, 2, 0.5).top_log_probs)


def test_the_operator_itself_refuses_what_would_read_out_of_bounds():
    if not torch._C._dispatch_has_kernel_for_dispatch_key("petkit::token_statistics", "CPU"):
        pytest.skip("the default has torch's own bounds checks")
    op, none = torch.ops.petkit.token_statistics, torch.empty(0, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="token_ids must lie between 0 and 2, got 7 in row 1"):
        op(torch.zeros(2, 3), torch.tensor([0, 7]), 0, 1.0)
    with pytest.raises(RuntimeError, match="token_ids must hold one id for each of 2 rows, got 1"):
        op(torch.zeros(2, 3), torch.tensor([0]), 0, 1.0)
    with pytest.raises(RuntimeError, match="top_k must lie between 0 and 3, got 9"):
        op(torch.zeros(2, 3), none, 9, 1.0)


logits_lists = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40)


@given(logits_lists, st.floats(-1000, 1000, width=16))
def test_a_constant_moves_log_z_and_nothing_else(values, offset):
    logits = torch.tensor([values])
    one, two = token_statistics(logits), token_statistics(logits + offset)
    # Adding the offset rounds every logit to the offset's precision.
    allowed = 1e-4 * (1 + abs(offset) / 100)
    assert float(two.log_z - one.log_z) == pytest.approx(offset, abs=allowed)
    assert float(two.entropy) == pytest.approx(float(one.entropy), abs=allowed)


@given(logits_lists)
def test_entropy_lies_between_zero_and_log_vocab(values):
    found = token_statistics(torch.tensor([values]), top_k=len(values))
    assert -NATS <= float(found.entropy) <= np.log(len(values)) + NATS
    assert float(found.varentropy) >= 0
    assert float(found.top_log_probs.double().exp().sum()) == pytest.approx(1, abs=1e-5)
    assert float(found.max_prob) == pytest.approx(float(found.top_log_probs[0, 0].exp()), rel=1e-6)


@given(logits_lists, st.floats(0.25, 4, width=16))
def test_temperature_is_a_division(values, temperature):
    logits = torch.tensor([values])
    one, two = token_statistics(logits, temperature=temperature), token_statistics(logits / temperature)
    # The quotient is rounded to float32: up to 200 at the largest.
    assert float(one.entropy) == pytest.approx(float(two.entropy), abs=5e-5)
    assert float(one.log_z) == pytest.approx(float(two.log_z), rel=1e-6, abs=2e-5)
