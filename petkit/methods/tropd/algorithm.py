"""The trust region of on-policy distillation, as functions of log-probabilities.

Notation: for a token x that the student sampled, S = log pi_S(x) and T = log pi_T(x) are the student's and
the teacher's log-probabilities in its context, R = T - S is what the token is worth. Everything but S and the
student's log-probabilities of the teacher's likeliest tokens is constant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.losses.masked import blank, token_mask
from petkit.losses.top_k import Tail, check_log_probs, check_possible, top_k_terms
from petkit.ops._checks import bool_mask, first_place

MaskMode = Literal["bernoulli", "expected", "hard"]
Outlier = Literal["fkl", "mask", "clip", "rkl"]

# log(1e-12): a teacher that finds a token impossible counts it as this unlikely.
LEAST_LOG_PROB = -27.631021115928547
FLOOR = -1.386


def rewards(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """What each token is worth: R = T - S, without a gradient.

    Args:
        student_log_probs: (...) in nats.
        teacher_log_probs: (...); below log(1e-12), and -inf, it counts as log(1e-12).

    Returns:
        (...) float32.

    Raises:
        InputError: shapes differ.

    Source:
        TrOPD, section 3: the negative single-sample estimate of KL(student || teacher).
    """
    if student_log_probs.shape != teacher_log_probs.shape:
        raise InputError(
            f"teacher_log_probs must be {tuple(student_log_probs.shape)} as student_log_probs are, got "
            f"{tuple(teacher_log_probs.shape)}"
        )
    return teacher_log_probs.detach().float().clamp_min(LEAST_LOG_PROB) - student_log_probs.detach().float()


def trust_mask(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    mode: MaskMode = "bernoulli",
    generator: torch.Generator | None = None,
    threshold: float = 0.0,
) -> Tensor:
    """Which tokens lie within the trust region.

    Args:
        student_log_probs: (...) of the tokens that the student sampled, in nats.
        teacher_log_probs: (...) of the same tokens, at the same temperature.
        mode: bernoulli draws 1 with the probability min(pi_T / pi_S, 1); expected gives that probability
            itself; hard gives 1 where R reaches the threshold.
        generator: of the draws; None is torch's global one.
        threshold: in nats, of mode hard alone.

    Returns:
        (...) float32 between 0 and 1, without a gradient.

    Raises:
        InputError: shapes differ, an unknown mode, or log-probabilities that are none.

    Source:
        TrOPD, section 3: the acceptance of speculative decoding (Leviathan, Kalman and Matias, 2023). Under
        the student's own tokens the mean of 1 minus the mask is the total variation between both. Modes
        expected and hard are ours.
    """
    if mode not in get_args(MaskMode):
        raise InputError(f"mode must be one of {', '.join(get_args(MaskMode))}, got {mode!r}")
    gain = rewards(student_log_probs, teacher_log_probs)
    check_log_probs("student_log_probs", student_log_probs)
    check_log_probs("teacher_log_probs", teacher_log_probs)
    return trust_of(gain, mode, generator, threshold)


def trust_of(gain: Tensor, mode: MaskMode, generator: torch.Generator | None, threshold: float) -> Tensor:
    """Which tokens lie within the trust region, by what they are worth; see `trust_mask`.

    Args:
        gain: (...) as `rewards` gives it.
        mode: as in `trust_mask`.
        generator: likewise.
        threshold: likewise.

    Returns:
        (...) float32 between 0 and 1.
    """
    if mode == "hard":
        return (gain >= threshold).float()
    log_trust = gain.clamp_max(0.0)
    if mode == "expected":
        return log_trust.exp()
    # On the generator's device, so that draws are the same wherever the model is.
    device = gain.device if generator is None else generator.device
    uniform = torch.rand(gain.shape, generator=generator, device=device)
    return (uniform.to(gain.device).log() < log_trust).float()


def importance_weights(student_log_probs: Tensor, sampled_log_probs: Tensor, cap: float) -> Tensor:
    """How much tokens count that another policy drew: min(pi_S / pi_sampled, cap), without a gradient.

    Args:
        student_log_probs: (...) of the tokens, in nats.
        sampled_log_probs: (...) under the policy that drew them.
        cap: the most that a token counts, at least 1.

    Returns:
        (...) float32, 1 where both policies agree.

    Raises:
        InputError: shapes differ, or a cap below 1.

    Source:
        Truncated importance sampling (Ionides, 2008), of each token by itself: what came before it is as the
        other policy drew it.
    """
    if student_log_probs.shape != sampled_log_probs.shape:
        raise InputError(
            f"sampled_log_probs must be {tuple(student_log_probs.shape)} as student_log_probs are, got "
            f"{tuple(sampled_log_probs.shape)}"
        )
    if not cap >= 1:
        raise InputError(f"cap must be at least 1, got {cap}")
    return (student_log_probs.detach().float() - sampled_log_probs.float()).exp().clamp_max(cap)


def tropd_loss(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    *,
    student_top_log_probs: Tensor | None = None,
    top_log_probs: Tensor | None = None,
    mask: Tensor,
    prefix_mask: Tensor | None = None,
    trust: Tensor,
    beta: float = 0.001,
    outlier: Outlier = "fkl",
    floor: float = FLOOR,
    tail: Tail = "none",
) -> Tensor:
    """The loss of trust-region on-policy distillation: the sum of `tropd_terms` over mask.sum().

    Args:
        student_log_probs: (batch, tokens) S, with a gradient.
        teacher_log_probs: (batch, tokens) T.
        student_top_log_probs: (batch, tokens, k) of the teacher's likeliest tokens, with a gradient; needed
            by outlier fkl alone.
        top_log_probs: (batch, tokens, k), the teacher's own; likewise.
        mask: (batch, tokens), tokens of responses, those of a teacher's prefix among them.
        prefix_mask: (batch, tokens), those that the teacher wrote; None means none.
        trust: (batch, tokens) as `trust_mask` gives it.
        beta: weight of the teacher's prefix.
        outlier: as in `tropd_terms`.
        floor: likewise.
        tail: of the forward KL, see `petkit.losses.topk_forward_kl`.

    Returns:
        A scalar in nats.

    Raises:
        InputError: shapes differ, log-probabilities that are none, no token that counts, or outlier fkl
            without the likeliest tokens.

    Source:
        `tropd_terms`.
    """
    kept = token_mask(mask, student_log_probs.shape, student_log_probs.device)
    _check_inputs(
        kept,
        {"student_log_probs": student_log_probs, "teacher_log_probs": teacher_log_probs},
        {"student_top_log_probs": student_top_log_probs, "top_log_probs": top_log_probs},
        {"trust": trust, "prefix_mask": prefix_mask},
    )
    terms = tropd_terms(
        blank(student_log_probs, kept),
        blank(teacher_log_probs, kept),
        student_top_log_probs=None if student_top_log_probs is None else blank(student_top_log_probs, kept),
        top_log_probs=None if top_log_probs is None else blank(top_log_probs, kept),
        prefix_mask=prefix_mask,
        trust=blank(trust, kept),
        beta=beta,
        outlier=outlier,
        floor=floor,
        tail=tail,
    )
    return torch.where(kept, terms, 0.0).sum() / kept.sum()


def _check_inputs(
    kept: Tensor,
    own: Mapping[str, Tensor],
    top: Mapping[str, Tensor | None],
    weights: Mapping[str, Tensor | None],
) -> None:
    """Refuse other shapes than the mask's, and values of tokens that count that mean nothing."""
    for name, values in {**own, **top, **weights}.items():
        shape = None if values is None else values.shape[:-1] if name in top else values.shape
        if values is not None and shape != kept.shape:
            more = " and one dimension more" if name in top else ""
            raise InputError(f"{name} must be {tuple(kept.shape)}{more}, got {tuple(values.shape)}")
    for name, values in {**own, **top}.items():
        if values is not None:
            check_log_probs(name, values, kept)
    impossible = own["student_log_probs"].isinf() & kept
    if impossible.any():
        raise InputError(
            "student_log_probs must be finite, for the student wrote the tokens, got -inf at "
            f"{first_place(impossible)}"
        )
    _check_top(kept, *top.values())
    if weights["prefix_mask"] is not None:
        bool_mask("prefix_mask", blank(weights["prefix_mask"], kept))
    trust = weights["trust"]
    assert trust is not None
    strange = kept & ~((trust >= 0) & (trust <= 1))
    if strange.any():
        raise InputError(
            f"trust must lie between 0 and 1, got {float(trust[strange][0]):g} at {first_place(strange)}"
        )


def _check_top(kept: Tensor, student: Tensor | None, teacher: Tensor | None) -> None:
    """Refuse a student that finds impossible what its teacher does not: its divergence is infinite."""
    if student is None or teacher is None or student.shape != teacher.shape:
        return
    check_possible("top_log_probs", teacher, kept)
    apart = student.isinf() & ~teacher.isinf() & kept[..., None]
    if apart.any():
        raise InputError(
            f"student_top_log_probs must be finite where top_log_probs are, got -inf at {first_place(apart)}"
        )


def tropd_terms(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    *,
    student_top_log_probs: Tensor | None = None,
    top_log_probs: Tensor | None = None,
    prefix_mask: Tensor | None = None,
    trust: Tensor,
    beta: float = 0.001,
    outlier: Outlier = "fkl",
    floor: float = FLOOR,
    tail: Tail = "none",
) -> Tensor:
    """The loss of each token.

    Args:
        student_log_probs: as in `tropd_loss`, and so the other tensors.
        teacher_log_probs: T.
        student_top_log_probs: of the teacher's likeliest tokens.
        top_log_probs: the teacher's own.
        prefix_mask: tokens that the teacher wrote.
        trust: M, between 0 and 1.
        beta: weight of the teacher's prefix.
        outlier: what tokens outside the trust region learn from: fkl the forward KL on the teacher's
            likeliest tokens, mask nothing, clip their worth but no less than the floor, rkl their worth
            (which is plain on-policy distillation).
        floor: in nats, of outlier clip alone.
        tail: of the forward KL.

    Returns:
        (batch, tokens).

    Raises:
        InputError: shapes differ, or outlier fkl without the likeliest tokens.

    Source:
        TrOPD, section 3: -M R S + (1 - M) (forward KL) for the student's tokens, beta (T - S) for those of
        the teacher's prefix. Of the floor of outlier clip the paper gives no value: -1.386 is that of
        REOPOLD's code, log(0.2 / 0.8).
    """
    if outlier not in get_args(Outlier):
        raise InputError(f"outlier must be one of {', '.join(get_args(Outlier))}, got {outlier!r}")
    gain = rewards(student_log_probs, teacher_log_probs)
    if trust.shape != gain.shape:
        raise InputError(
            f"trust must be {tuple(gain.shape)} as student_log_probs are, got {tuple(trust.shape)}"
        )
    inside = trust.detach().float()
    own = -inside * gain * student_log_probs
    if outlier == "fkl":
        if student_top_log_probs is None or top_log_probs is None:
            raise InputError("outlier fkl needs student_top_log_probs and top_log_probs, got none")
        own = own + (1 - inside) * top_k_terms(student_top_log_probs, top_log_probs, tail)
    elif outlier != "mask":
        worth = gain if outlier == "rkl" else gain.clamp_min(floor)
        own = own - (1 - inside) * worth * student_log_probs
    if prefix_mask is None:
        return own
    given = beta * (teacher_log_probs.detach().clamp_min(LEAST_LOG_PROB) - student_log_probs)
    return torch.where(prefix_mask != 0, given, own)


def prefix_length(step: int, total_steps: int, max_length: int) -> int:
    """The most tokens of a teacher's response that may come before the student's own.

    Args:
        step: 0 at the start.
        total_steps: at and after which there is no prefix, at least 1.
        max_length: the length at step 0.

    Returns:
        Tokens, falling along half a cosine.

    Raises:
        InputError: numbers below 0, or no steps.

    Source:
        TrOPD, section 3: the length of the off-policy guidance is annealed, its weight is not.
    """
    if step < 0 or total_steps < 1 or max_length < 0:
        raise InputError(
            "step and max_length must be at least 0 and total_steps at least 1, got "
            f"{step}, {max_length} and {total_steps}"
        )
    progress = min(1.0, step / total_steps)
    # The cosine of half a turn is 6e-17 and not 0.
    return math.floor(max_length * 0.5 * (1 + math.cos(math.pi * progress)) + 1e-9)
