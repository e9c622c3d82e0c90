"""`lowbit_linear`: a linear layer straight from packed codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops import _library
from petkit.ops._checks import check_float, check_packed
from petkit.ops._packing import decode_rows, row_chunks, values_of
from petkit.ops.lowbit_codebook import levels_on


def lowbit_linear(
    x: Tensor, packed: Tensor, shift: Tensor, scale: Tensor, bits: int, kind: str = "normal_l1"
) -> Tensor:
    """y = x W^T with W kept in packed codes; no dense weight is ever made. Differentiable in x.

    x must be as wide as the matrix that was packed. Rows are padded to whole bytes, so another width that
    needs as many bytes a row (at 1 bit 57 to 64, say) cannot be told apart: it is taken, and wrong.

    Args:
        x: (..., in) float32, bfloat16 or float16; in is the width that was packed.
        packed: uint8 (out, ceil(in * bits / 8)) of `lowbit_quantize`.
        shift: float32 scalar.
        scale: float32 scalar.
        bits: 1, 2, 4 or 8.
        kind: the codebook, see `lowbit_codebook`.

    Returns:
        (..., out) of x's dtype, summed in float32.

    With one bit the sum over all of x enters every output, so that an infinite x gives nan where a dense
    product may give an infinity.

    Raises:
        InputError: dtypes that do not fit, or a width that needs another number of bytes a row.
    """
    check_float("x", x)
    if x.dim() == 0:
        raise InputError("x must have shape (..., in), got a scalar")
    levels = levels_on(bits, kind, x.device)
    check_packed(packed, shift, scale, bits, x.shape[-1])
    rows = x.reshape(-1, x.shape[-1]) if x.dim() != 2 else x
    y: Tensor = torch.ops.petkit.lowbit_linear(rows, packed, shift, scale, levels, bits)
    return y.view(*x.shape[:-1], packed.shape[0]) if x.dim() != 2 else y


def _default(x: Tensor, packed: Tensor, shift: Tensor, scale: Tensor, levels: Tensor, bits: int) -> Tensor:
    (tokens, columns), rows = x.shape, packed.shape[0]
    values, inputs = values_of(shift, scale, levels), x.float()
    y = x.new_empty((tokens, rows))
    for part in row_chunks(rows, columns):
        y[:, part] = inputs @ decode_rows(packed[part], values, bits, columns).T
    return y


def _fake(x: Tensor, packed: Tensor, shift: Tensor, scale: Tensor, levels: Tensor, bits: int) -> Tensor:
    return x.new_empty((x.shape[0], packed.shape[0]))


def _backward_default(
    grad: Tensor, packed: Tensor, shift: Tensor, scale: Tensor, levels: Tensor, bits: int, in_features: int
) -> Tensor:
    values, gradients = values_of(shift, scale, levels), grad.float()
    total = gradients.new_zeros((grad.shape[0], in_features))
    for part in row_chunks(packed.shape[0], in_features):
        total.addmm_(gradients[:, part], decode_rows(packed[part], values, bits, in_features))
    return total.to(grad.dtype)


def _backward_fake(
    grad: Tensor, packed: Tensor, shift: Tensor, scale: Tensor, levels: Tensor, bits: int, in_features: int
) -> Tensor:
    return grad.new_empty((grad.shape[0], in_features))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, shift, scale, levels, ctx.bits = inputs
    ctx.in_features = x.shape[1]
    ctx.save_for_backward(packed, shift, scale, levels)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
    packed, shift, scale, levels = ctx.saved_tensors
    grad_x = torch.ops.petkit.lowbit_linear_backward(
        grad, packed, shift, scale, levels, ctx.bits, ctx.in_features
    )
    return grad_x, None, None, None, None, None


def _setup_context_of_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, packed, shift, scale, levels, ctx.bits, _ = inputs
    ctx.save_for_backward(packed, shift, scale, levels)


def _backward_of_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
    # The gradient is linear in what it is given, by the transposed weight.
    return (
        torch.ops.petkit.lowbit_linear(grad, *ctx.saved_tensors, ctx.bits),
        None,
        None,
        None,
        None,
        None,
        None,
    )


_library.define(
    "lowbit_linear(Tensor x, Tensor packed, Tensor shift, Tensor scale, Tensor levels, int bits) -> Tensor",
    _default,
    _fake,
)
_library.define(
    "lowbit_linear_backward(Tensor grad, Tensor packed, Tensor shift, Tensor scale, Tensor levels, int bits, "
    "int in_features) -> Tensor",
    _backward_default,
    _backward_fake,
)
torch.library.register_autograd("petkit::lowbit_linear", _backward, setup_context=_setup_context)
torch.library.register_autograd(
    "petkit::lowbit_linear_backward", _backward_of_gradient, setup_context=_setup_context_of_gradient
)
