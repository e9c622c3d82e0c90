import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.methods.nart_crf.algorithm import candidate_lengths, deduplicated, length_losses, token_losses
from petkit.models.translation import LENGTH_OFFSET
from tests.reference.tolerance import SUM

MASK = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], bool)
TOKENS = st.lists(st.integers(4, 7), max_size=12)


def log_softmax(scores):
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def cases(dtype=torch.float64):
    generator = np.random.default_rng(0)
    emissions = generator.normal(size=(3, 4, 9)) * 3
    targets = generator.integers(0, 9, size=(3, 4))
    return torch.tensor(emissions, dtype=dtype), torch.tensor(targets)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_token_losses_are_those_of_the_formula(smoothing):
    emissions, targets = cases()
    logs = log_softmax(emissions.numpy())
    chosen = np.take_along_axis(logs, targets.numpy()[..., None], 2)[..., 0]
    each = -(1 - smoothing) * chosen - smoothing * logs.mean(-1)
    found = token_losses(emissions, targets, torch.tensor(MASK), smoothing)
    assert found.dtype == torch.float32
    assert found.numpy() == pytest.approx((each * MASK).sum(1), rel=SUM)


def test_masked_positions_have_no_say():
    emissions, targets = cases(torch.float32)
    mask = torch.tensor(MASK)
    spoiled = emissions.masked_fill(~mask[:, :, None], torch.nan).requires_grad_()
    found = token_losses(spoiled, targets.masked_fill(~mask, -100), mask, 0.1)
    assert torch.equal(found, token_losses(emissions, targets, mask, 0.1))
    (gradient,) = torch.autograd.grad(found.sum(), spoiled)
    assert not gradient[~mask].any()
    assert gradient[mask].any(1).all()


def test_token_losses_of_bfloat16_are_summed_in_float32():
    emissions, targets = cases(torch.bfloat16)
    found = token_losses(emissions, targets, torch.tensor(MASK))
    assert torch.equal(found, token_losses(emissions.float(), targets, torch.tensor(MASK)))


def test_length_losses_are_those_of_the_difference():
    # 3 - 5, 1 - 1, and two beyond the classes, which end at -128 and 127.
    source, target = torch.tensor([5, 1, 200, 1]), torch.tensor([3, 1, 1, 190])
    logits = np.random.default_rng(1).normal(size=(4, 2 * LENGTH_OFFSET))
    classes = [LENGTH_OFFSET - 2, LENGTH_OFFSET, 0, 2 * LENGTH_OFFSET - 1]
    wanted = -log_softmax(logits)[range(4), classes]
    masks = (torch.arange(200) < lengths[:, None] for lengths in (source, target))
    assert length_losses(torch.tensor(logits), *masks).numpy() == pytest.approx(wanted, rel=SUM)


@pytest.mark.parametrize(
    ("count", "wanted"),
    [(1, [8]), (2, [8, 9]), (3, [7, 8, 9]), (4, [7, 8, 9, 10]), (5, [6, 7, 8, 9, 10])],
)
def test_lengths_stand_around_the_expected_one(count, wanted):
    assert candidate_lengths(torch.tensor([8]), count, 20).tolist() == [wanted]


def test_lengths_stay_within_their_bounds():
    expected = torch.tensor([-3, 2, 19, 300])
    assert candidate_lengths(expected, 3, 20).tolist() == [[2] * 3, [2, 2, 3], [18, 19, 20], [20] * 3]


@given(TOKENS)
def test_nothing_repeats_the_token_before_it(row):
    found = deduplicated(row)
    assert all(first != second for first, second in itertools.pairwise(found))
    # It says the same with stutters: each token stands for a run of itself.
    assert found == [token for at, token in enumerate(row) if at == 0 or row[at - 1] != token]
    assert deduplicated(found) == found
