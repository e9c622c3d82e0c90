"""`divergence`: how far a student's distribution over tokens lies from a teacher's, row by row."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops import _library
from petkit.ops._checks import check_float
from petkit.ops._rows import called, called_overwriting, row_mask, row_slices, rows_of
from petkit.ops.token_statistics import NUMBERS, check_temperature

# Nats below the maximum: a power of less than 2 to -125 counts nothing, and its logarithm would lose digits.
LEAST_NATS = -125 * math.log(2)


class Divergence(NamedTuple):
    """What `divergence` gives: float32 tensors in nats, of the logits' shape without the vocabulary."""

    loss: Tensor
    """The divergence that was asked for; it has a gradient."""

    forward_kl: Tensor
    """KL(teacher || student), without a gradient."""

    reverse_kl: Tensor
    """KL(student || teacher), without a gradient."""


def divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 0.5,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    overwrite: bool = False,
) -> Divergence:
    """Divergence between softmax(teacher / temperature), P, and softmax(student / temperature), Q.

    Args:
        student_logits: (..., vocab) float32, bfloat16 or float16; -inf means an impossible token.
        teacher_logits: likewise, of the same shape; no gradient flows into them.
        beta: 0 for KL(P || Q), 1 for KL(Q || P), between them the generalised Jensen-Shannon divergence
            beta KL(P || M) + (1 - beta) KL(Q || M) with M = beta P + (1 - beta) Q, as TRL counts beta.
        mask: (...); rows where it is 0 are not read, their results are 0 and so is their gradient.
        temperature: 1e-30 to 1e30; the results are not multiplied by its square.
        overwrite: let the backward pass write the gradient into the student's logits instead of into a new
            tensor of their size. They hold no logits any more then: a second backward pass is refused, and
            torch refuses that of whatever else has saved them. Under torch.compile it has no effect.

    Returns:
        The divergences. A token that is possible for one side only makes a Kullback-Leibler divergence
        infinite where that side weighs it, and leaves the Jensen-Shannon divergence finite. A row with nan or
        +inf, or with nothing but -inf, gives nan throughout, in its gradient too. So may the gradient of an
        infinite KL(Q || P), which has none; that of KL(P || Q) is Q - P everywhere.

    Raises:
        InputError: dtypes, shapes, beta or temperature out of range; a teacher that requires a gradient;
            logits to be overwritten that are a leaf, not contiguous, or in one memory with the teacher's; a
            gradient of torch.func or of forward mode; in a backward pass, a gradient of the gradient.

    Source:
        Agarwal et al. (2024), on-policy distillation, for the generalised divergence. Gradients in the
        student's logits a, over the temperature: Q - P; Q (log Q - log P - KL); with beta between 0 and 1,
        (1 - beta) Q (log Q - log M - KL(Q || M)).
    """
    check_float("student_logits", student_logits)
    check_float("teacher_logits", teacher_logits)
    if student_logits.shape != teacher_logits.shape:
        raise InputError(
            f"teacher_logits must be {tuple(student_logits.shape)} as student_logits are, got "
            f"{tuple(teacher_logits.shape)}"
        )
    if torch.is_grad_enabled() and teacher_logits.requires_grad:
        raise InputError("teacher_logits must not require a gradient, which never reaches them: detach them")
    if isinstance(beta, bool) or not isinstance(beta, NUMBERS) or not 0 <= beta <= 1:
        raise InputError(f"beta must be a number between 0 and 1, got {beta!r}")
    check_temperature(temperature)
    rows = rows_of("student_logits", student_logits, overwrite)
    teacher = teacher_logits.reshape(rows.shape)
    wanted = row_mask(mask, student_logits)
    inputs = (rows, teacher, wanted, float(beta), float(temperature))
    if overwrite:
        found = called_overwriting("divergence", _setup_context, *inputs)
    else:
        found = called("divergence", *inputs)
    return Divergence(*(part.reshape(student_logits.shape[:-1]) for part in found[:3]))


def _default(
    student: Tensor, teacher: Tensor, mask: Tensor, beta: float, temperature: float
) -> tuple[Tensor, ...]:
    parts = []
    for rows in row_slices(student):
        found = _default_rows(student[rows].float(), teacher[rows].float(), beta, temperature)
        if len(mask):
            kept = mask[rows]
            found = tuple(
                torch.where(kept if part.dim() == 1 else kept[:, None], part, 0.0) for part in found
            )
        parts.append(found)
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def _powers(x: Tensor, maximum: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits as nats below the maximum, and as weights, of which none is 0."""
    d = (x - maximum[:, None]) / temperature
    return d, d.clamp_min(LEAST_NATS).exp()


def _weighted(d: Tensor, weight: Tensor, values: Tensor) -> Tensor:
    # 0 log 0 is 0.
    return torch.where(d <= LEAST_NATS, 0.0, weight * values).sum(-1)


def _default_rows(a: Tensor, b: Tensor, beta: float, temperature: float) -> tuple[Tensor, ...]:
    top_a, top_b = a.amax(-1), b.amax(-1)
    (da, ea), (db, eb) = _powers(a, top_a, temperature), _powers(b, top_b, temperature)
    sum_a, sum_b = ea.sum(-1), eb.sum(-1)
    apart = sum_a.log() - sum_b.log()
    against = _weighted(da, ea, da - db) / sum_a
    forward, reverse = _weighted(db, eb, db - da) / sum_b + apart, against - apart
    loss, centre = forward, torch.zeros_like(forward)
    if beta == 1:
        loss, centre = reverse, against
    elif beta > 0:
        mixture = (ea + beta / (1 - beta) * (sum_a / sum_b)[:, None] * eb).log()
        centre = _weighted(da, ea, da - mixture) / sum_a
        outer = -math.log1p(-beta)
        of_teacher = _weighted(db, eb, db - mixture) / sum_b + apart
        loss = beta * (of_teacher + outer) + (1 - beta) * (centre + outer)
    return loss, forward, reverse, torch.stack([top_a, top_b, sum_a, sum_b, centre], -1)


def _fake(
    student: Tensor, teacher: Tensor, mask: Tensor, beta: float, temperature: float
) -> tuple[Tensor, ...]:
    rows = student.shape[0]
    columns = [student.new_empty((rows,), dtype=torch.float32) for _ in range(3)]
    return (*columns, student.new_empty((rows, 5), dtype=torch.float32))


def _backward_rows(
    a: Tensor, b: Tensor, statistics: Tensor, upstream: Tensor, beta: float, temperature: float
) -> Tensor:
    top_a, top_b, sum_a, sum_b, centre = (column[:, None] for column in statistics.unbind(-1))
    (da, ea), (db, eb) = _powers(a, top_a[:, 0], temperature), _powers(b, top_b[:, 0], temperature)
    rise = upstream[:, None] / temperature
    if beta == 0:
        part = torch.where(da <= LEAST_NATS, 0.0, rise * (ea / sum_a))
        part = part - torch.where(db <= LEAST_NATS, 0.0, rise * (eb / sum_b))
    else:
        nats = da - db
        if beta < 1:
            nats = da - (ea + beta / (1 - beta) * (sum_a / sum_b) * eb).log()
            rise = rise * (1 - beta)
        part = torch.where(da <= LEAST_NATS, 0.0, rise * (ea / sum_a) * (nats - centre))
    # Beside a +inf every other token is impossible, but no less unknown.
    return torch.where(torch.isnan(sum_a + sum_b), torch.nan, part)


def _backward_default_(student: Tensor, *rest: Any) -> None:
    _write_gradient(student, student, *rest)


def _backward_default(student: Tensor, *rest: Any) -> Tensor:
    gradient = torch.empty_like(student, memory_format=torch.contiguous_format)
    _write_gradient(gradient, student, *rest)
    return gradient


def _write_gradient(
    target: Tensor,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    statistics: Tensor,
    upstream: Tensor,
    beta: float,
    temperature: float,
) -> None:
    for rows in row_slices(student):
        part = _backward_rows(
            student[rows].float(), teacher[rows].float(), statistics[rows], upstream[rows], beta, temperature
        )
        target[rows] = torch.where(mask[rows, None], part, 0.0) if len(mask) else part


def _backward_fake(student: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(student, memory_format=torch.contiguous_format)


def _nothing(*_: Any) -> None:
    return None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    student, teacher, mask, *ctx.settings = inputs
    _, forward, reverse, statistics = output
    ctx.mark_non_differentiable(forward, reverse, statistics)
    ctx.save_for_backward(student, teacher, mask, statistics)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
    student, teacher, mask, statistics = ctx.saved_tensors
    gradient: Tensor = torch.ops.petkit.divergence_backward(
        student, teacher, mask, statistics, grads[0], *ctx.settings
    )
    return gradient, None, None, None, None


_ARGUMENTS = "Tensor teacher, Tensor mask, Tensor statistics, Tensor upstream, float beta, float temperature"
_library.define(
    "divergence(Tensor student, Tensor teacher, Tensor mask, float beta, float temperature) -> (Tensor loss, "
    "Tensor forward_kl, Tensor reverse_kl, Tensor statistics)",
    _default,
    _fake,
)
_library.define(
    f"divergence_backward(Tensor student, {_ARGUMENTS}) -> Tensor", _backward_default, _backward_fake
)
_library.define(f"divergence_backward_(Tensor(a!) student, {_ARGUMENTS}) -> ()", _backward_default_, _nothing)
torch.library.register_autograd("petkit::divergence", _backward, setup_context=_setup_context)
_library.differentiable_once("divergence", "compute from torch.log_softmax(logits, -1)")
