"""`crf_viterbi`: the best tag sequence of each row of a linear-chain CRF."""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.ops import _crf, _library


def crf_viterbi(
    emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """Tag sequence of the highest score, and that score.

    Args:
        emissions: as all arguments, see `crf_log_partition`.
        mask: bool (batch, time).
        transitions: (tags, tags).
        start: (tags,).
        end: (tags,).

    Returns:
        Paths, int64 (batch, time), -1 at masked positions, and scores (batch,), float32 or float64. Of paths
        with equal scores the CPU kernels take the lower tag, from the end backwards.

    Raises:
        InputError: as `crf_log_partition`.

    Source:
        Viterbi 1967. Scores are compared relative to the best of their position, and the best path's
        is summed in float64.
    """
    arguments = _crf.checked(emissions, mask, transitions, start, end)
    paths, scores = torch.ops.petkit.crf_viterbi(*arguments)
    _crf.check_paths_exist(scores, arguments)
    return _crf.possible(paths, scores), scores


def _default(
    emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    chain = _crf.chains(emissions, mask)
    wide, lengths, _ = chain
    batch, time, tags = wide.shape
    paths = mask.new_zeros((batch, time), dtype=torch.int64)
    if time == 0:
        return paths, wide.new_zeros(batch)
    best, pointers = wide[:, 0] + start, []
    stay = torch.arange(tags, device=wide.device).expand(batch, tags)
    for t in range(1, time):
        best = best - best.amax(-1, keepdim=True).clamp_min(torch.finfo(wide.dtype).min)
        values, sources = (best[:, :, None] + transitions).max(1)
        valid = (t < lengths)[:, None]
        best = torch.where(valid, values + wide[:, t], best)
        pointers.append(torch.where(valid, sources, stay))
    tag = (best + end).argmax(-1)
    for t in range(time - 1, -1, -1):
        paths[:, t] = tag
        if t > 0:
            tag = pointers[t - 1].gather(1, tag[:, None])[:, 0]
    return _crf.put_back(paths, chain, -1), _crf.score(chain, paths, transitions, start, end)


def _fake(
    emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    batch, time = mask.shape
    return mask.new_empty((batch, time), dtype=torch.int64), transitions.new_empty((batch,))


_library.define(
    f"crf_viterbi({_crf.ARGUMENTS}) -> (Tensor paths, Tensor scores)",
    _default,
    _fake,
)
