"""Divergences over all tokens against plain float64, TRL, and their own laws."""

import pytest
import torch

from petkit import losses
from petkit.errors import InputError
from petkit.losses import forward_kl, jsd, reverse_kl

NAN = float("nan")
SHAPE = (3, 4, 37)


def logits(seed, spread=3.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [(spread * torch.randn(SHAPE, generator=generator)).to(dtype) for _ in range(2)]


def some(seed):
    return torch.rand(SHAPE[:2], generator=torch.Generator().manual_seed(seed)) < 0.6


def plain(student, teacher, beta, mask, temperature):
    """The definition, in float64, from logs of softmaxes."""
    log_q = torch.log_softmax(student.double() / temperature, -1)
    log_p = torch.log_softmax(teacher.double() / temperature, -1)
    p, q = log_p.exp(), log_q.exp()
    if beta == 0:
        rows = (p * (log_p - log_q)).sum(-1)
    elif beta == 1:
        rows = (q * (log_q - log_p)).sum(-1)
    else:
        log_m = (beta * p + (1 - beta) * q).log()
        rows = beta * (p * (log_p - log_m)).sum(-1) + (1 - beta) * (q * (log_q - log_m)).sum(-1)
    return rows.mean() if mask is None else rows[mask].mean()


def gradients(function, student, teacher, *settings):
    leaf = student.detach().clone().requires_grad_()
    value = function(leaf, teacher, *settings)
    value.backward()
    return value.detach(), leaf.grad


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
@pytest.mark.parametrize("beta", [0.0, 1.0, 0.5, 0.1, 0.9])
def test_values_and_gradients_are_those_of_float64(beta, temperature, masked):
    student, teacher = logits(1)
    mask = some(2) if masked else None
    value, gradient = gradients(jsd, student, teacher, beta, mask, temperature)
    wanted, slope = gradients(plain, student.double(), teacher, beta, mask, temperature)
    torch.testing.assert_close(value.double(), wanted, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-5, atol=1e-6)
    assert value.dtype == gradient.dtype == torch.float32


@pytest.mark.parametrize(("named", "beta"), [(forward_kl, 0.0), (reverse_kl, 1.0)])
def test_named_divergences_are_the_ends_of_jsd(named, beta):
    student, teacher = logits(3)
    mask = some(4)
    wanted = plain(student, teacher, beta, mask, 2.0)
    torch.testing.assert_close(named(student, teacher, mask, 2.0).double(), wanted, rtol=2e-6, atol=0)
    torch.testing.assert_close(jsd(student, teacher, beta, mask, 2.0), named(student, teacher, mask, 2.0))


def test_the_default_is_the_symmetric_divergence():
    student, teacher = logits(5)
    assert torch.equal(jsd(student, teacher), jsd(student, teacher, 0.5))
    torch.testing.assert_close(jsd(student, teacher), jsd(teacher, student), rtol=1e-5, atol=0)


def test_no_factor_of_the_temperature_is_on_it():
    student, teacher = logits(6)
    torch.testing.assert_close(
        forward_kl(student, teacher, None, 8.0), forward_kl(student / 8, teacher / 8), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_laws(beta):
    student, teacher = logits(7, spread=5.0)
    assert float(jsd(student, student, beta)) == pytest.approx(0, abs=1e-6)
    value = float(jsd(student, teacher, beta))
    assert value > 0
    if beta == 0.5:
        assert value <= torch.tensor(2.0).log()
    torch.testing.assert_close(
        jsd(student + 7, teacher - 3, beta), jsd(student, teacher, beta), rtol=1e-4, atol=0
    )
    # The gradient of a distribution's logits sums to 0.
    _, gradient = gradients(jsd, student, teacher, beta)
    assert gradient.sum(-1).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float32(dtype):
    student, teacher = logits(8, dtype=dtype)
    value, gradient = gradients(jsd, student, teacher, 0.5, some(9), 1.5)
    wanted, slope = gradients(plain, student.double(), teacher, 0.5, some(9), 1.5)
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(value.double(), wanted, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(gradient.double(), slope, rtol=2.0**-8, atol=1e-6)


@pytest.mark.parametrize("function", [forward_kl, reverse_kl, jsd])
def test_what_is_behind_a_mask_does_not_matter(function):
    student, teacher = logits(10)
    mask = some(11)
    clean = function(student, teacher, mask=mask)
    for side in (student, teacher):
        side[~mask] = NAN
    leaf = student.clone().requires_grad_()
    value = function(leaf, teacher, mask=mask)
    value.backward()
    assert torch.equal(value, clean)
    assert (leaf.grad[~mask] == 0).all()
    assert leaf.grad[mask].isfinite().all()


@pytest.mark.parametrize("function", [forward_kl, reverse_kl, jsd])
def test_all_masked_is_refused(function):
    student, teacher = logits(12)
    with pytest.raises(InputError, match="at least one token that counts, got none of 12"):
        function(student, teacher, mask=torch.zeros(SHAPE[:2]))
    with pytest.raises(InputError, match=r"mask must be \(3, 4\)"):
        function(student, teacher, mask=torch.ones(4, 3))


def test_a_gradient_may_take_the_place_of_the_logits():
    student, teacher = logits(13)
    _, wanted = gradients(jsd, student, teacher, 0.3, some(14))
    leaf = student.clone().requires_grad_()
    computed = leaf * 1
    jsd(computed, teacher, 0.3, some(14), overwrite=True).backward()
    assert torch.equal(leaf.grad, wanted)
    torch.testing.assert_close(computed.detach(), wanted, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_trl_agrees(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    pytest.importorskip("trl")
    try:
        from trl.experimental.gkd import GKDTrainer
    except ImportError as error:
        pytest.skip(f"trl without its GKD trainer: {error}")
    student, teacher = logits(15)
    for beta in (0.0, 0.25, 0.5, 1.0):
        for temperature in (1.0, 3.0):
            first, second = student.clone().requires_grad_(), student.clone().requires_grad_()
            wanted = GKDTrainer.generalized_jsd_loss(
                first, teacher, beta=beta, temperature=temperature, reduction="sum"
            ) / (SHAPE[0] * SHAPE[1])
            value = jsd(second, teacher, beta, None, temperature)
            torch.testing.assert_close(value, wanted, rtol=2e-5, atol=1e-6)
            wanted.backward()
            value.backward()
            torch.testing.assert_close(second.grad, first.grad, rtol=1e-3, atol=1e-6)


def test_names_load_on_first_use():
    assert set(dir(losses)) == set(losses.__all__)
    assert all(callable(getattr(losses, name)) for name in losses.__all__)
    with pytest.raises(AttributeError, match=r"module 'petkit.losses' has no attribute 'forward'"):
        _ = losses.forward


@pytest.mark.parametrize("function", [forward_kl, reverse_kl, jsd])
@pytest.mark.parametrize("value", [NAN, float("inf")])
@pytest.mark.parametrize("side", ["student_logits", "teacher_logits"])
def test_logits_that_are_no_distribution_are_named(function, value, side):
    student, teacher = logits(13)
    (student if side == "student_logits" else teacher)[1, 2, 5] = value
    with pytest.raises(InputError, match=f"{side} must be finite, or -inf .* at batch 1, token 2"):
        function(student, teacher)
    mask = torch.ones(SHAPE[:2], dtype=torch.bool)
    mask[1, 2] = False
    assert function(student, teacher, mask=mask).isfinite()


def test_an_impossible_token_is_no_error():
    student, teacher = logits(14)
    student[0, 0, 3] = -torch.inf
    assert forward_kl(student, teacher) == torch.inf
    assert reverse_kl(student, teacher).isfinite()
