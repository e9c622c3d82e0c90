"""`beam_crf_viterbi`: the best path through the likeliest entries of a vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.ops import _beam_crf, _crf, _library
from petkit.ops._checks import whole_number


def beam_crf_viterbi(
    emissions: Tensor,
    mask: Tensor,
    left: Tensor,
    right: Tensor,
    beam: int = 64,
    dynamic: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Path of the highest score among the `beam` likeliest entries of each position, and that score.

    Args:
        emissions: as all arguments, see `beam_crf_log_partition`.
        mask: bool (batch, time).
        left: (vocab, rank).
        right: (vocab, rank).
        beam: candidates at each position; more than vocab are all of them, which is exact.
        dynamic: (batch, time - 1, rank, rank) or None.

    Returns:
        Paths, int64 (batch, time), -1 at masked positions, and scores (batch,), float32 or float64: the sum
        of the path's emissions and transitions, not a log-probability.

    Raises:
        InputError: as `beam_crf_log_partition`.

    Source:
        Sun et al., Fast Structured Decoding for Sequence Models, NeurIPS 2019, section 3.3.
    """
    arguments = _beam_crf.checked(emissions, mask, left, right, dynamic)
    size = min(whole_number("beam", beam, 1), emissions.shape[2])
    paths, scores = torch.ops.petkit.beam_crf_viterbi(*(part.detach() for part in arguments), size)
    _beam_crf.check_paths_exist(scores, arguments)
    return _crf.possible(paths, scores), scores


def _default(
    emissions: Tensor, mask: Tensor, left: Tensor, right: Tensor, dynamic: Tensor, beam: int
) -> tuple[Tensor, Tensor]:
    arguments = _beam_crf.Arguments(emissions, mask, left, right, dynamic)
    nothing = mask.new_empty(0, dtype=torch.int64)
    candidates = _beam_crf.find_candidates(emissions, mask, beam, nothing)
    gathered = _beam_crf.beam_of(arguments, candidates)
    unary, lengths, _ = gathered.chain
    batch, time, _ = unary.shape
    places = mask.new_zeros((batch, time), dtype=torch.int64)
    if time == 0:
        return places, left.new_zeros(batch)
    best, pointers = unary[:, 0], []
    stay = torch.arange(beam, device=mask.device).expand(batch, beam)
    for t in range(1, time):
        best = best - best.amax(-1, keepdim=True).clamp_min(torch.finfo(unary.dtype).min)
        values, sources = (best[:, :, None] + gathered.transitions(t)).max(1)
        valid = (t < lengths)[:, None]
        best = torch.where(valid, values + unary[:, t], best)
        pointers.append(torch.where(valid, sources, stay))
    at = best.argmax(-1)
    for t in range(time - 1, -1, -1):
        places[:, t] = at
        if t > 0:
            at = pointers[t - 1].gather(1, at[:, None])[:, 0]
    tokens = gathered.candidates.gather(2, places[:, :, None])[:, :, 0]
    paths = _crf.put_back(tokens, gathered.chain, -1)
    return paths, _spoiled(_beam_crf.path_score(arguments, paths), arguments)


def _spoiled(scores: Tensor, arguments: _beam_crf.Arguments) -> Tensor:
    # The path may pass by what is no number; its score must not hide it.
    emissions, mask, *_ = arguments
    numbers = (emissions < torch.inf).all(-1) | ~mask
    return torch.where(numbers.all(1), scores, torch.nan)


def _fake(
    emissions: Tensor, mask: Tensor, left: Tensor, right: Tensor, dynamic: Tensor, beam: int
) -> tuple[Tensor, Tensor]:
    batch, time, _ = emissions.shape
    return mask.new_empty((batch, time), dtype=torch.int64), left.new_empty((batch,))


_library.define(
    f"beam_crf_viterbi({_beam_crf.ARGUMENTS}, int beam) -> (Tensor paths, Tensor scores)", _default, _fake
)
