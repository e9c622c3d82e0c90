from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad

from petkit.benchmarks.harness import peak_extra_bytes
from petkit.errors import InputError
from petkit.ops import SelectedLogProbs, _library, selected_log_probs, token_statistics
from tests.ops.row_cases import DTYPES, LARGE, NATS, ROUNDING, SHAPES, computed, every_other, exact, normal
from tests.reference import selected_log_probs as reference
from tests.threads import threads

INFINITE = torch.inf


def tokens(rows, k, vocab, seed=1):
    return torch.randint(vocab, (rows, k), generator=torch.Generator().manual_seed(seed))


def gradient_of(values, ids, upstream, **more):
    """The gradient, by way of logits that come from a computation; and whether it was written over them."""
    logits = computed(values)
    place = logits.data_ptr()
    found = selected_log_probs(logits, ids, **more).log_probs
    (gradient,) = torch.autograd.grad(found, logits, upstream)
    return gradient, gradient.data_ptr() == place


def check(logits, ids, temperature=1.0):
    """Results, gradient and overwriting gradient of flat rows of logits against the reference."""
    found = selected_log_probs(logits, ids, temperature=temperature)
    expected = reference.selected(exact(logits), ids.numpy(), temperature)
    for got, values in zip(found, expected, strict=True):
        assert got.dtype == torch.float32
        np.testing.assert_allclose(exact(got), values, rtol=1e-6, atol=NATS)
    upstream = normal(*ids.shape, scale=1.0, seed=7)
    gradient, _ = gradient_of(logits, ids, upstream, temperature=temperature)
    wanted = reference.gradient(exact(logits), ids.numpy(), exact(upstream), temperature)
    assert gradient.dtype == logits.dtype
    # Float32's rounding of the upstream gradients' sum.
    bound = 3e-6 * (1 + np.abs(exact(upstream)).sum(-1).max(initial=0)) / temperature
    np.testing.assert_allclose(exact(gradient), wanted, rtol=ROUNDING[logits.dtype], atol=bound)
    there, overwritten = gradient_of(logits, ids, upstream, temperature=temperature, overwrite=True)
    assert torch.equal(there, gradient)
    assert overwritten or not logits.numel()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES + LARGE)
def test_matches_the_reference(kernels, shape, dtype):
    check(normal(*shape, dtype=dtype), tokens(shape[0], 5 if shape[0] < 9 else 1, shape[1]))


@pytest.mark.parametrize("temperature", [0.1, 0.7, 5.0])
@pytest.mark.parametrize("k", [1, 65])
def test_temperature_and_many_tokens(kernels, k, temperature):
    check(normal(4, 100), tokens(4, k, 100), temperature)


@pytest.mark.parametrize(
    ("scale", "offset"), [(0.0, 0.0), (30.0, 0.0), (3.0, 1e4), (3.0, -1e4), (4000.0, 0.0)]
)
def test_flat_peaked_and_far_from_zero(kernels, scale, offset):
    for dtype in DTYPES:
        check((normal(3, 4500, scale=scale).clamp(-1e4, 1e4) + offset).to(dtype), tokens(3, 4, 4500))


def test_a_token_may_stand_twice(kernels):
    ids = torch.tensor([[3, 3, 3, 0], [7, 1, 7, 1], [2, 2, 2, 2]])
    for dtype in DTYPES:
        check(normal(3, 8, dtype=dtype), ids)
    check(normal(2, 3), tokens(2, 500, 3))


def test_agrees_with_token_statistics(kernels):
    logits, ids = normal(5, 5000), tokens(5, 1, 5000)
    found = selected_log_probs(logits, ids, temperature=0.8)
    other = token_statistics(logits, ids[:, 0], temperature=0.8)
    torch.testing.assert_close(found.log_probs[:, 0], other.log_prob, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.entropy, other.entropy, rtol=1e-6, atol=1e-6)


def test_any_shape_and_strides(kernels):
    logits, ids = normal(2, 3, 4, 33), tokens(24, 5, 33).view(2, 3, 4, 5)
    mask = torch.tensor([1, 0, 1, 1]).expand(2, 3, 4)
    plain = selected_log_probs(logits, ids, mask)
    assert plain.log_probs.shape == (2, 3, 4, 5)
    assert plain.entropy.shape == (2, 3, 4)
    strided = selected_log_probs(
        every_other(logits), ids.transpose(0, 1).contiguous().transpose(0, 1), mask * 1.0
    )
    for got, expected in zip(strided, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=1e-6)
    one = selected_log_probs(logits[0, 0, 0], ids[0, 0, 0].int())
    torch.testing.assert_close(one.log_probs, plain.log_probs[0, 0, 0])
    assert one.entropy.shape == ()
    upstream = normal(2, 3, 4, 5, seed=3)
    live = every_other(logits).requires_grad_()
    selected_log_probs(live, ids, mask).log_probs.backward(every_other(upstream))
    gradient, _ = gradient_of(logits, ids, upstream, mask=mask)
    torch.testing.assert_close(live.grad, gradient, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
@pytest.mark.parametrize("k", [0, 3])
def test_no_rows(kernels, shape, k):
    live = computed(torch.zeros(shape))
    found = selected_log_probs(live, torch.zeros((*shape[:-1], k), dtype=torch.int64), overwrite=True)
    assert found.log_probs.shape == (*shape[:-1], k)
    assert found.entropy.shape == shape[:-1]
    found.log_probs.sum().backward()


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_tokens(kernels, overwrite):
    logits, ids = normal(3, 70), torch.zeros((3, 0), dtype=torch.int64)
    found = selected_log_probs(logits, ids)
    assert found.log_probs.shape == (3, 0)
    np.testing.assert_allclose(
        exact(found.entropy), reference.selected(exact(logits), ids.numpy())[1], atol=NATS
    )
    gradient, _ = gradient_of(logits, ids, torch.zeros(3, 0), overwrite=overwrite)
    assert not gradient.any()


def test_impossible_tokens(kernels):
    logits = normal(3, 5000)
    logits[0, 10:] = -INFINITE
    logits[1, :-1] = -INFINITE
    logits[2, ::2] = -INFINITE
    ids = torch.tensor([[0, 9], [4999, 4999], [1, 4999]])
    check(logits, ids)
    gradient, _ = gradient_of(logits, ids, torch.ones(3, 2))
    assert not gradient[logits == -INFINITE].any()
    found = selected_log_probs(logits, torch.tensor([[0, 4000], [0, 4999], [0, 1]]))
    assert found.log_probs.isinf().tolist() == [[False, True], [True, False], [True, False]]
    # As of any token, only that the softmax weighs nothing there.
    gradient, _ = gradient_of(logits, torch.tensor([[4000], [0], [0]]), torch.ones(3, 1))
    assert gradient[[0, 1, 2], [4000, 0, 0]].tolist() == [1, 1, 1]
    assert not gradient[2, 2::2].any()


@pytest.mark.parametrize("bad", [torch.nan, INFINITE, -INFINITE])
@pytest.mark.parametrize("place", [0, 17, 4096, 4999])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_spoils_its_row_and_no_other(kernels, bad, place, dtype):
    logits, ids = normal(3, 5000, dtype=dtype), tokens(3, 2, 5000)
    expected = selected_log_probs(logits, ids)
    clean, _ = gradient_of(logits, ids, torch.ones(3, 2))
    logits[1, place if bad > 0 or bad != bad else slice(None)] = bad
    found = selected_log_probs(logits, ids)
    for got, values in zip(found, expected, strict=True):
        assert got[1].isnan().all()
        assert torch.equal(got[[0, 2]], values[[0, 2]])
    for overwrite in (False, True):
        gradient, _ = gradient_of(logits, ids, torch.ones(3, 2), overwrite=overwrite)
        assert gradient[1].isnan().all()
        assert torch.equal(gradient[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_rows_may_hold_anything(kernels, dtype, overwrite):
    logits, ids, upstream = (
        normal(20, 4100, dtype=dtype),
        tokens(20, 3, 4100),
        normal(20, 3, scale=1.0, seed=3),
    )
    mask = torch.arange(20) % 3 != 1
    kept = selected_log_probs(logits[mask], ids[mask])
    expected, _ = gradient_of(logits[mask], ids[mask], upstream[mask])
    logits[~mask], upstream[~mask] = torch.nan, torch.nan
    ids[~mask] = torch.tensor([-100, 4100, 1 << 60])
    for given_mask in (mask, mask.int(), mask.float()):
        found = selected_log_probs(logits, ids, given_mask)
        gradient, _ = gradient_of(logits, ids, upstream, mask=given_mask, overwrite=overwrite)
        for got, values in zip(found, kept, strict=True):
            assert torch.equal(got[mask], values)
            assert not got[~mask].any()
        assert torch.equal(gradient[mask], expected)
        assert not gradient[~mask].any()


@pytest.mark.parametrize("overwrite", [False, True])
def test_all_rows_masked(kernels, overwrite):
    logits, ids, mask = torch.full((3, 40), torch.nan), torch.full((3, 2), -100), torch.zeros(3)
    for part in selected_log_probs(logits, ids, mask):
        assert not part.any()
    gradient, _ = gradient_of(logits, ids, torch.ones(3, 2), mask=mask, overwrite=overwrite)
    assert not gradient.any()


def test_threads_do_not_change_a_bit(kernels):
    logits, ids, upstream = normal(40, 2500), tokens(40, 3, 2500), normal(40, 3, seed=5)
    results = []
    for count in (1, 3):
        with threads(count):
            results.append((*selected_log_probs(logits, ids), gradient_of(logits, ids, upstream)[0]))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_the_log_probs_alone_have_a_gradient(kernels):
    found = selected_log_probs(computed(torch.zeros(2, 3)), torch.zeros((2, 1), dtype=torch.int64))
    assert found.log_probs.requires_grad
    assert not found.entropy.requires_grad


def test_a_second_backward_pass_needs_the_logits(kernels):
    live, ids = normal(2, 9).requires_grad_(), tokens(2, 3, 9)
    total = selected_log_probs(live * 1, ids).log_probs.sum()
    total.backward(retain_graph=True)
    first = live.grad.clone()
    total.backward()
    assert torch.equal(live.grad, 2 * first)
    total = selected_log_probs(live * 1, ids, overwrite=True).log_probs.sum()
    total.backward(retain_graph=True)
    with pytest.raises(InputError, match="selected_log_probs has overwritten its logits by their gradient"):
        total.backward()


def test_whatever_else_needs_overwritten_logits_says_so(kernels):
    live, ids = normal(2, 9).requires_grad_(), tokens(2, 3, 9)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        selected_log_probs(torch.tanh(live), ids, overwrite=True).log_probs.sum().backward()


def test_without_gradients_nothing_is_overwritten(kernels):
    values, ids = normal(2, 9), tokens(2, 3, 9)
    logits = computed(values)
    with torch.no_grad():
        assert not selected_log_probs(logits, ids, overwrite=True).log_probs.requires_grad
    assert torch.equal(logits, values)


def test_overwriting_is_refused_where_it_would_do_harm():
    values, ids = normal(4, 9), tokens(4, 2, 9)
    leaf = values.clone().requires_grad_()
    for harmed in (leaf, leaf[:]):
        with pytest.raises(InputError, match=r"logits must come from a computation .* got a leaf"):
            selected_log_probs(harmed, ids, overwrite=True)
    assert torch.equal(leaf, values)
    with pytest.raises(InputError, match=r"logits must be contiguous .* got strides \(1, 4\)"):
        selected_log_probs((leaf * 1).T.contiguous().T, ids, overwrite=True)
    total = selected_log_probs(leaf * 1, ids, overwrite=True).log_probs.sum()
    with pytest.raises(
        InputError, match=r"selected_log_probs can be differentiated once, .*create_graph=True"
    ):
        torch.autograd.grad(total, leaf, create_graph=True)


def test_a_second_derivative_is_refused(kernels):
    live, ids = normal(2, 9).requires_grad_(), tokens(2, 3, 9)
    (gradient,) = torch.autograd.grad(selected_log_probs(live, ids).log_probs.sum(), live, create_graph=True)
    with pytest.raises(InputError, match="selected_log_probs can be differentiated once"):
        torch.autograd.grad((gradient**2).sum(), live)


# torch's own forward mode uses what torch deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("overwrite", [False, True])
def test_transforms_of_torch_func(overwrite):
    logits, ids = normal(3, 7), tokens(3, 2, 7)

    def total(x):
        return selected_log_probs(x * 1, ids, overwrite=overwrite).log_probs.sum()

    message = (
        r"selected_log_probs has no derivatives by torch\.func \(grad, jacrev, jvp\) and in forward mode"
    )
    for derive in (torch.func.grad(total), torch.func.jacrev(total)):
        with pytest.raises(InputError, match=message):
            derive(logits)
    with pytest.raises(InputError, match=message):
        torch.func.jvp(total, (logits,), (logits,))
    with forward_ad.dual_level(), pytest.raises(InputError, match=message):
        total(forward_ad.make_dual(logits, logits))


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # read by opcheck itself
@pytest.mark.parametrize("masked", [True, False])
def test_opcheck(kernels, masked):
    logits, ids = normal(3, 21), tokens(3, 4, 21)
    mask = torch.tensor([True, False, True] if masked else [], dtype=torch.bool)
    ops = torch.ops.petkit
    torch.library.opcheck(ops.selected_log_probs.default, (logits.clone().requires_grad_(), ids, mask, 0.9))
    _, _, maximum, log_sum = ops.selected_log_probs(logits, ids, mask, 0.9)
    arguments = (logits, ids, mask, maximum, log_sum, normal(3, 4, seed=3), 0.9)
    torch.library.opcheck(ops.selected_log_probs_backward.default, arguments)
    torch.library.opcheck(ops.selected_log_probs_backward_.default, arguments)


@pytest.mark.parametrize("overwrite", [False, True])
def test_under_compile(overwrite):
    def run(x, ids, mask):
        found = selected_log_probs(x * 2, ids, mask, 0.9, overwrite)
        return found.log_probs * 3, found.entropy

    logits, ids, mask = normal(2, 3, 20), tokens(6, 4, 20).view(2, 3, 4), torch.tensor([[1, 0, 1], [1, 1, 0]])
    results = []
    for call in (torch.compile(run, backend="aot_eager", fullgraph=True), run):
        live = logits.clone().requires_grad_()
        found = call(live, ids, mask)
        found[0].sum().backward()
        results.append((*(part.detach() for part in found), live.grad))
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


IDS = torch.zeros((2, 1), dtype=torch.int64)
REFUSALS = [
    (
        {"logits": torch.zeros(2, 3).double()},
        "logits must be float32, bfloat16 or float16, got torch.float64",
    ),
    ({"logits": [[0.0]]}, "logits must be a tensor, got list"),
    ({"logits": torch.zeros(2, 0)}, r"logits must be \(..., vocab\) with vocab >= 1, got \(2, 0\)"),
    ({"logits": torch.tensor(1.0)}, r"logits must be \(..., vocab\) with vocab >= 1, got \(\)"),
    ({"token_ids": [[0], [1]]}, "token_ids must be a tensor, got list"),
    (
        {"token_ids": IDS.float()},
        r"token_ids must be integers \(2,\) and one dimension more for logits \(2, 3\)",
    ),
    ({"token_ids": IDS.bool()}, r"token_ids must be integers .* got torch.bool \(2, 1\)"),
    ({"token_ids": IDS[:, 0]}, r"token_ids must be integers .* got torch.int64 \(2,\)"),
    ({"token_ids": IDS[:1]}, r"token_ids must be integers .* got torch.int64 \(1, 1\)"),
    ({"token_ids": IDS[0, 0]}, r"token_ids must be integers .* got torch.int64 \(\)"),
    ({"token_ids": IDS + 3}, "token_ids must lie between 0 and 2, got 3"),
    ({"token_ids": IDS - 100}, "token_ids must lie between 0 and 2, got -100"),
    ({"token_ids": IDS - 1, "mask": torch.tensor([0, 1])}, "token_ids must lie between 0 and 2, got -1"),
    ({"mask": torch.ones(2, 1)}, r"mask must be \(2,\) for logits \(2, 3\), got \(2, 1\)"),
    ({"temperature": -1.0}, "temperature must lie between 1e-30 and 1e.30, got -1.0"),
    ({"temperature": None}, "temperature must be a number, got None"),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_refusals(change, message):
    with pytest.raises(InputError, match=message):
        selected_log_probs(**{"logits": torch.zeros(2, 3), "token_ids": IDS} | change)


@pytest.mark.parametrize("temperature", [1e-30, 1e30])
def test_the_limits_of_the_temperature(kernels, temperature):
    logits = torch.tensor([[3.0, 3.0, 1.0], [1e4, -1e4, 9999.0], [1.0, -INFINITE, 0.0]])
    found = selected_log_probs(logits, torch.tensor([[0], [0], [0]]), temperature=temperature)
    # Frozen, only the largest logits are left; boiling, all possible ones are alike.
    left = np.array([2, 1, 1] if temperature < 1 else [3, 3, 2])
    np.testing.assert_allclose(exact(found.log_probs[:, 0]), -np.log(left), rtol=0, atol=NATS)
    np.testing.assert_allclose(exact(found.entropy), np.log(left), rtol=0, atol=NATS)
    gradient, _ = gradient_of(
        logits, torch.tensor([[0], [0], [0]]), torch.ones(3, 1), temperature=temperature
    )
    assert gradient.isfinite().all()


def test_the_operator_itself_refuses_what_would_read_out_of_bounds():
    if not torch._C._dispatch_has_kernel_for_dispatch_key("petkit::selected_log_probs", "CPU"):
        pytest.skip("the default has torch's own bounds checks")
    ops, none, rows = torch.ops.petkit, torch.empty(0, dtype=torch.bool), torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match="token_ids must lie between 0 and 2, got 7 in row 1"):
        ops.selected_log_probs(rows, torch.tensor([[0], [7]]), none, 1.0)
    with pytest.raises(RuntimeError, match="token_ids must have 2 rows, got 1"):
        ops.selected_log_probs(rows, IDS[:1], none, 1.0)
    with pytest.raises(RuntimeError, match="mask must hold one value for each of 2 rows, got 3"):
        ops.selected_log_probs(rows, IDS, torch.ones(3, dtype=torch.bool), 1.0)
    column = torch.ones(2)
    with pytest.raises(RuntimeError, match="belong to 2 rows of 1 tokens, got 2, 2 and 1 values"):
        ops.selected_log_probs_backward(rows, IDS, none, column, column, column[:1], 1.0)
    with pytest.raises(RuntimeError, match="token_ids must lie between 0 and 2, got 3 in row 0"):
        ops.selected_log_probs_backward(rows, IDS + 3, none, column, column, column, 1.0)
    with pytest.raises(RuntimeError, match="logits must be contiguous to be overwritten"):
        ops.selected_log_probs_backward_(torch.zeros(3, 2).T, IDS, none, column, column, column, 1.0)


def test_overwriting_allocates_nothing_of_the_logits_size():
    if not _library.backend()["compiled"]:
        pytest.skip("the default takes several rows at a time")
    values, ids = normal(64, 152_064 // 4, dtype=torch.bfloat16), tokens(64, 65, 152_064 // 4)
    added = []
    for overwrite in (False, True):
        logits = computed(values)
        total = selected_log_probs(logits, ids, overwrite=overwrite).log_probs.sum()
        added.append(peak_extra_bytes(lambda total=total, logits=logits: torch.autograd.grad(total, logits)))
    if added[0] is None:
        pytest.skip("no writable /proc/self/clear_refs on this system")
    assert added[0] > 0.9 * values.nbytes
    assert added[1] < 0.1 * values.nbytes


rows_of_logits = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40)


@given(rows_of_logits)
def test_all_probabilities_add_up_to_one(values):
    logits = torch.tensor([values])
    found = selected_log_probs(logits, torch.arange(len(values))[None])
    assert float(found.log_probs.double().exp().sum()) == pytest.approx(1, abs=1e-5)
    entropy = -(found.log_probs.double().exp() * found.log_probs.double()).sum()
    assert float(found.entropy) == pytest.approx(float(entropy), abs=2e-5)


@given(rows_of_logits, st.integers(-1000, 1000))
def test_adding_a_constant_to_a_row_changes_nothing(values, offset):
    # Sixteenths, so that no logit is rounded by the addition.
    logits, ids = (torch.tensor([values]) * 16).round() / 16, torch.arange(len(values))[None]
    for one, two in zip(
        selected_log_probs(logits, ids), selected_log_probs(logits + offset, ids), strict=True
    ):
        assert torch.equal(one, two)


@given(rows_of_logits, st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=6), st.randoms())
def test_the_gradient_is_linear_in_the_tokens_and_sums_to_zero(values, weights, random):
    logits = torch.tensor([values])
    ids = torch.tensor([[random.randrange(len(values)) for _ in weights]])
    upstream = torch.tensor([weights])
    whole, _ = gradient_of(logits, ids, upstream)
    parts = [gradient_of(logits, ids[:, j : j + 1], upstream[:, j : j + 1])[0] for j in range(len(weights))]
    np.testing.assert_allclose(exact(whole), exact(torch.cat(parts)).sum(0, keepdims=True), rtol=0, atol=2e-5)
    assert float(whole.double().sum()) == pytest.approx(0, abs=2e-5)


def test_the_result_says_what_is_what():
    assert SelectedLogProbs._fields == ("log_probs", "entropy")
