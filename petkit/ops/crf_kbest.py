"""`crf_kbest`: the k best tag sequences of each row of a linear-chain CRF."""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.ops import _crf, _library
from petkit.ops._checks import whole_number


def crf_kbest(
    emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k tag sequences of the highest scores, the best first.

    Args:
        emissions: as the next four arguments, see `crf_log_partition`.
        mask: bool (batch, time).
        transitions: (tags, tags).
        start: (tags,).
        end: (tags,).
        k: how many, at least 1. Time and memory grow with k.

    Returns:
        Paths, int64 (batch, k, time), -1 at masked positions, and scores (batch, k), float32 or float64. A
        row with fewer than k possible sequences ends with paths of -1 and scores of -inf.

    Raises:
        InputError: as `crf_log_partition`, and for k below 1.

    Source:
        The list Viterbi algorithm, Seshadri and Sundberg 1994.
    """
    k = whole_number("k", k, 1)
    arguments = _crf.checked(emissions, mask, transitions, start, end)
    paths, scores = torch.ops.petkit.crf_kbest(*arguments, k)
    _crf.check_paths_exist(scores[:, 0], arguments)
    return _crf.possible(paths, scores), scores


def _default(
    emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    chain = _crf.chains(emissions, mask)
    wide, lengths, _ = chain
    batch, time, tags = wide.shape
    if time == 0:
        scores = wide.new_full((batch, k), -torch.inf)
        scores[:, 0] = 0
        return mask.new_empty((batch, k, 0), dtype=torch.int64), scores
    # Best scores of a tag's k best prefixes; a pointer counts (tag, rank) pairs.
    best = wide.new_full((batch, tags, k), -torch.inf)
    best[:, :, 0] = wide[:, 0] + start
    stay = torch.arange(tags * k, device=wide.device).view(tags, k).expand(batch, tags, k)
    pointers = []
    for t in range(1, time):
        best = best - best.amax((1, 2), keepdim=True).clamp_min(torch.finfo(wide.dtype).min)
        steps = (best[:, :, :, None] + transitions[:, None, :]).reshape(batch, tags * k, tags)
        values, sources = (part.transpose(1, 2) for part in steps.topk(k, dim=1))
        valid = (t < lengths)[:, None, None]
        best = torch.where(valid, values + wide[:, t, :, None], best)
        pointers.append(torch.where(valid, sources, stay))
    last, at = (best + end[:, None]).flatten(1).topk(k)
    return _trace(chain, pointers, at, last, (transitions, start, end))


def _trace(
    chain: _crf.Chains, pointers: list[Tensor], at: Tensor, last: Tensor, parameters: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    k, time = at.shape[1], len(pointers) + 1
    paths = at.new_empty((time, *at.shape))
    for t in range(time - 1, -1, -1):
        paths[t] = at.div(k, rounding_mode="floor")
        if t > 0:
            at = pointers[t - 1].flatten(1).gather(1, at)
    paths = paths.permute(1, 2, 0)
    exact = torch.stack([_crf.score(chain, paths[:, rank], *parameters) for rank in range(k)], 1)
    impossible = last == -torch.inf
    placed = torch.stack([_crf.put_back(paths[:, rank], chain, -1) for rank in range(k)], 1)
    return placed.masked_fill(impossible[:, :, None], -1), exact.masked_fill(impossible, -torch.inf)


def _fake(
    emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    batch, time = mask.shape
    return mask.new_empty((batch, k, time), dtype=torch.int64), transitions.new_empty((batch, k))


_library.define(
    f"crf_kbest({_crf.ARGUMENTS}, int k) -> (Tensor paths, Tensor scores)",
    _default,
    _fake,
)
