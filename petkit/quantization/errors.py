"""What quantisation lost: of each matrix, of its output, and of the model's decisions."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from petkit.errors import InputError


@dataclass(frozen=True)
class MatrixError:
    """Errors of one matrix.

    Args:
        name: the matrix.
        relative_error: Frobenius norm of the difference over that of the weight.
        cosine: cosine of the angle between the two matrices as vectors.
        sqnr: signal to quantisation noise in decibel, -20 log10(relative_error); infinite when nothing is
            lost.
        output_error: the relative error of the matrix's outputs on the calibration inputs, or None without
            them.
    """

    name: str
    relative_error: float
    cosine: float
    sqnr: float
    output_error: float | None = None

    def payload(self) -> dict[str, str | float | None]:
        """The errors as JSON values: infinities become null."""
        return _finite(asdict(self))


@dataclass(frozen=True)
class OutputError:
    """Errors of a model's outputs.

    Args:
        kl: mean divergence KL(reference || quantised) of the predicted distributions, in nats.
        top1_agreement: fraction of predictions whose most likely class stays the same.
        count: predictions compared.
    """

    kl: float
    top1_agreement: float
    count: int

    def payload(self) -> dict[str, str | float | None]:
        """The errors as JSON values: infinities become null."""
        return _finite(asdict(self))


def matrix_error(
    name: str, weight: Tensor, quantized: Tensor, second_moment: Tensor | None = None
) -> MatrixError:
    """Compare a matrix with what its codes give back.

    Args:
        name: the matrix.
        weight: (out, in), the original.
        quantized: (out, in), the dequantised codes.
        second_moment: (in, in), X^T X of calibration inputs, for the error of the output.

    Returns:
        The errors; a matrix that is all zeros and stays so has error 0 and cosine 1.

    Raises:
        InputError: shapes differ.

    Source:
        Definitions, in float64.
    """
    if weight.shape != quantized.shape:
        raise InputError(
            f"{name}: quantised matrix must be {tuple(weight.shape)}, got {tuple(quantized.shape)}"
        )
    original, approximation = weight.detach().double().cpu(), quantized.detach().double().cpu()
    difference = original - approximation
    relative = _ratio(float(difference.norm()), float(original.norm()))
    product = float(original.norm() * approximation.norm())
    cosine = float((original * approximation).sum()) / product if product else float(relative == 0)
    output = None
    if second_moment is not None:
        moment = second_moment.double().cpu()
        squares = [max(0.0, float(((m @ moment) * m).sum())) for m in (difference, original)]
        output = _ratio(math.sqrt(squares[0]), math.sqrt(squares[1]))
    return MatrixError(name, relative, cosine, _decibel(relative), output)


def output_error(reference_logits: Tensor, quantized_logits: Tensor) -> OutputError:
    """Compare the predictions of two models on the same inputs.

    Args:
        reference_logits: (..., classes), of the 32-bit model.
        quantized_logits: (..., classes), of the quantised model.

    Returns:
        Mean divergence in nats and the agreement of the most likely class.

    Raises:
        InputError: shapes differ, or there is no prediction.

    Source:
        Kullback and Leibler (1951), computed from log-softmax in float64.
    """
    if reference_logits.shape != quantized_logits.shape or reference_logits.numel() == 0:
        shapes = f"{tuple(reference_logits.shape)} and {tuple(quantized_logits.shape)}"
        raise InputError(
            f"logits of both models must have one shape with at least one prediction, got {shapes}"
        )
    reference = torch.log_softmax(reference_logits.detach().double(), dim=-1)
    quantized = torch.log_softmax(quantized_logits.detach().double(), dim=-1)
    # Where the reference gives no probability the product is 0, whatever the logarithms are.
    terms = torch.where(reference.isneginf(), 0.0, reference.exp() * (reference - quantized))
    agree = (reference_logits.argmax(-1) == quantized_logits.argmax(-1)).double()
    return OutputError(float(terms.sum(-1).mean()), float(agree.mean()), agree.numel())


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def _ratio(part: float, whole: float) -> float:
    if whole == 0:
        return 0.0 if part == 0 else math.inf
    return part / whole


def _decibel(relative: float) -> float:
    if relative == 0:
        return math.inf
    return -20 * math.log10(relative) if math.isfinite(relative) else -math.inf
