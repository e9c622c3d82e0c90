"""Losses straight from hidden states and the weight of a model's head: no logits of all tokens are ever made.

Logits are made for a few rows at a time, once in the forward and once more in the backward pass, where their
gradient takes their place before it is multiplied on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops._checks import bool_mask
from petkit.ops.divergence import Divergence, divergence
from petkit.ops.selected_log_probs import SelectedLogProbs, selected_log_probs

# Bytes of logits that are made at a time, of one model.
CHUNK_BYTES = 32 << 20

# Results of some rows, of which the first has a gradient; given their logits, whose memory is free to use.
Rows = Callable[[Tensor, slice], tuple[Tensor, ...]]


def head_log_probs(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float = 1.0,
) -> SelectedLogProbs:
    """Log-probabilities of given tokens under softmax((hidden weight^T + bias) / temperature).

    Args:
        hidden: (..., width) float32, bfloat16 or float16, the states that the head sees.
        weight: (vocab, width), of the same dtype.
        token_ids: integers (..., k).
        bias: (vocab,) or None.
        mask: (...); rows where it is 0 are not computed, their results are 0 and so is their gradient.
        temperature: of the softmax.

    Returns:
        Log-probabilities (..., k), with gradients in hidden, weight and bias, and entropies (...) without.

    Raises:
        InputError: shapes that do not fit; as `petkit.ops.selected_log_probs`.

    Source:
        `petkit.ops.selected_log_probs` on chunks of rows.
    """
    _check(hidden, weight, bias)
    if token_ids.shape[:-1] != hidden.shape[:-1]:
        raise InputError(
            f"token_ids must be {tuple(hidden.shape[:-1])} and one dimension more, got "
            f"{tuple(token_ids.shape)}"
        )
    kept = _kept(mask, hidden)
    ids = token_ids.reshape(-1, token_ids.shape[-1])[kept]

    def rows(logits: Tensor, at: slice) -> tuple[Tensor, ...]:
        return selected_log_probs(logits, ids[at], None, temperature, overwrite=True)

    log_probs, entropy = _through_head(hidden, weight, bias, kept, rows)
    return SelectedLogProbs(_spread(log_probs, kept, hidden), _spread(entropy, kept, hidden))


def head_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    beta: float = 0.5,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
) -> Divergence:
    """Divergences between what two heads make of their hidden states.

    Args:
        student_hidden: (..., width) float32, bfloat16 or float16.
        student_weight: (vocab, width), of the same dtype.
        teacher_hidden: (..., teacher's width); no gradient flows into the teacher's side.
        teacher_weight: (vocab, teacher's width).
        beta: as in `petkit.ops.divergence`.
        mask: (...); rows where it is 0 are not computed, their results are 0 and so is their gradient.
        temperature: of both sides.
        student_bias: (vocab,) or None.
        teacher_bias: likewise.

    Returns:
        The divergences (...), with gradients in the student's hidden, weight and bias.

    Raises:
        InputError: shapes that do not fit; as `petkit.ops.divergence`.

    Source:
        `petkit.ops.divergence` on chunks of rows.
    """
    _check(student_hidden, student_weight, student_bias)
    _check(teacher_hidden, teacher_weight, teacher_bias)
    if teacher_hidden.shape[:-1] != student_hidden.shape[:-1] or len(teacher_weight) != len(student_weight):
        raise InputError(
            f"teacher_hidden and teacher_weight must be for {tuple(student_hidden.shape[:-1])} tokens and a "
            f"vocabulary of {len(student_weight)}, got {tuple(teacher_hidden.shape[:-1])} and "
            f"{len(teacher_weight)}"
        )
    kept = _kept(mask, student_hidden)
    other = teacher_hidden.detach().reshape(-1, teacher_hidden.shape[-1])[kept]
    with torch.no_grad():
        own = _in_autocast(other, teacher_weight, teacher_bias)

    def rows(logits: Tensor, at: slice) -> tuple[Tensor, ...]:
        with torch.no_grad():
            teacher = _logits(own[0][at], *own[1:])
        return divergence(logits, teacher, beta, None, temperature, overwrite=True)

    found = _through_head(student_hidden, student_weight, student_bias, kept, rows)
    return Divergence(*(_spread(part, kept, student_hidden) for part in found))


def _check(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.dim() != 2 or hidden.dim() == 0 or hidden.shape[-1] != weight.shape[1]:
        raise InputError(
            f"the head's weight must be (vocab, {hidden.shape[-1] if hidden.dim() else 'width'}) for hidden "
            f"states {tuple(hidden.shape)}, got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"the head's bias must be ({weight.shape[0]},), got {tuple(bias.shape)}")
    dtypes = {hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype}
    if len(dtypes) > 1 and not torch.is_autocast_enabled(hidden.device.type):
        raise InputError(
            f"hidden states, weight and bias of a head must be of one dtype, got "
            f"{', '.join(sorted(map(str, dtypes)))}"
        )


def _kept(mask: Tensor | None, hidden: Tensor) -> Tensor:
    """Numbers of the rows that count."""
    shape = hidden.shape[:-1]
    if mask is None:
        return torch.arange(shape.numel(), device=hidden.device)
    if mask.shape != shape:
        raise InputError(f"mask must be {tuple(shape)} for these hidden states, got {tuple(mask.shape)}")
    return bool_mask("mask", mask).reshape(-1).nonzero()[:, 0]


def _spread(part: Tensor, kept: Tensor, hidden: Tensor) -> Tensor:
    """Put the rows that count where they belong; the others are 0."""
    whole = part.new_zeros((hidden.shape[:-1].numel(), *part.shape[1:]))
    return whole.index_copy(0, kept, part).reshape(*hidden.shape[:-1], *part.shape[1:])


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(hidden, weight, bias)


def _through_head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, kept: Tensor, rows: Rows
) -> tuple[Tensor, ...]:
    states = hidden.reshape(-1, hidden.shape[-1])[kept]
    inputs = _in_autocast(states, weight, bias)
    with torch.autocast(states.device.type, enabled=False):
        found: tuple[Tensor, ...] = _Head.apply(*inputs, rows)
    return found


def _in_autocast(states: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of the dtype of autocast where that is on, as a linear layer would be.

    Once for all chunks and for both passes, of which torch would cover the first alone.
    """
    device = states.device.type
    if not torch.is_autocast_enabled(device):
        return states, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class _Head(torch.autograd.Function):
    """Row-wise results of logits that are made a few rows at a time."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows
    ) -> tuple[Tensor, ...]:
        parts = [
            rows(_logits(states[at], weight, bias), at) for at in chunks(len(states), len(weight), weight)
        ]
        found = tuple(torch.cat(columns) for columns in zip(*parts, strict=True))
        ctx.mark_non_differentiable(*found[1:])
        ctx.save_for_backward(states, weight, bias)
        ctx.rows = rows
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        with torch.no_grad():
            found = _Head.slopes(ctx, grads[0])
        # With create_graph=True: torch would take the gradient for a constant.
        if torch.is_grad_enabled():
            inputs = [grads[0], *(one for one in ctx.saved_tensors if one is not None)]
            first, second, third = (None if one is None else _Once.apply(one, *inputs) for one in found)
            return first, second, third, None
        return *found, None

    @staticmethod
    def slopes(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients in states, weight and bias."""
        states, weight, bias = ctx.saved_tensors
        wants_states, wants_weight, wants_bias, _ = ctx.needs_input_grad
        of_states = torch.empty_like(states) if wants_states else None
        # Many chunks are added up: in float32, whatever the weight is.
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        for at in chunks(len(states), len(weight), weight):
            slope = _slope(states[at], weight, bias, ctx.rows, at, upstream[at])
            if of_states is not None:
                torch.mm(slope, weight, out=of_states[at])
            if of_weight is not None:
                of_weight += slope.T @ states[at]
            if of_bias is not None:
                of_bias += slope.float().sum(0)
        return (
            of_states,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(bias.dtype),
        )


class _Once(torch.autograd.Function):
    """A gradient that cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise InputError(
            "losses through a head can be differentiated once: for a gradient of the gradient compute them "
            "from all logits"
        )


def _slope(
    states: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows, at: slice, upstream: Tensor
) -> Tensor:
    """Gradient in the logits of some rows, in their memory."""
    with torch.enable_grad():
        logits = _logits(states.detach().requires_grad_(), weight.detach(), bias)
        first = rows(logits, at)[0]
        (slope,) = torch.autograd.grad(first, logits, upstream)
    return slope


def chunks(rows: int, vocab: int, like: Tensor) -> Iterator[slice]:
    """Rows whose logits are made together: as many as fit into `CHUNK_BYTES`, at least one.

    Args:
        rows: how many there are.
        vocab: width of the logits.
        like: of the logits' dtype.

    Returns:
        Slices one behind the other; an empty one where there are no rows.
    """
    size = max(1, CHUNK_BYTES // (vocab * like.element_size()))
    for start in range(0, max(rows, 1), size):
        yield slice(start, min(start + size, rows))
