"""Means over the tokens that count: what is masked does not matter, and nothing at all is refused."""

import pytest
import torch

from petkit.errors import InputError
from petkit.losses.masked import blank, masked_mean, token_mask

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
