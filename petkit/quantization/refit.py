"""Least-squares refit: the shift and scale (and, in rounds, the codes) that lose least of a matrix or of
its output.

A quantised matrix is a + b L with L[i, j] one of the codebook's levels. Moments choose a and b without
looking at the codes; here they minimise a squared error, which is a 2 x 2 linear system whatever the size
of the matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.artifacts.packed import PackedMatrix
from petkit.errors import InputError
from petkit.ops import lowbit_codebook
from petkit.quantization.nearest import check_matrix, nearest

# Few calibration inputs leave directions unseen; a small multiple of the identity keeps their weights near
# the original.
DAMPING = 0.01


def refit_shift_scale(
    weight: Tensor, levels: Tensor, second_moment: Tensor | None = None
) -> tuple[float, float]:
    """Solve for the shift a and scale b that minimise the squared error of a + b L.

    Args:
        weight: (out, in), the weights to approximate.
        levels: (out, in), the level L[i, j] of every code.
        second_moment: (in, in), X^T X of calibration inputs X (tokens, in), which makes the error that of
            the output X (W - a - b L)^T; None weighs every weight alike.

    Returns:
        (a, b). When every level is the same the two are not determined and b is 0.

    Raises:
        InputError: shapes that do not fit.

    Source:
        Normal equations of the two-parameter linear model, in float64.
    """
    if levels.shape != weight.shape:
        raise InputError(
            f"levels must have shape {tuple(weight.shape)} as the weight, got {tuple(levels.shape)}"
        )
    w, level = weight.double(), levels.double()
    ones = torch.ones_like(level)
    weighted_ones, weighted_levels = _weighted(ones, second_moment), _weighted(level, second_moment)
    one_one, one_level = float((weighted_ones * ones).sum()), float((weighted_ones * level).sum())
    level_level = float((weighted_levels * level).sum())
    one_w, level_w = float((weighted_ones * w).sum()), float((weighted_levels * w).sum())
    determinant = one_one * level_level - one_level**2
    if determinant <= 1e-12 * one_one * level_level:
        return (one_w / one_one if one_one > 0 else float(w.mean())), 0.0
    shift = (one_w * level_level - level_w * one_level) / determinant
    scale = (one_one * level_w - one_level * one_w) / determinant
    return shift, scale


def reassign_codes(
    weight: Tensor,
    codes: Tensor,
    shift: float,
    scale: float,
    codebook: Tensor,
    second_moment: Tensor | None = None,
) -> Tensor:
    """Choose each code anew, with shift and scale held: never a larger squared error than before.

    Args:
        weight: (out, in), the weights to approximate.
        codes: int64 (out, in), the present codes.
        shift: a.
        scale: b, positive.
        codebook: float32 (levels,), ascending.
        second_moment: (in, in) as in `refit_shift_scale`; then one column after another takes the levels
            that are best while the other columns stay, which is exact for that column.

    Returns:
        New codes, int64 (out, in).

    Raises:
        InputError: a scale that is not positive.

    Source:
        Coordinate descent on the quadratic output error; without a second moment, the nearest level.
    """
    if not scale > 0:
        raise InputError(f"scale must be positive to choose codes, got {scale}")
    book = codebook.double()
    thresholds = (book[1:] + book[:-1]) / 2
    target = (weight.double() - shift) / scale
    if second_moment is None:
        return torch.bucketize(target, thresholds)
    moment, new = second_moment.double(), codes.clone()
    residual = (target - book[new]) @ moment
    for column in torch.nonzero(moment.diagonal() > 0).flatten().tolist():
        present = book[new[:, column]]
        best = torch.bucketize(present + residual[:, column] / moment[column, column], thresholds)
        residual -= torch.outer(book[best] - present, moment[column])
        new[:, column] = best
    return new


def least_squares(
    weight: Tensor, bits: int, kind: str = "normal_l1", second_moment: Tensor | None = None, rounds: int = 0
) -> PackedMatrix:
    """Quantise one matrix by nearest levels, then refit shift and scale by least squares.

    Args:
        weight: (out, in), floating point, finite.
        bits: 1, 2, 4 or 8 bits a weight.
        kind: codebook, "normal_l1" or "petl_vit".
        second_moment: (in, in), X^T X of calibration inputs; None fits the weights themselves.
        rounds: how often codes are chosen anew and shift and scale refitted after that.

    Returns:
        The packed matrix; its squared error (of the output, with a second moment) is at most that of
        `nearest`.

    Raises:
        InputError: a bad weight, a second moment of another shape or not finite, or negative rounds.

    Source:
        Alternating least squares; each half-step lowers the same objective.
    """
    check_matrix(weight)
    moment = _damped(second_moment, weight.shape[1])
    if rounds < 0:
        raise InputError(f"rounds must be at least 0, got {rounds}")
    first = nearest(weight, bits, kind)
    codebook = lowbit_codebook(bits, kind)
    codes = torch.from_numpy(first.codes())
    w = weight.detach().float().cpu()
    shift, scale = refit_shift_scale(w, codebook[codes], moment)
    for _ in range(rounds):
        if scale <= 0:
            break
        codes = reassign_codes(w, codes, shift, scale, codebook, moment)
        shift, scale = refit_shift_scale(w, codebook[codes], moment)
    if scale <= 0:
        # A constant matrix has one level only, and its moments reproduce it.
        return first
    return PackedMatrix.from_codes(codes.numpy(), shift, scale, bits, kind)


def _weighted(matrix: Tensor, second_moment: Tensor | None) -> Tensor:
    if second_moment is None:
        return matrix
    if tuple(second_moment.shape) != (matrix.shape[1], matrix.shape[1]):
        raise InputError(
            f"second_moment must have shape {(matrix.shape[1],) * 2}, got {tuple(second_moment.shape)}"
        )
    return matrix @ second_moment.double()


def _damped(second_moment: Tensor | None, size: int) -> Tensor | None:
    if second_moment is None:
        return None
    if tuple(second_moment.shape) != (size, size) or not bool(second_moment.isfinite().all()):
        raise InputError(
            f"second_moment must be finite with shape {(size, size)}, got {tuple(second_moment.shape)}"
        )
    moment = second_moment.double()
    return moment + DAMPING * moment.diagonal().mean() * torch.eye(size, dtype=torch.float64)
