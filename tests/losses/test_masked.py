"""Means over the tokens that count: what is masked does not matter, and nothing at all is refused."""

import pytest
import torch

from petkit.errors import InputError
from petkit.losses import head_log_probs, jsd
from petkit.losses.masked import blank, masked_mean, token_mask
from petkit.ops.divergence import divergence
from petkit.ops.selected_log_probs import selected_log_probs

NAN = float("nan")
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_a_mean_is_over_what_counts(dtype):
    values = torch.tensor([[1.0, NAN, 4.0], [torch.inf, 7.0, NAN]], requires_grad=True)
    mask = torch.tensor([[1, 0, 1], [0, 1, 0]]).to(dtype)
    mean = masked_mean(values, mask)
    mean.backward()
    assert float(mean.detach()) == 4.0
    torch.testing.assert_close(values.grad, torch.tensor([[1 / 3, 0, 1 / 3], [0, 1 / 3, 0]]))


def test_without_a_mask_everything_counts():
    assert float(masked_mean(torch.tensor([1.0, 2.0, 6.0]), None)) == 3.0


def test_one_token_is_enough():
    values = torch.full((50, 3), NAN)
    values[49, 2] = -2.5
    mask = torch.zeros(50, 3)
    mask[49, 2] = 1
    assert float(masked_mean(values, mask)) == -2.5


@pytest.mark.parametrize(
    ("shape", "mask", "message"),
    [
        ((2, 3), torch.zeros(2, 3), "at least one token that counts, got none of 6: is everything masked"),
        ((0, 3), None, "at least one token that counts, got none of 0"),
        ((2, 3), torch.ones(3, 2), r"mask must be \(2, 3\) for these tokens, got \(3, 2\)"),
        ((2, 3), torch.ones(2, 1), r"mask must be \(2, 3\) for these tokens, got \(2, 1\)"),
    ],
)
def test_masks_that_cannot_be_used_are_refused(shape, mask, message):
    with pytest.raises(InputError, match=message):
        masked_mean(torch.ones(shape), mask)
    with pytest.raises(InputError, match=message):
        token_mask(mask, torch.Size(shape), CPU)


def test_a_blank_reaches_no_gradient():
    values = torch.tensor([[[1.0, 2.0], [NAN, NAN]]], requires_grad=True)
    kept = torch.tensor([[True, False]])
    (blank(values, kept) ** 2).sum().backward()
    assert values.grad.tolist() == [[[2.0, 4.0], [0.0, 0.0]]]
    assert blank(torch.tensor([[NAN, 3.0]]), torch.tensor([[False, True]])).tolist() == [[0.0, 3.0]]


@pytest.mark.parametrize("value", [0.5, -1.0, NAN, 2, -3])
def test_a_mask_of_other_numbers_is_refused(value):
    mask = torch.ones(2, 3, dtype=torch.int64 if isinstance(value, int) else torch.float32)
    mask[1, 0] = value
    logits, states, head = torch.randn(2, 3, 7), torch.randn(2, 3, 4), torch.randn(7, 4)
    ids = torch.zeros(2, 3, 1, dtype=torch.int64)
    for call in (
        lambda: token_mask(mask, torch.Size((2, 3)), CPU),
        lambda: masked_mean(torch.ones(2, 3), mask),
        lambda: jsd(logits, logits, mask=mask),
        lambda: divergence(logits, logits, mask=mask),
        lambda: selected_log_probs(logits, ids, mask),
        lambda: head_log_probs(states, head, ids, mask=mask),
    ):
        with pytest.raises(InputError, match=rf"mask must be .* 0 and 1, got {value:g} at batch 1, token 0"):
            call()


def test_a_mask_of_complex_numbers_is_refused():
    with pytest.raises(InputError, match=r"mask must be bool or numbers of 0 and 1, got torch.complex64"):
        token_mask(torch.ones(2, dtype=torch.complex64), torch.Size((2,)), CPU)
