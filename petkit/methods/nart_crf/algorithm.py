"""Losses of sentences, lengths to try, repeats to leave out: functions of tensors and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from petkit.models.translation import LENGTH_OFFSET


def token_losses(emissions: Tensor, targets: Tensor, mask: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum the cross-entropies of each sentence's tokens.

    Args:
        emissions: (batch, time, vocab), any floating dtype; raw scores.
        targets: int64 (batch, time); anything where the mask is not set.
        mask: bool (batch, time).
        smoothing: share of a target that is spread evenly over the vocabulary.

    Returns:
        float32 (batch,), in nats.

    Source:
        Label smoothing: Szegedy et al. 2016, section 7.
    """
    # Only where a token is: the rows behind the end of short sentences would be computed for nothing.
    found = functional.cross_entropy(
        emissions[mask].float(), targets[mask], reduction="none", label_smoothing=smoothing
    )
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, found).sum(1)


def length_losses(logits: Tensor, source_mask: Tensor, target_mask: Tensor) -> Tensor:
    """Cross-entropy of each sentence's difference in length.

    Args:
        logits: (batch, 2 LENGTH_OFFSET) of `NonAutoregressiveTransformer.length_logits`.
        source_mask: bool (batch, source time).
        target_mask: bool (batch, time).

    Returns:
        float32 (batch,), in nats; differences beyond the classes count as the outermost.

    Source:
        fairseq's length predictor, as Sun et al. 2019 use it there.
    """
    difference = target_mask.sum(1) - source_mask.sum(1) + LENGTH_OFFSET
    classes = difference.clamp(0, 2 * LENGTH_OFFSET - 1)
    return functional.cross_entropy(logits.float(), classes, reduction="none")


def candidate_lengths(expected: Tensor, count: int, longest: int) -> Tensor:
    """Lengths around the expected ones.

    Args:
        expected: int64 (batch,), in tokens.
        count: lengths for each sentence; with an odd count as many shorter as longer ones.
        longest: bound of a length; 2 is the other, a token and the end.

    Returns:
        int64 (batch, count). A sentence at a bound tries a length more than once.

    Source:
        Sun et al. 2019, section 4: T + C - b to T + C + b.
    """
    steps = torch.arange(count, device=expected.device) - (count - 1) // 2
    return (expected[:, None] + steps).clamp(2, longest)


def deduplicated(row: Sequence[int]) -> list[int]:
    """A row without tokens that repeat the one before them."""
    return [token for token, _ in groupby(row)]
