from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from petkit.benchmarks.harness import peak_extra_bytes
from petkit.errors import InputError
from petkit.ops import Divergence, _library, divergence
from tests.ops.row_cases import (
    BETAS,
    DTYPES,
    LARGE,
    NATS,
    ROUNDING,
    SHAPES,
    computed,
    every_other,
    exact,
    normal,
    pair,
)
from tests.ops.row_cases import divergence_gradient as gradient_of
from tests.reference import divergence as reference
from tests.threads import threads

INFINITE = torch.inf


def check(student, teacher, beta, temperature=1.0):
    """Results, gradient and overwriting gradient of flat rows of logits against the reference."""
    found = divergence(student, teacher, beta, temperature=temperature)
    expected = reference.divergence(exact(student), exact(teacher), beta, temperature)
    for name, values in expected.items():
        got = getattr(found, name)
        assert got.dtype == torch.float32
        np.testing.assert_allclose(exact(got), values, rtol=2e-6, atol=NATS, err_msg=name)
    upstream = normal(len(student), scale=1.0, seed=7)
    gradient, _ = gradient_of(student, teacher, upstream, beta, temperature=temperature)
    wanted = reference.gradient(exact(student), exact(teacher), exact(upstream), beta, temperature)
    assert gradient.dtype == student.dtype
    # Float32 rounds differences of logits, in units of the temperature, relative to their size.
    apart = np.abs(exact(student) - exact(teacher)).max(initial=0) / temperature
    bound = (3e-6 + 2e-7 * apart) / temperature
    np.testing.assert_allclose(exact(gradient), wanted, rtol=ROUNDING[student.dtype], atol=bound)
    there, overwritten = gradient_of(
        student, teacher, upstream, beta, temperature=temperature, overwrite=True
    )
    assert torch.equal(there, gradient)
    assert overwritten or not student.numel()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_reference(kernels, shape, beta):
    check(*pair(*shape), beta)


@pytest.mark.parametrize("shape", LARGE)
def test_matches_the_reference_where_there_is_much(kernels, shape):
    check(*pair(*shape), 0.5)


@pytest.mark.parametrize("of_student", DTYPES)
@pytest.mark.parametrize("of_teacher", DTYPES)
@pytest.mark.parametrize("beta", [0, 0.5, 1])
def test_each_side_has_a_dtype_of_its_own(kernels, of_student, of_teacher, beta):
    check(*pair(3, 2059, dtypes=(of_student, of_teacher)), beta)


@pytest.mark.parametrize("temperature", [0.3, 0.9, 4.0])
@pytest.mark.parametrize("beta", BETAS)
def test_temperature(kernels, beta, temperature):
    check(*pair(4, 100), beta, temperature)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("scale", "offset"), [(0.0, 0.0), (0.01, 0.0), (30.0, 0.0), (3.0, 1e4), (3.0, -1e4)])
def test_flat_peaked_and_far_from_zero(kernels, scale, offset, beta):
    student, teacher = pair(3, 3001, scale=scale)
    check(student + offset, teacher - offset, beta)


@pytest.mark.parametrize("beta", BETAS)
def test_logits_of_ten_thousand(kernels, beta):
    for dtype in DTYPES:
        student, teacher = pair(4, 100, scale=4000.0, dtypes=(dtype, dtype))
        student[0], teacher[0] = student[0].clamp(-1e4, 1e4), student[0].clamp(-1e4, 1e4)
        check(student, teacher, beta)


@pytest.mark.parametrize("beta", [1e-300, 1e-12, 1e-4, 0.9999, 1 - 1e-12, 1 - 2.0**-53])
def test_beta_next_to_its_ends(kernels, beta):
    student, teacher = pair(3, 70)
    expected = reference.divergence(exact(student), exact(teacher), beta)["loss"]
    # The logarithm of 1 - beta, at most 37, is rounded to float32 in every term.
    np.testing.assert_allclose(exact(divergence(student, teacher, beta).loss), expected, rtol=0, atol=NATS)
    gradient, _ = gradient_of(student, teacher, torch.ones(3), beta)
    wanted = reference.gradient(exact(student), exact(teacher), np.ones(3), beta)
    np.testing.assert_allclose(exact(gradient), wanted, rtol=0, atol=1e-5)


def test_gradient_against_finite_differences():
    """Judges the reference, which judges the rest."""
    student, teacher = (exact(part) for part in pair(2, 6))
    upstream = np.array([0.3, -1.7])
    for beta in BETAS:
        expected = np.zeros_like(student)
        for place in np.ndindex(student.shape):
            step = np.zeros_like(student)
            step[place] = 1e-6
            up, down = (
                reference.divergence(student + sign * step, teacher, beta, 0.8)["loss"] for sign in (1, -1)
            )
            expected[place] = (upstream * (up - down)).sum() / 2e-6
        got = reference.gradient(student, teacher, upstream, beta, 0.8)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-8)


def test_any_shape_and_strides(kernels):
    student, teacher = pair(2, 3, 4, 33)
    mask = torch.tensor([1, 0, 1, 1]).expand(2, 3, 4)
    plain = divergence(student, teacher, 0.3, mask)
    assert plain.loss.shape == (2, 3, 4)
    strided = divergence(every_other(student), every_other(teacher), 0.3, every_other(mask * 1.0))
    for got, expected in zip(strided, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=1e-6)
    assert divergence(student[0, 0, 0], teacher[0, 0, 0]).loss.shape == ()
    live = every_other(student).requires_grad_()
    divergence(live, teacher, 0.3, mask).loss.backward(torch.ones(2, 3, 4))
    gradient, _ = gradient_of(student, teacher, torch.ones(2, 3, 4), 0.3, mask)
    torch.testing.assert_close(live.grad, gradient, rtol=2e-6, atol=1e-6)
    turned = teacher.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    torch.testing.assert_close(divergence(student, turned, 0.3, mask).loss, plain.loss, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
def test_no_rows(kernels, shape):
    live = computed(torch.zeros(shape))
    found = divergence(live, torch.zeros(shape), mask=torch.ones(shape[:-1]), overwrite=True)
    assert found.loss.shape == shape[:-1]
    found.loss.sum().backward()


def impossible():
    """Rows with tokens that are impossible to: both sides, the student, the teacher, each some."""
    student, teacher = pair(5, 2100)
    student[0, 5:50] = teacher[0, 5:50] = -INFINITE
    student[1, 7:2060] = -INFINITE
    teacher[2, 7:2060] = -INFINITE
    student[3, ::3] = teacher[3, 1::3] = -INFINITE
    student[4, 1:] = teacher[4, 1:] = -INFINITE
    return student, teacher


@pytest.mark.parametrize("beta", BETAS)
def test_impossible_tokens(kernels, beta):
    student, teacher = impossible()
    found = divergence(student, teacher, beta)
    expected = reference.divergence(exact(student), exact(teacher), beta)
    for name, values in expected.items():
        np.testing.assert_allclose(exact(getattr(found, name)), values, rtol=2e-6, atol=NATS, err_msg=name)
    assert found.forward_kl.isinf().tolist() == [False, True, False, True, False]
    assert found.reverse_kl.isinf().tolist() == [False, False, True, True, False]
    upstream = torch.tensor([1.0, 0.5, -1.0, 2.0, 1.0])
    gradient, _ = gradient_of(student, teacher, upstream, beta)
    wanted = reference.gradient(exact(student), exact(teacher), exact(upstream), beta)
    finite = np.isfinite(expected["loss"]) if beta == 1 else np.full(5, True)
    np.testing.assert_allclose(exact(gradient)[finite], wanted[finite], rtol=2e-6, atol=3e-6)
    assert not gradient[(student == -INFINITE) & (teacher == -INFINITE)].any()
    if beta > 0:
        assert not gradient[student == -INFINITE].any()
    # Of an infinite reverse divergence there is no gradient, and none is made up.
    for row in np.flatnonzero(~finite):
        assert not gradient[row].isfinite().all()
    there, _ = gradient_of(student, teacher, upstream, beta, overwrite=True)
    assert torch.equal(there.nan_to_num(), gradient.nan_to_num())


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("side", [0, 1])
def test_a_row_without_any_possible_token(kernels, side, beta):
    sides = pair(3, 100)
    sides[side][1] = -INFINITE
    spoils_one_row(*sides, beta)


@pytest.mark.parametrize("beta", [0, 0.5, 1])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("bad", [torch.nan, INFINITE])
@pytest.mark.parametrize("place", [0, 2047, 2098])
def test_nan_and_infinity_spoil_their_row_and_no_other(kernels, bad, place, side, beta):
    sides = pair(3, 2099)
    sides[side][1, place] = bad
    spoils_one_row(*sides, beta)


def spoils_one_row(student, teacher, beta):
    """The second of three rows is nan, gradient and all; the others are as they are alone."""
    found = divergence(student, teacher, beta)
    others = divergence(student[[0, 2]], teacher[[0, 2]], beta)
    for name in Divergence._fields:
        assert getattr(found, name)[1].isnan(), name
        assert torch.equal(getattr(found, name)[[0, 2]], getattr(others, name))
    expected, _ = gradient_of(student[[0, 2]], teacher[[0, 2]], torch.ones(2), beta)
    for overwrite in (False, True):
        gradient, _ = gradient_of(student, teacher, torch.ones(3), beta, overwrite=overwrite)
        assert gradient[1].isnan().all()
        assert torch.equal(gradient[[0, 2]], expected)


@pytest.mark.parametrize("beta", [0, 0.4, 1])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_rows_may_hold_anything(kernels, dtype, overwrite, beta):
    student, teacher = pair(20, 2060, dtypes=(dtype, dtype))
    mask = torch.arange(20) % 3 != 1
    upstream = normal(20, scale=1.0, seed=3)
    kept = divergence(student[mask], teacher[mask], beta)
    expected, _ = gradient_of(student[mask], teacher[mask], upstream[mask], beta)
    student[~mask], teacher[~mask], upstream[~mask] = torch.nan, INFINITE, torch.nan
    for given_mask in (mask, mask.int(), mask.float()):
        found = divergence(student, teacher, beta, given_mask)
        gradient, _ = gradient_of(student, teacher, upstream, beta, given_mask, overwrite=overwrite)
        for got, values in zip(found, kept, strict=True):
            assert torch.equal(got[mask], values)
            assert not got[~mask].any()
        assert torch.equal(gradient[mask], expected)
        assert not gradient[~mask].any()


@pytest.mark.parametrize("overwrite", [False, True])
def test_all_rows_masked(kernels, overwrite):
    student = torch.full((3, 40), torch.nan)
    mask = torch.zeros(3, dtype=torch.bool)
    assert not divergence(student, student, 0.5, mask).loss.any()
    gradient, _ = gradient_of(student, student, torch.ones(3), 0.5, mask, overwrite=overwrite)
    assert not gradient.any()


def test_threads_do_not_change_a_bit(kernels):
    student, teacher = pair(40, 2500)
    upstream = normal(40, seed=5)
    results = []
    for count in (1, 3):
        with threads(count):
            results.append((*divergence(student, teacher), gradient_of(student, teacher, upstream)[0]))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
    for row in (0, 17):
        alone = divergence(student[row : row + 1], teacher[row : row + 1])
        assert torch.equal(alone.loss[0], results[0][0][row])


def test_the_loss_alone_has_a_gradient(kernels):
    found = divergence(computed(torch.zeros(2, 3)), torch.zeros(2, 3))
    assert found.loss.requires_grad
    assert not found.forward_kl.requires_grad
    assert not found.reverse_kl.requires_grad


def test_an_expanded_upstream_gradient(kernels):
    student, teacher = pair(4, 30)
    expected, _ = gradient_of(student, teacher, torch.full((4,), 0.5))
    live = student.clone().requires_grad_()
    (divergence(live, teacher).loss.sum() * 0.5).backward()
    assert torch.equal(live.grad, expected)


def test_the_gradient_reaches_what_made_the_logits(kernels):
    """A view, a bias and a matrix in between, as in a model."""
    hidden, weight, teacher = (
        normal(2, 3, 5, scale=1.0),
        normal(40, 5, scale=1.0, seed=1),
        normal(2, 3, 40, seed=2),
    )
    grads = []
    for overwrite in (False, True):
        live = weight.clone().requires_grad_()
        logits = torch.nn.functional.linear(hidden, live, torch.ones(40))
        divergence(logits, teacher, overwrite=overwrite).loss.mean().backward()
        grads.append(live.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("overwrite", [False, True])
def test_under_activation_checkpointing_and_saved_tensor_hooks(overwrite):
    hidden, weight, teacher = normal(6, 5, scale=1.0), normal(40, 5, scale=1.0, seed=1), normal(6, 40, seed=2)

    def loss(live):
        logits = torch.nn.functional.linear(hidden, live)
        return divergence(logits, teacher, overwrite=overwrite).loss.mean()

    def checkpointed(live):
        return checkpoint(loss, live, use_reentrant=False)

    def reentrant(live):
        return checkpoint(loss, live, use_reentrant=True)

    def offloaded(live):
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved):
            return loss(live)

    grads = []
    for run in (loss, checkpointed, reentrant, offloaded):
        live = weight.clone().requires_grad_()
        run(live).backward()
        grads.append(live.grad)
    for other in grads[1:]:
        assert torch.equal(other, grads[0])


def test_a_second_backward_pass_needs_the_logits(kernels):
    student, teacher = pair(2, 9)
    live = student.requires_grad_()
    loss = divergence(live * 1, teacher).loss.sum()
    loss.backward(retain_graph=True)
    first = live.grad.clone()
    loss.backward()
    assert torch.equal(live.grad, 2 * first)
    loss = divergence(live * 1, teacher, overwrite=True).loss.sum()
    loss.backward(retain_graph=True)
    with pytest.raises(
        InputError, match="divergence has overwritten its logits by their gradient: for a second"
    ):
        loss.backward()


def test_whatever_else_needs_overwritten_logits_says_so(kernels):
    """Were the overwriting not told to torch, these gradients would be silently wrong."""
    student, teacher = pair(2, 9)
    live = student.requires_grad_()
    squashed = torch.tanh(live)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        divergence(squashed, teacher, overwrite=True).loss.sum().backward()
    logits = live * 1
    one = divergence(logits, teacher, overwrite=True).loss.sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (one + divergence(logits, teacher, overwrite=True).loss.sum()).backward()


@pytest.mark.parametrize("beta", BETAS)
def test_without_gradients_nothing_is_overwritten(kernels, beta):
    student, teacher = pair(2, 9)
    logits = computed(student)
    with torch.no_grad():
        assert not divergence(logits, teacher, beta, overwrite=True).loss.requires_grad
    assert torch.equal(logits, student)
    still = student.clone()
    assert not divergence(still, teacher, beta, overwrite=True).loss.requires_grad
    assert torch.equal(still, student)


def test_the_teacher_may_be_a_part_of_the_same_tensor(kernels):
    both = normal(4, 50)
    expected, _ = gradient_of(both[:2], both[2:], torch.ones(2))
    logits = computed(both)
    loss = divergence(logits[:2], logits[2:].detach(), overwrite=True).loss
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.equal(gradient[:2], expected)
    assert not gradient[2:].any()


def test_overwriting_is_refused_where_it_would_do_harm():
    student, teacher = pair(4, 9)
    leaf = student.clone().requires_grad_()
    part = torch.cat([student, student])[:4].requires_grad_()
    for harmed in (leaf, leaf[:], leaf.view(4, 3, 3).view(4, 9), part):
        with pytest.raises(InputError, match=r"student_logits must come from a computation .* got a leaf"):
            divergence(harmed, teacher, overwrite=True)
    assert torch.equal(leaf, student)
    with pytest.raises(InputError, match=r"student_logits must be contiguous .* got strides \(1, 4\)"):
        divergence((leaf * 1).T.contiguous().T, teacher, overwrite=True)
    logits = leaf * 1
    for teacher_inside in (logits.detach(), logits.detach()[1:]):
        with pytest.raises(InputError, match="cannot overwrite logits in whose memory another"):
            divergence(logits[: len(teacher_inside)], teacher_inside, overwrite=True)
    loss = divergence(logits, teacher, overwrite=True).loss.sum()
    with pytest.raises(InputError, match=r"divergence can be differentiated once, .*create_graph=True"):
        torch.autograd.grad(loss, leaf, create_graph=True)


def test_a_second_derivative_is_refused(kernels):
    student, teacher = pair(2, 9)
    live = student.requires_grad_()
    (gradient,) = torch.autograd.grad(divergence(live, teacher).loss.sum(), live, create_graph=True)
    with pytest.raises(InputError, match="divergence can be differentiated once"):
        torch.autograd.grad((gradient**2).sum(), live)


# torch's own forward mode uses what torch deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("overwrite", [False, True])
def test_transforms_of_torch_func(overwrite):
    student, teacher = pair(3, 7)

    def loss(x):
        return divergence(x * 1, teacher, overwrite=overwrite).loss.sum()

    message = r"divergence has no derivatives by torch\.func \(grad, jacrev, jvp\) and in forward mode"
    for derive in (torch.func.grad(loss), torch.func.jacrev(loss)):
        with pytest.raises(InputError, match=message):
            derive(student)
    with pytest.raises(InputError, match=message):
        torch.func.jvp(loss, (student,), (student,))
    with pytest.raises(InputError, match=message):
        torch.func.jvp(lambda x: divergence(student, x).loss, (teacher,), (student,))
    with forward_ad.dual_level(), pytest.raises(InputError, match=message):
        loss(forward_ad.make_dual(student, student))


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # read by opcheck itself
@pytest.mark.parametrize("beta", [0, 0.3, 1])
@pytest.mark.parametrize("masked", [True, False])
def test_opcheck(kernels, beta, masked):
    student, teacher = pair(3, 21, dtypes=(torch.float32, torch.bfloat16))
    mask = torch.tensor([True, False, True] if masked else [], dtype=torch.bool)
    ops = torch.ops.petkit
    torch.library.opcheck(
        ops.divergence.default, (student.clone().requires_grad_(), teacher, mask, beta, 0.9)
    )
    statistics = ops.divergence(student, teacher, mask, beta, 0.9)[-1]
    arguments = (student, teacher, mask, statistics, normal(3, seed=3), beta, 0.9)
    torch.library.opcheck(ops.divergence_backward.default, arguments)
    torch.library.opcheck(ops.divergence_backward_.default, arguments)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("beta", [0, 0.3, 1])
def test_under_compile(beta, overwrite):
    def run(x, teacher, mask):
        found = divergence(x * 2, teacher, beta, mask, 0.9, overwrite)
        return found.loss * 3, found.forward_kl, found.reverse_kl

    student, teacher = pair(2, 3, 20)
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]])
    results = []
    for call in (torch.compile(run, backend="aot_eager", fullgraph=True), run):
        live = student.clone().requires_grad_()
        found = call(live, teacher, mask)
        found[0].sum().backward()
        results.append((*(part.detach() for part in found), live.grad))
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


REFUSALS = [
    (
        {"student_logits": torch.zeros(2, 3).double()},
        "student_logits must be float32, bfloat16 or float16, got",
    ),
    (
        {"teacher_logits": torch.zeros(2, 3).double()},
        "teacher_logits must be float32, bfloat16 or float16, got",
    ),
    ({"student_logits": [[0.0, 1.0]]}, "student_logits must be a tensor, got list"),
    (
        {"teacher_logits": torch.zeros(3, 3)},
        r"teacher_logits must be \(2, 3\) as student_logits are, got \(3, 3\)",
    ),
    (
        {"teacher_logits": torch.zeros(3)},
        r"teacher_logits must be \(2, 3\) as student_logits are, got \(3,\)",
    ),
    ({"teacher_logits": torch.zeros(2, 3, requires_grad=True)}, "teacher_logits must not require a gradient"),
    ({"beta": -0.1}, "beta must be a number between 0 and 1, got -0.1"),
    ({"beta": 1.5}, "beta must be a number between 0 and 1, got 1.5"),
    ({"beta": float("nan")}, "beta must be a number between 0 and 1, got nan"),
    ({"beta": True}, "beta must be a number between 0 and 1, got True"),
    ({"beta": "0.5"}, "beta must be a number between 0 and 1, got '0.5'"),
    ({"beta": None}, "beta must be a number between 0 and 1, got None"),
    ({"beta": torch.tensor(0.5)}, "beta must be a number between 0 and 1, got tensor"),
    ({"temperature": 0.0}, "temperature must lie between 1e-30 and 1e.30, got 0.0"),
    ({"temperature": float("nan")}, "temperature must lie between .* got nan"),
    ({"temperature": "1"}, "temperature must be a number, got '1'"),
    ({"mask": torch.ones(3)}, r"mask must be \(2,\) for logits \(2, 3\), got \(3,\)"),
    ({"mask": torch.ones(2, 3)}, r"mask must be \(2,\) for logits \(2, 3\), got \(2, 3\)"),
    ({"mask": [1, 1]}, "mask must be a tensor, got list"),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_refusals(change, message):
    arguments = {"student_logits": torch.zeros(2, 3), "teacher_logits": torch.zeros(2, 3)}
    with pytest.raises(InputError, match=message):
        divergence(**arguments | change)


@pytest.mark.parametrize("shape", [(), (2, 0)])
def test_a_vocabulary_is_needed(shape):
    with pytest.raises(InputError, match=r"student_logits must be \(..., vocab\) with vocab >= 1, got"):
        divergence(torch.zeros(shape), torch.zeros(shape))


def test_numbers_of_numpy_are_numbers(kernels):
    student, teacher = pair(2, 9)
    found = divergence(student, teacher, np.float32(0.5), temperature=np.float32(0.5))
    assert torch.equal(found.loss, divergence(student, teacher, 0.5, temperature=0.5).loss)


@pytest.mark.parametrize("temperature", [1e-30, 1e30])
@pytest.mark.parametrize("beta", BETAS)
def test_the_limits_of_the_temperature(kernels, beta, temperature):
    logits = torch.tensor([[3.0, 3.0, 1.0], [1e4, -1e4, 9999.0], [1.0, -INFINITE, 0.0]])
    found = divergence(logits, logits.clone(), beta, temperature=temperature)
    np.testing.assert_allclose(exact(found.loss), 0, atol=1e-6)
    gradient, _ = gradient_of(logits, logits.clone(), torch.ones(3), beta, temperature=temperature)
    # Rounding of the probabilities, over the temperature.
    assert float((gradient * temperature).abs().max()) < 1e-6


def test_the_operator_itself_refuses_what_would_read_out_of_bounds():
    if not torch._C._dispatch_has_kernel_for_dispatch_key("petkit::divergence", "CPU"):
        pytest.skip("the default has torch's own bounds checks")
    ops, none, rows = torch.ops.petkit, torch.empty(0, dtype=torch.bool), torch.zeros(2, 3)
    with pytest.raises(
        RuntimeError, match=r"teacher_logits must be \(2, 3\) as student_logits are, got \(2, 4\)"
    ):
        ops.divergence(rows, torch.zeros(2, 4), none, 0.5, 1.0)
    with pytest.raises(RuntimeError, match="mask must hold one value for each of 2 rows, got 1"):
        ops.divergence(rows, rows, torch.ones(1, dtype=torch.bool), 0.5, 1.0)
    with pytest.raises(RuntimeError, match="mask must be Bool, got Float"):
        ops.divergence(rows, rows, torch.ones(2), 0.5, 1.0)
    with pytest.raises(RuntimeError, match="beta must lie between 0 and 1, got 2"):
        ops.divergence(rows, rows, none, 2.0, 1.0)
    with pytest.raises(RuntimeError, match="must belong to 2 rows, got 10 and 1 values"):
        ops.divergence_backward(rows, rows, none, torch.ones(2, 5), torch.ones(1), 0.5, 1.0)
    with pytest.raises(RuntimeError, match="student_logits must be contiguous to be overwritten"):
        ops.divergence_backward_(torch.zeros(3, 2).T, rows, none, torch.ones(2, 5), torch.ones(2), 0.5, 1.0)


@pytest.mark.parametrize("beta", [0, 0.5, 1])
def test_overwriting_allocates_nothing_of_the_logits_size(beta):
    if not _library.backend()["compiled"]:
        pytest.skip("the default takes several rows at a time")
    student, teacher = pair(64, 152_064 // 4, dtypes=(torch.bfloat16, torch.bfloat16))
    added = []
    for overwrite in (False, True):
        logits = computed(student)
        loss = divergence(logits, teacher, beta, overwrite=overwrite).loss.sum()
        added.append(peak_extra_bytes(lambda loss=loss, logits=logits: torch.autograd.grad(loss, logits)))
    if added[0] is None:
        pytest.skip("no writable /proc/self/clear_refs on this system")
    assert added[0] > 0.9 * student.nbytes
    assert added[1] < 0.1 * student.nbytes
