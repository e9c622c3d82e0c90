from __future__ import annotations

from collections import Counter

import pytest
import torch

from petkit.serving.chat.sampling import Sampling, draw

LOGITS = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
DRAWS = 4000


def share(**fields):
    sampling = Sampling.of(seed=0, **fields)
    counts = Counter(draw(LOGITS, sampling) for _ in range(DRAWS))
    return [counts[token] / DRAWS for token in range(4)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 1.0, "top_p": None}, [0.5, 0.25, 0.15, 0.1]),
        # p^2, renormalised: 0.25, 0.0625, 0.0225 and 0.01 of 0.345.
        ({"temperature": 0.5, "top_p": 1.0}, [0.7246, 0.1812, 0.0652, 0.0290]),
        # 0.5 and 0.25 make up 0.75 at least.
        ({"temperature": 1.0, "top_p": 0.7}, [2 / 3, 1 / 3, 0, 0]),
        ({"temperature": 1.0, "top_p": 1e-9}, [1, 0, 0, 0]),
        ({"temperature": 0.0, "top_p": 1.0}, [1, 0, 0, 0]),
        ({"temperature": None, "top_p": None}, [1, 0, 0, 0]),
    ],
)
def test_shares(fields, expected):
    # Four standard deviations of a share of 4000 draws are 0.032 at most.
    assert share(**fields) == pytest.approx(expected, abs=0.032)


def test_a_seed_fixes_the_draws():
    def drawn(seed):
        sampling = Sampling.of(1.0, None, seed)
        return [draw(LOGITS, sampling) for _ in range(20)]

    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)
    assert drawn(None) != drawn(None)


def test_impossible_tokens_are_never_drawn():
    logits = torch.tensor([0.0, -torch.inf, 0.0])
    sampling = Sampling.of(2.0, None, 0)
    assert 1 not in {draw(logits, sampling) for _ in range(200)}
