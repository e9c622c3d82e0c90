"""`beam_crf_log_partition`: log of the sum over the paths through the likeliest entries of a vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from petkit.ops import _beam_crf, _crf, _library
from petkit.ops._checks import whole_number


def beam_crf_log_partition(
    emissions: Tensor,
    mask: Tensor,
    left: Tensor,
    right: Tensor,
    beam: int = 64,
    dynamic: Tensor | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """Log-partition of a CRF over a vocabulary, summed over the `beam` likeliest entries of each position.

    The score of a path y is the sum of emissions[i, y_i] and of the transitions left[y_{i-1}] D_i right[y_i],
    where D_i is the identity or dynamic[i - 1]. With fewer candidates than entries this is a lower bound of
    the whole log-partition.

    Args:
        emissions: (batch, time, vocab) float32, bfloat16, float16 or float64; -inf forbids an entry.
        mask: bool (batch, time), any pattern that begins with a set position; others are skipped.
        left: (vocab, rank) factors of the earlier entry of a transition.
        right: (vocab, rank) factors of the later one.
        beam: candidates at each position; more than vocab are all of them, which is exact.
        dynamic: (batch, time - 1, rank, rank), the matrix of the step into positions 1, 2, ...; None is the
            identity. Of a step over masked positions it is the matrix into the later one.
        targets: integers (batch, time) that are made candidates, in place of the least likely; anything at
            masked positions. None: the likeliest alone.

    Returns:
        (batch,) in nats, float32, or float64 when an argument is. Differentiable, once, in emissions, left,
        right and dynamic; the choice of the candidates is taken as given.

    Raises:
        InputError: another shape or dtype, a target that is not in the vocabulary (by batch and time), a row
            whose mask begins unset, nan or +inf (by batch and time), or a row without a possible path. On a
            GPU the last three show in the result.

    Source:
        Sun et al., Fast Structured Decoding for Sequence Models, NeurIPS 2019, sections 3.2 to 3.4.
    """
    return log_partition_and_score(emissions, mask, left, right, beam, dynamic, targets)[0]


def log_partition_and_score(
    emissions: Tensor,
    mask: Tensor,
    left: Tensor,
    right: Tensor,
    beam: int = 64,
    dynamic: Tensor | None = None,
    targets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`beam_crf_log_partition` together with the score of the targets, so that one gradient serves both.

    Returns:
        log-partition (batch,), and score (batch,), or (0,) without targets.
    """
    arguments = _beam_crf.checked(emissions, mask, left, right, dynamic)
    vocab = emissions.shape[2]
    size = min(whole_number("beam", beam, 1), vocab)
    ids = mask.new_empty(0, dtype=torch.int64)
    if targets is not None:
        ids = _beam_crf.check_targets(targets, mask, vocab)
    log_z, score, _ = torch.ops.petkit.beam_crf_log_partition(*arguments, ids, size)
    _beam_crf.check_paths_exist(log_z, arguments)
    return log_z, score


def _default(
    emissions: Tensor, mask: Tensor, left: Tensor, right: Tensor, dynamic: Tensor, targets: Tensor, beam: int
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = _beam_crf.Arguments(emissions, mask, left, right, dynamic)
    candidates = _beam_crf.find_candidates(emissions, mask, beam, targets)
    log_z = _beam_crf.forward(_beam_crf.beam_of(arguments, candidates)).log_z.to(left.dtype)
    score = _beam_crf.path_score(arguments, targets) if targets.dim() == 2 else left.new_empty(0)
    return log_z, score, candidates.masked_fill(~mask[:, :, None], -1).int()


def _fake(
    emissions: Tensor, mask: Tensor, left: Tensor, right: Tensor, dynamic: Tensor, targets: Tensor, beam: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, _ = emissions.shape
    score = left.new_empty((batch if targets.dim() == 2 else 0,))
    return left.new_empty((batch,)), score, mask.new_empty((batch, time, beam), dtype=torch.int32)


def _backward_default(
    grad_log_z: Tensor,
    grad_score: Tensor,
    emissions: Tensor,
    mask: Tensor,
    left: Tensor,
    right: Tensor,
    dynamic: Tensor,
    targets: Tensor,
    candidates: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Whatever a row holds that does not count, nan too, adds nothing.
    dead = grad_log_z == 0 if targets.dim() != 2 else (grad_log_z == 0) & (grad_score == 0)
    emissions = emissions.masked_fill(dead[:, None, None], 0.0)
    dynamic = dynamic.masked_fill(dead[:, None, None, None], 0.0) if dynamic.dim() == 4 else dynamic
    arguments = _beam_crf.Arguments(emissions, mask, left, right, dynamic)
    beam = _beam_crf.beam_of(arguments, candidates.long().clamp_min(0))
    found = _beam_crf.posterior(beam, grad_log_z)
    spread = _crf.put_back(found.emissions, beam.chain, 0.0).to(emissions.dtype)
    places = candidates.long().clamp_min(0)
    of_emissions = torch.zeros_like(emissions, memory_format=torch.contiguous_format)
    # Masked positions name entry 0 many times, and add nothing to it.
    of_emissions.scatter_add_(2, places, spread)
    of_left, of_right = torch.zeros_like(left), torch.zeros_like(right)
    of_left.index_add_(0, beam.candidates.flatten(), found.left.flatten(0, 2))
    of_right.index_add_(0, beam.candidates.flatten(), found.right.flatten(0, 2))
    of_dynamic = torch.zeros_like(dynamic)
    if found.matrices is not None:
        into = _beam_crf.steps_into(beam.chain).expand_as(found.matrices)
        of_dynamic.scatter_add_(1, into, found.matrices)
    gradients = (of_emissions, of_left, of_right, of_dynamic)
    if targets.dim() == 2:
        _add_score_gradient(grad_score, arguments, targets, gradients)
    return gradients


def _add_score_gradient(
    grad: Tensor, arguments: _beam_crf.Arguments, targets: Tensor, gradients: tuple[Tensor, ...]
) -> None:
    _, mask, left, right, dynamic = arguments
    of_emissions, of_left, of_right, of_dynamic = gradients
    chosen = targets.masked_fill(~mask, 0)[:, :, None]
    of_emissions.scatter_add_(2, chosen, (grad[:, None] * mask)[:, :, None].to(of_emissions.dtype))
    if targets.shape[1] == 0:
        return
    before, here, valid = _beam_crf.steps_of(targets, mask)
    weight = (grad[:, None] * valid)[:, :, None]
    lefts, rights = left[before], right[here]
    turned, seen = lefts, rights
    if dynamic.dim() == 4:
        turned = (lefts[:, :, None] @ dynamic)[:, :, 0]
        seen = (dynamic @ rights[:, :, :, None])[:, :, :, 0]
        of_dynamic += (weight * lefts)[:, :, :, None] * rights[:, :, None, :]
    of_left.index_add_(0, before.flatten(), (weight * seen).flatten(0, 1))
    of_right.index_add_(0, here.flatten(), (weight * turned).flatten(0, 1))


def _backward_fake(
    grad_log_z: Tensor, grad_score: Tensor, emissions: Tensor, mask: Tensor, *rest: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    fresh = (torch.empty_like(p, memory_format=torch.contiguous_format) for p in (emissions, *rest[:3]))
    of_emissions, of_left, of_right, of_dynamic = fresh
    return of_emissions, of_left, of_right, of_dynamic


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    candidates = output[2]
    ctx.mark_non_differentiable(candidates)
    ctx.save_for_backward(*inputs[:6], candidates)


def _backward(ctx: Any, grad_log_z: Tensor, grad_score: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    found = torch.ops.petkit.beam_crf_log_partition_backward(grad_log_z, grad_score, *ctx.saved_tensors)
    emissions, left, right, dynamic = found
    return emissions, None, left, right, dynamic, None, None


_library.define(
    f"beam_crf_log_partition({_beam_crf.ARGUMENTS}, Tensor targets, int beam) -> (Tensor log_z, "
    "Tensor score, Tensor candidates)",
    _default,
    _fake,
)
_library.define(
    f"beam_crf_log_partition_backward(Tensor grad_log_z, Tensor grad_score, {_beam_crf.ARGUMENTS}, "
    "Tensor targets, Tensor candidates) -> (Tensor grad_emissions, Tensor grad_left, Tensor grad_right, "
    "Tensor grad_dynamic)",
    _backward_default,
    _backward_fake,
)
torch.library.register_autograd("petkit::beam_crf_log_partition", _backward, setup_context=_setup_context)
_library.differentiable_once("beam_crf_log_partition", "run the forward recursion in plain torch")
