"""What operators over rows of logits share: masks, refused derivatives, gradients in the logits' place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from petkit.errors import InputError
from petkit.ops._checks import bool_mask, check_tensor

# torch leaves these untyped.
_unpacked: Any = unpack_dual
_increment_version: Any = torch.autograd.graph.increment_version

# What a pure-torch default widens at a time.
LEAST_CHUNK_ROWS, CHUNK_LOGITS = 16, 1 << 16


def row_mask(mask: Tensor | None, logits: Tensor) -> Tensor:
    """Turn a mask of positions into one of rows.

    Args:
        mask: bool or numbers of 0 and 1 (...); None keeps every row.
        logits: (..., vocab).

    Returns:
        bool (rows,), or an empty tensor where there was no mask.

    Raises:
        InputError: another shape, or other numbers.
    """
    if mask is None:
        return torch.empty(0, dtype=torch.bool, device=logits.device)
    check_tensor("mask", mask)
    if mask.shape != logits.shape[:-1]:
        raise InputError(
            f"mask must be {tuple(logits.shape[:-1])} for logits {tuple(logits.shape)}, got "
            f"{tuple(mask.shape)}"
        )
    return bool_mask("mask", mask).reshape(-1)


def rows_of(name: str, logits: Tensor, overwrite: bool) -> Tensor:
    """View logits as rows.

    Args:
        name: of the logits, for messages.
        logits: (..., vocab).
        overwrite: whether the gradient is to take their place.

    Returns:
        (rows, vocab).

    Raises:
        InputError: no vocabulary, or logits that cannot be overwritten.
    """
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise InputError(f"{name} must be (..., vocab) with vocab >= 1, got {tuple(logits.shape)}")
    if overwrite and not torch.compiler.is_compiling():
        _check_overwritable(name, logits)
    return logits.reshape(-1, logits.shape[-1])


def _check_overwritable(name: str, logits: Tensor) -> None:
    if not logits.is_contiguous():
        raise InputError(
            f"{name} must be contiguous to be overwritten by its gradient, got strides {logits.stride()}"
        )
    owners = (logits,) if logits._base is None else (logits, logits._base)
    if any(owner.is_leaf and owner.requires_grad for owner in owners):
        raise InputError(
            f"{name} must come from a computation to be overwritten by its gradient, got a leaf or a view of "
            "one, whose values the caller keeps"
        )


def row_slices(logits: Tensor) -> Iterator[slice]:
    """Cut rows into those that a pure-torch default widens at a time; at least one cut, which may be empty.

    Args:
        logits: (rows, vocab).
    """
    rows, vocab = logits.shape
    step = max(LEAST_CHUNK_ROWS, CHUNK_LOGITS // vocab)
    for first in range(0, max(rows, 1), step):
        yield slice(first, first + step)


def called(name: str, *inputs: Any) -> tuple[Tensor, ...]:
    """Call an operator; refuse derivatives that it does not have.

    Args:
        name: of the operator.
        inputs: its arguments.

    Returns:
        What the operator gives.

    Raises:
        InputError: a gradient of torch.func or of forward mode.
    """
    return _refusing(name, getattr(torch.ops.petkit, name), *inputs)


def called_overwriting(name: str, setup_context: Callable[..., None], *inputs: Any) -> tuple[Tensor, ...]:
    """Call an operator whose gradient is to take the place of its first input.

    Args:
        name: of the operator; `name_backward_` writes the gradient.
        setup_context: as `torch.library.register_autograd` takes it. It saves the first input first, and as
            `ctx.settings` what `name_backward_` takes after the saved tensors and the gradient of the first
            result.
        inputs: the operator's arguments.

    Returns:
        What the operator gives.

    Raises:
        InputError: another input in the first one's memory; a gradient of torch.func or of forward mode; in a
            backward pass, a second one or a gradient of the gradient.
    """
    # A compiler plans memory itself, and its traces must not write to what they are given.
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not inputs[0].requires_grad:
        return called(name, *inputs)
    return _refusing(name, _Overwriting.apply, name, setup_context, *inputs)


def _refusing(name: str, call: Callable[..., Any], *inputs: Any) -> tuple[Tensor, ...]:
    message = (
        f"{name} has no derivatives by torch.func (grad, jacrev, jvp) and in forward mode: use backward() or "
        "torch.autograd.grad"
    )
    # Of forward mode torch would silently take the derivative for zero.
    if not torch.compiler.is_compiling():
        tensors = (value for value in inputs if isinstance(value, Tensor))
        if any(_unpacked(tensor).tangent is not None for tensor in tensors):
            raise InputError(message)
    try:
        found: tuple[Tensor, ...] = call(*inputs)
    except RuntimeError as error:
        # How torch says that torch.func cannot see into an operator's gradient.
        if "setup_context" not in str(error):
            raise
        raise InputError(message) from None
    return found


def _overlap(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors, the first of them contiguous, may share memory."""
    if one.device != two.device or not one.numel() or not two.numel():
        return False
    last = sum((size - 1) * stride for size, stride in zip(two.shape, two.stride(), strict=True))
    behind = two.data_ptr() + (last + 1) * two.element_size()
    return one.data_ptr() < behind and two.data_ptr() < one.data_ptr() + one.nbytes


class _Overwriting(torch.autograd.Function):
    """An operator with a gradient that takes the place of its first input."""

    @staticmethod
    def forward(ctx: Any, name: str, setup_context: Callable[..., None], *inputs: Any) -> tuple[Tensor, ...]:
        logits, *others = (value for value in inputs if isinstance(value, Tensor))
        if any(_overlap(logits, other) for other in others):
            raise InputError(
                f"{name} cannot overwrite logits in whose memory another of its arguments lies: leave "
                "out overwrite"
            )
        output: tuple[Tensor, ...] = getattr(torch.ops.petkit, name)(*inputs)
        setup_context(ctx, inputs, output)
        ctx.name, ctx.others, ctx.done = name, len(inputs) - 1, False
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise InputError(
                f"{ctx.name} can be differentiated once, and gives no gradient to differentiate "
                "(create_graph=True) where it overwrites its logits: leave out overwrite"
            )
        if ctx.done:
            raise InputError(
                f"{ctx.name} has overwritten its logits by their gradient: for a second backward pass leave "
                "out overwrite"
            )
        logits, *saved = ctx.saved_tensors
        getattr(torch.ops.petkit, f"{ctx.name}_backward_")(logits, *saved, grads[0], *ctx.settings)
        # So that torch refuses the backward pass of whatever else still needs the logits.
        _increment_version(logits)
        ctx.done = True
        return None, None, logits.detach(), *(None for _ in range(ctx.others))
