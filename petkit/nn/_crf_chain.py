"""A linear-chain CRF as the Markov chain that it is: its conditional probabilities and its entropy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Defines the op whose second output is the mean score of the transitions.
import petkit.ops.crf_marginals  # noqa: F401
from petkit.ops import crf_log_partition

Parameters = tuple[Tensor, Tensor, Tensor]


class Chain(NamedTuple):
    """A batch without its masked positions, in the dtype that is computed in."""

    emissions: Tensor
    """(batch, time, tags) relative to the largest tag, the set positions of each row first, then zeros."""
    lengths: Tensor
    """(batch,) how many are set."""
    order: Tensor
    """(batch, time) where each position was."""
    parameters: Parameters
    """Transitions, start and end."""


def computed_in(*tensors: Tensor) -> torch.dtype:
    """float64 when one of the tensors is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def compact(emissions: Tensor, mask: Tensor, parameters: Parameters) -> Chain:
    """Move the set positions of each row to its front; differentiable."""
    dtype = computed_in(emissions, *parameters)
    order = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    moved = emissions.to(dtype).gather(1, order[:, :, None].expand_as(emissions))
    # What is at masked positions may be nan, and 0 times nan would spoil gradients.
    moved = torch.where(mask.gather(1, order)[:, :, None], moved, 0.0)
    # What all tags of a position share changes no probability, and costs digits.
    moved = moved - _finite(moved.detach().amax(-1, keepdim=True))
    transitions, start, end = (part.to(dtype) for part in parameters)
    return Chain(moved, mask.sum(1), order, (transitions, start, end))


def conditionals(chain: Chain) -> Iterator[tuple[int, Tensor]]:
    """The position t and log p(y_t = j | y_{t-1} = i), from the last position to the first.

    Rows that are shorter than t give values without a meaning, but finite or -inf.

    Yields:
        t and (batch, tags i, tags j); at t = 0 the middle axis is 1. -inf where i or j is impossible.

    Source:
        The backward recursion, Rabiner 1989, relative to the largest of each row: a constant cancels here.
    """
    emissions, lengths, _, (transitions, start, end) = chain
    batch, time, tags = emissions.shape
    rest = end.expand(batch, tags)
    for t in range(time - 1, 0, -1):
        scores = transitions + (emissions[:, t] + rest)[:, None, :]
        log_p, total = _normalized(scores)
        yield t, log_p
        largest = _finite(total.detach().amax(-1, keepdim=True))
        rest = torch.where((t < lengths)[:, None], total - largest, rest)
    if time > 0:
        yield 0, _normalized((start + emissions[:, 0] + rest)[:, None, :])[0]


def _normalized(scores: Tensor) -> tuple[Tensor, Tensor]:
    """log_softmax over the last axis, -inf where all are, and the logarithm of the sum."""
    dead = (scores == -torch.inf).all(-1, keepdim=True)
    # logsumexp of nothing but -inf has a gradient of nan.
    total = torch.where(dead, 0.0, scores).logsumexp(-1, keepdim=True)
    return scores - total, torch.where(dead, -torch.inf, total)[..., 0]


def _finite(x: Tensor) -> Tensor:
    return torch.where(x == -torch.inf, 0.0, x)


def entropy_by_recursion(emissions: Tensor, mask: Tensor, parameters: Parameters) -> Tensor:
    """Entropy of the distribution over paths of each row, differentiable as often as one likes.

    Keeps a few (batch, tags, tags) a position for the gradient.

    Args:
        emissions: (batch, time, tags).
        mask: bool (batch, time).
        parameters: transitions, start and end.

    Returns:
        (batch,) in nats; nan where no path is possible, in compiled code and on a GPU.

    Source:
        Hernando et al. 2005, here from the end: the entropy of what follows tag i is the mean over the next
        tag j of the entropy of what follows j, minus log p(j | i).
    """
    # Says by name what makes probabilities nan.
    with torch.no_grad():
        log_z = crf_log_partition(emissions, mask, *parameters)
    chain = compact(emissions, mask, parameters)
    batch, time, tags = chain.emissions.shape
    following = chain.emissions.new_zeros((batch, tags))
    for t, log_p in conditionals(chain):
        mean = (log_p.exp() * (following[:, None, :] - _finite(log_p))).sum(-1)
        following = torch.where((t < chain.lengths)[:, None], mean, following)
    found = following[:, 0] if time > 0 else following.sum(1)
    # Where values are not looked at, a row without a path must not pass for one certain path.
    return torch.where(log_z.isfinite(), found, torch.nan)


def entropy(emissions: Tensor, mask: Tensor, parameters: Parameters) -> Tensor:
    """Entropy of the distribution over paths of each row, from the marginals; not differentiable.

    Args:
        emissions: (batch, time, tags).
        mask: bool (batch, time).
        parameters: transitions, start and end.

    Returns:
        (batch,) float64 in nats: log Z minus the mean score.
    """
    # A difference of two numbers that grow with the length: float32 would keep few of its digits.
    arguments = (emissions.double(), mask, *(part.double() for part in parameters))
    log_z = crf_log_partition(*arguments)
    if emissions.shape[1] == 0:
        return log_z
    marginals, mean_score, _ = torch.ops.petkit.crf_marginals(*arguments)
    last = mask.long().cumsum(1).argmax(1)
    at_end = marginals.gather(1, last[:, None, None].expand(-1, 1, marginals.shape[2]))[:, 0]
    of_tags = _expected(marginals, arguments[0]).sum((1, 2))
    of_ends = _expected(marginals[:, 0], arguments[3]) + _expected(at_end, arguments[4])
    found: Tensor = log_z - mean_score - of_tags - of_ends.sum(1)
    # Rounding may bring a row of one certain path below 0.
    return found.clamp_min(0)


def _expected(probabilities: Tensor, scores: Tensor) -> Tensor:
    """Products, 0 where the probability is: a forbidden tag has a score of -inf, a masked one any."""
    return torch.where(probabilities > 0, probabilities * scores, 0.0)
