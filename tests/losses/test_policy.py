"""PPO's clipped surrogate against its definition."""

import pytest
import torch

from petkit.errors import InputError
from petkit.losses import policy_gradient

NAN = float("nan")


def plain(log_probs, advantages, old, low, high):
    """-min(w A, clip(w) A) in float64, and its slope by cases."""
    ratio = (log_probs.double() - old.double()).exp()
    gain = advantages.double()
    values = -torch.minimum(ratio * gain, ratio.clamp(1 - low, 1 + high) * gain)
    stuck = ((gain > 0) & (ratio > 1 + high)) | ((gain < 0) & (ratio < 1 - low))
    return values, torch.where(stuck, 0.0, -ratio * gain)


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.5), (0.0, 0.0)])
@pytest.mark.parametrize("seed", range(5))
def test_values_and_gradients_are_those_of_the_definition(seed, low, high):
    generator = torch.Generator().manual_seed(seed)
    log_probs, noise, advantages = (torch.randn(4, 6, generator=generator) for _ in range(3))
    log_probs = -log_probs.abs()
    old, mask = log_probs + 0.4 * noise, torch.rand(4, 6, generator=generator) < 0.7
    leaf = log_probs.clone().requires_grad_()
    value = policy_gradient(leaf, advantages, mask, old, low, high)
    value.backward()
    values, slopes = plain(log_probs, advantages, old, low, high)
    torch.testing.assert_close(value.detach().double(), values[mask].mean(), rtol=1e-5, atol=1e-7)
    wanted = torch.where(mask, slopes, 0.0) / mask.sum()
    torch.testing.assert_close(leaf.grad.double(), wanted, rtol=1e-4, atol=1e-7)


def test_without_an_older_policy_the_slope_is_the_advantage():
    leaf = torch.full((2, 2), -1.0, requires_grad=True)
    advantages = torch.tensor([[3.0, -2.0], [0.0, 1e6]], requires_grad=True)
    value = policy_gradient(leaf, advantages)
    value.backward()
    torch.testing.assert_close(value.detach(), -advantages.detach().mean())
    torch.testing.assert_close(leaf.grad, -advantages.detach() / 4)
    assert advantages.grad is None


def test_what_is_behind_a_mask_does_not_matter():
    leaf = torch.tensor([[-1.0, NAN], [-torch.inf, -2.0]], requires_grad=True)
    advantages = torch.tensor([[2.0, NAN], [torch.inf, 4.0]])
    old = torch.tensor([[-1.0, NAN], [torch.inf, -2.0]])
    for former in (None, old):
        leaf.grad = None
        value = policy_gradient(leaf, advantages, torch.tensor([[1, 0], [0, 1]]), former)
        value.backward()
        assert float(value.detach()) == -3
        assert leaf.grad.tolist() == [[-1, 0], [0, -2]]


def test_what_cannot_be_used_is_refused():
    ones = torch.ones(2, 3)
    for arguments, message in (
        ((ones, ones[:1]), r"advantages must be \(2, 3\) as log_probs are, got \(1, 3\)"),
        ((ones, ones, None, ones[:, :1]), r"old_log_probs must be \(2, 3\) as log_probs are, got \(2, 1\)"),
        ((ones, ones, ones * 0), "at least one token that counts"),
        ((ones, ones, ones[:1]), r"mask must be \(2, 3\)"),
    ):
        with pytest.raises(InputError, match=message):
            policy_gradient(*arguments)


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, NAN), (1, NAN), (2, NAN), (0, float("inf")), (1, float("inf")), (1, float("-inf"))],
)
def test_numbers_that_are_not_finite_are_named(place, value):
    arguments = [torch.full((2, 3), -1.0) for _ in range(3)]
    arguments[place][1, 2] = value
    name = ("log_probs", "advantages", "old_log_probs")[place]
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(InputError, match=f"{name} must be finite, got {value:g} at batch 1, token 2"):
        policy_gradient(arguments[0], arguments[1], mask, arguments[2])
    mask[1, 2] = False
    assert policy_gradient(arguments[0], arguments[1], mask, arguments[2]).isfinite()


def test_a_single_nan_is_found_without_an_older_policy():
    ones = -torch.ones(2, 3)
    strange = ones.clone()
    strange[0, 1] = NAN
    with pytest.raises(InputError, match=r"^advantages must be finite, got nan at batch 0, token 1$"):
        policy_gradient(ones, strange)
    with pytest.raises(InputError, match=r"^log_probs must be finite, got nan at batch 0, token 1$"):
        policy_gradient(strange, ones)
