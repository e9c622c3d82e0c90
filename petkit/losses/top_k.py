"""The forward KL where only the teacher's likeliest tokens are known."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.losses.masked import can_look, check_logits, masked_mean, token_mask
from petkit.ops._checks import first_place
from petkit.ops.selected_log_probs import selected_log_probs

Tail = Literal["none", "renormalize", "bucket"]
# The least probability of a student's tail: what float32 tells from 0 beside 1.
LEAST_TAIL = 2.0**-23
# What rounding may make of a probability of 1.
MOST_LOG_PROB = 1e-3
# What the rounding of log-probabilities to a dtype may add to a sum of probabilities: of those in bfloat16
# that are far from 0 an eighth was seen.
SUM_TOLERANCE = {torch.bfloat16: 0.25, torch.float16: 0.03}


def topk_forward_kl(
    student_logits: Tensor,
    top_ids: Tensor,
    top_log_probs: Tensor,
    mask: Tensor | None = None,
    tail: Tail = "none",
    temperature: float = 1.0,
    *,
    overwrite: bool = False,
) -> Tensor:
    """Mean over tokens of the forward KL on the teacher's k likeliest tokens.

    Args:
        student_logits: (batch, tokens, vocab) float32, bfloat16 or float16.
        top_ids: integers (batch, tokens, k), the teacher's likeliest tokens, none of them twice.
        top_log_probs: (batch, tokens, k), the teacher's log-probabilities of them.
        mask: (batch, tokens); None counts every token. Masked logits are not read.
        tail: what becomes of all other tokens, as in `top_k_terms`.
        temperature: of the student; the teacher's must be in its log-probabilities already.
        overwrite: as in `petkit.losses.forward_kl`.

    Returns:
        A scalar in nats, float32.

    Raises:
        InputError: shapes, ids or tail are wrong; log-probabilities that are none; nothing that counts; on
            the CPU, an id twice at a token that counts, logits of one that are no distribution, nothing
            but -inf among its log-probabilities, or probabilities whose sum is above 1 by more than the
            rounding of their dtype.

    Source:
        `top_k_terms`.
    """
    kept = token_mask(mask, student_logits.shape[:-1], student_logits.device)
    if top_log_probs.shape != top_ids.shape:
        raise InputError(
            f"top_log_probs must be {tuple(top_ids.shape)} as top_ids are, got {tuple(top_log_probs.shape)}"
        )
    _check_ids(top_ids, student_logits, kept)
    found = selected_log_probs(student_logits, top_ids, mask, temperature, overwrite)
    own = found.log_probs
    check_logits(found.entropy, kept, {"student_logits": student_logits})
    _check_different(top_ids, kept)
    # Of masked tokens nothing is asked, neither of their log-probabilities.
    teacher = torch.where(kept[..., None], top_log_probs, 0.0)
    check_log_probs("top_log_probs", top_log_probs, kept)
    check_possible("top_log_probs", top_log_probs, kept)
    _check_sums(top_log_probs, kept)
    return masked_mean(top_k_terms(own, teacher, tail), mask)


def top_k_terms(student_top_log_probs: Tensor, top_log_probs: Tensor, tail: Tail = "none") -> Tensor:
    """The forward KL of each token, from log-probabilities of both sides.

    Args:
        student_top_log_probs: (..., k), the student's log-probabilities of the teacher's likeliest tokens.
        top_log_probs: (..., k), the teacher's own.
        tail: none leaves all other tokens out, so that a value may be negative; renormalize makes both
            sides distributions over the k tokens; bucket counts all other tokens as one.

    Returns:
        (...) in nats, with a gradient in the student's side.

    Raises:
        InputError: an unknown tail, or shapes that differ.

    Source:
        Sum of p (log p - log q) over the k tokens; with the bucket (1 - sum p, 1 - sum q) beside them it is
        a divergence of k + 1 categories and never above the true one.
    """
    if tail not in get_args(Tail):
        raise InputError(f"tail must be one of {', '.join(get_args(Tail))}, got {tail!r}")
    if student_top_log_probs.shape != top_log_probs.shape:
        raise InputError(
            f"top_log_probs must be {tuple(student_top_log_probs.shape)} as the student's are, got "
            f"{tuple(top_log_probs.shape)}"
        )
    student, teacher = student_top_log_probs.float(), top_log_probs.detach().float()
    if tail == "renormalize":
        student, teacher = torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)
    terms = _products(teacher, student).sum(-1)
    if tail != "bucket":
        return terms
    rest = _rest(student)
    # The gradient goes on where the rest is too small for float32: as that of the least rest.
    floored = rest + (LEAST_TAIL - rest).clamp_min(0).detach()
    return terms + _products(_rest(teacher).clamp_min(0).log(), floored.log()).float()


def check_log_probs(name: str, values: Tensor, kept: Tensor | None = None) -> None:
    """Refuse what cannot be log-probabilities.

    Args:
        name: of the values, for the message.
        values: any shape; -inf is a probability of 0.
        kept: bool, of the shape of the values or without their last dimension: those that count; None all.

    Raises:
        InputError: nan, or values above 0 by more than rounding; the message has the place of the first.
            Compiled graphs do not look.
    """
    if torch.compiler.is_compiling():
        return
    values = values.detach()
    if kept is not None:
        values = torch.where(kept if kept.dim() == values.dim() else kept[..., None], values, 0.0)
    # The largest of values with a nan is nan.
    largest = float(values.max()) if values.numel() else 0.0
    if largest <= MOST_LOG_PROB:
        return
    unknown = values.isnan()
    if unknown.any():
        raise InputError(
            f"{name} must be log-probabilities, got nan in {int(unknown.sum())} places, the first at "
            f"{first_place(unknown)}"
        )
    place = first_place(values > MOST_LOG_PROB)
    raise InputError(f"{name} must be log-probabilities of at most 0, got {largest:g}, the first at {place}")


def check_possible(name: str, values: Tensor, kept: Tensor) -> None:
    """Refuse a token whose likeliest tokens are all impossible; looked for on the CPU alone.

    Args:
        name: of the values, for the message.
        values: (..., k) log-probabilities.
        kept: bool (...): tokens that count.

    Raises:
        InputError: nothing but -inf at a token that counts; the message has the place of the first.
    """
    if not can_look(values) or not values.numel():
        return
    impossible = kept & (values.detach().amax(-1) == -torch.inf)
    if impossible.any():
        raise InputError(
            f"{name} must be finite, or -inf for some tokens, got nothing but -inf at "
            f"{first_place(impossible)}"
        )


def _check_sums(values: Tensor, kept: Tensor) -> None:
    """Refuse a token whose likeliest tokens are together likelier than certain; on the CPU alone."""
    if not can_look(values) or not values.numel():
        return
    sums = values.detach().float().logsumexp(-1).exp()
    wrong = kept & (sums > 1 + SUM_TOLERANCE.get(values.dtype, MOST_LOG_PROB))
    if wrong.any():
        raise InputError(
            "top_log_probs must be of probabilities whose sum is at most 1, got "
            f"{float(sums[wrong][0]):.3g} at {first_place(wrong)}"
        )


def _check_ids(ids: Tensor, logits: Tensor, kept: Tensor) -> None:
    """Refuse what names no tokens; their range is looked at on the CPU alone."""
    is_integer = not ids.is_floating_point() and ids.dtype != torch.bool
    if not is_integer or ids.dim() != logits.dim() or ids.shape[:-1] != logits.shape[:-1]:
        raise InputError(
            f"top_ids must be integers {tuple(logits.shape[:-1])} and one dimension more for student_logits "
            f"{tuple(logits.shape)}, got {ids.dtype} {tuple(ids.shape)}"
        )
    if ids.shape[-1] == 0:
        raise InputError("top_ids must name at least one token at each position, got none")
    if not can_look(ids):
        return
    odd = kept[..., None] & ((ids < 0) | (ids >= logits.shape[-1]))
    if odd.any():
        found = int(ids[odd][0])
        raise InputError(
            f"top_ids must lie between 0 and {logits.shape[-1] - 1}, got {found} at {first_place(odd)}"
        )


def _check_different(ids: Tensor, kept: Tensor) -> None:
    """Refuse a token that is named twice, whose part would count twice."""
    if not can_look(ids):
        return
    ordered = ids.sort(-1).values
    double = (ordered[..., 1:] == ordered[..., :-1]) & kept[..., None]
    if double.any():
        first = tuple(double.nonzero()[0].tolist())
        raise InputError(
            f"top_ids must name {ids.shape[-1]} different tokens, got {int(ordered[..., 1:][first])} twice "
            f"at {first_place(double.any(-1))}"
        )


def _products(teacher: Tensor, student: Tensor) -> Tensor:
    """p (log p - log q); 0 log 0 is 0."""
    possible = teacher > -torch.inf
    difference = torch.where(possible, teacher, 0.0) - torch.where(possible, student, 0.0)
    return teacher.exp() * difference


def _rest(log_probs: Tensor) -> Tensor:
    """1 - the sum of probabilities, in float64; rounding of the logarithms may bring it below 0."""
    # Not 1 - (nearly 1): next to nothing is left where one token has nearly everything. The bound is for
    # the gradient of impossible tokens alone.
    return -log_probs.double().clamp_min(-1e3).logsumexp(-1).expm1()
