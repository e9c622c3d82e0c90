"""`crf_log_partition`: log of the sum over all tag sequences of a linear-chain CRF, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from petkit.ops import _crf, _library


def crf_log_partition(
    emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor
) -> Tensor:
    """Logarithm of the sum over all tag sequences y of exp(score(y)), of each row.

    score(y) = start[y_1] + end[y_n] + sum of emissions[i, y_i] + sum of transitions[y_{i-1}, y_i], over the n
    positions that the mask sets: the others are skipped, wherever they are.

    Args:
        emissions: (batch, time, tags) float32, bfloat16, float16 or float64; -inf forbids a tag.
        mask: bool (batch, time), set where a tag is; any pattern that begins with a set position.
        transitions: (tags, tags), score of [from, to]; -inf forbids the transition.
        start: (tags,) score of the first tag.
        end: (tags,) score of the last tag.

    Returns:
        (batch,) in nats, float32, or float64 when an argument is. Differentiable, once, in the four float
        arguments; the gradients are marginals of the tags and expected numbers of transitions. A row whose
        gradient comes in as 0 adds nothing, whatever it holds.

    Raises:
        InputError: another shape or dtype, a row whose mask begins unset, nan or +inf (by batch and time), or
            a row without a possible path. On a GPU the last three show in the result as nan or -inf.

    Source:
        Lafferty et al. 2001; Sutton and McCallum, An Introduction to Conditional Random Fields, section 4.
        The forward variables are logarithms relative to their largest, whose sum is kept in float64.
    """
    arguments = _crf.checked(emissions, mask, transitions, start, end)
    log_z: Tensor = torch.ops.petkit.crf_log_partition(*arguments)
    _crf.check_paths_exist(log_z, arguments)
    return log_z


def _default(emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor) -> Tensor:
    return _crf.forward(_crf.chains(emissions, mask), transitions, start, end).log_z.to(transitions.dtype)


def _fake(emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor) -> Tensor:
    return transitions.new_empty((emissions.shape[0],))


def _backward_default(
    grad: Tensor, emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Whatever a row holds that does not count, nan too, adds nothing.
    emissions = emissions.masked_fill((grad == 0)[:, None, None], 0.0)
    chain = _crf.chains(emissions, mask)
    found = _crf.posterior(chain, grad, transitions, start, end)
    weighted = found.marginals * grad[:, None, None]
    if emissions.shape[1] == 0:
        return torch.zeros_like(emissions), found.pairs, torch.zeros_like(start), torch.zeros_like(end)
    last = (chain.lengths - 1)[:, None, None].expand(-1, 1, weighted.shape[2])
    of_end = weighted.gather(1, last)[:, 0].sum(0)
    of_emissions = _crf.put_back(weighted, chain, 0.0).to(emissions.dtype)
    return of_emissions, found.pairs, weighted[:, 0].sum(0), of_end


def _backward_fake(
    grad: Tensor, emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_emissions = torch.empty_like(emissions, memory_format=torch.contiguous_format)
    fresh = (torch.empty_like(p, memory_format=torch.contiguous_format) for p in (transitions, start, end))
    of_transitions, of_start, of_end = fresh
    return of_emissions, of_transitions, of_start, of_end


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    emissions, transitions, start, end = torch.ops.petkit.crf_log_partition_backward(grad, *ctx.saved_tensors)
    return emissions, None, transitions, start, end


_library.define(
    f"crf_log_partition({_crf.ARGUMENTS}) -> Tensor",
    _default,
    _fake,
)
_library.define(
    f"crf_log_partition_backward(Tensor grad, {_crf.ARGUMENTS}) -> ("
    "Tensor grad_emissions, Tensor grad_transitions, Tensor grad_start, Tensor grad_end)",
    _backward_default,
    _backward_fake,
)
torch.library.register_autograd("petkit::crf_log_partition", _backward, setup_context=_setup_context)
_library.differentiable_once("crf_log_partition", "run the forward recursion in plain torch")
