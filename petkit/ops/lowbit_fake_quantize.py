"""`lowbit_fake_quantize`: the quantiser inside training, with its straight-through gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops import _library
from petkit.ops._checks import check_weight
from petkit.ops._packing import EPSILON, codes_of, moments, values_of
from petkit.ops.lowbit_codebook import levels_on


def lowbit_fake_quantize(
    weight: Tensor, bits: int, kind: str = "normal_l1", gradient: str = "exact"
) -> Tensor:
    """Replace a weight matrix by its quantised values; the gradient passes through the rounding.

    Args:
        weight: (out, in) float32, bfloat16 or float16, at least two values. A weight that is not finite makes
            every output nan.
        bits: 1, 2, 4 or 8.
        kind: the codebook, see `lowbit_codebook`.
        gradient: "exact" differentiates w' = mean + std * (n + (q - n held constant)) with live mean, std and
            n = (w - mean) / (std + eps); "identity" passes the gradient on as it comes.

    Returns:
        (out, in) of weight's dtype, bit for bit `lowbit_dequantize(*lowbit_quantize(weight))`.

    Raises:
        InputError: no matrix, another dtype, fewer than two weights, an unknown gradient.

    Source:
        Jie et al. (ICCV 2023), quantisation-aware training; the exact gradient, up to terms of order eps, is
        g_j + sum_i(g_i (q_i - n_i)) n_j / (N - 1).
    """
    check_weight(weight)
    if gradient not in ("exact", "identity"):
        raise InputError(f"gradient must be exact or identity, got {gradient!r}")
    levels = levels_on(bits, kind, weight.device)
    quantized: Tensor = torch.ops.petkit.lowbit_fake_quantize(weight, levels, bits, gradient == "exact")[0]
    return quantized


def _default(weight: Tensor, levels: Tensor, bits: int, exact: bool) -> tuple[Tensor, Tensor, Tensor]:
    shift, scale = moments(weight)
    values = values_of(shift, scale, levels).to(weight.dtype)
    return values[codes_of(weight, shift, scale, levels)], shift, scale


def _fake(weight: Tensor, levels: Tensor, bits: int, exact: bool) -> tuple[Tensor, Tensor, Tensor]:
    scalar = weight.new_empty((), dtype=torch.float32)
    return weight.new_empty(weight.shape), scalar, torch.empty_like(scalar)


def _backward_default(
    grad: Tensor, weight: Tensor, shift: Tensor, scale: Tensor, levels: Tensor, bits: int
) -> Tensor:
    # With r = std / (std + eps):
    #   dL/dw_k = r g_k + (1 - r) mean(g) + sum_j(g_j (q_j - r n_j)) (w_k - mean) / ((N - 1) std)
    weight, gradients = weight.contiguous(), grad.contiguous().float()
    deviation = weight.float() - shift
    spread = scale.double() + EPSILON
    ratio = scale.double() / spread
    rounded = levels[codes_of(weight, shift, scale, levels)]
    inner = (gradients * (rounded - deviation * (ratio / spread).float())).double().sum()
    # The standard deviation of a constant matrix has no derivative; like torch.std's it counts as zero.
    slope = torch.where(scale > 0, inner / ((weight.numel() - 1) * scale.double()), 0.0)
    offset = (1 - ratio) * gradients.double().mean()
    return (gradients * ratio.float() + offset.float() + deviation * slope.float()).to(weight.dtype)


def _backward_fake(
    grad: Tensor, weight: Tensor, shift: Tensor, scale: Tensor, levels: Tensor, bits: int
) -> Tensor:
    return weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, levels, ctx.bits, ctx.exact = inputs
    ctx.mark_non_differentiable(output[1], output[2])
    if ctx.exact:
        ctx.save_for_backward(weight, output[1], output[2], levels)


def _backward(ctx: Any, grad: Tensor, _shift: Tensor, _scale: Tensor) -> tuple[Tensor, None, None, None]:
    if not ctx.exact:
        return grad, None, None, None
    weight, shift, scale, levels = ctx.saved_tensors
    return (
        torch.ops.petkit.lowbit_fake_quantize_backward(grad, weight, shift, scale, levels, ctx.bits),
        None,
        None,
        None,
    )


_library.define(
    "lowbit_fake_quantize(Tensor weight, Tensor levels, int bits, bool exact) "
    "-> (Tensor quantized, Tensor shift, Tensor scale)",
    _default,
    _fake,
)
_library.define(
    "lowbit_fake_quantize_backward(Tensor grad, Tensor weight, Tensor shift, Tensor scale, Tensor levels, "
    "int bits) -> Tensor",
    _backward_default,
    _backward_fake,
)
torch.library.register_autograd("petkit::lowbit_fake_quantize", _backward, setup_context=_setup_context)
_library.differentiable_once("lowbit_fake_quantize", "write it in plain torch")
