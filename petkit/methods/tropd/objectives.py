"""What a student's tokens learn from: every objective as one pure function, and their literal registry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.losses.masked import blank
from petkit.losses.policy import policy_gradient_terms
from petkit.losses.top_k import check_log_probs, top_k_terms
from petkit.methods.tropd.algorithm import LEAST_LOG_PROB, rewards, tropd_terms, trust_of
from petkit.methods.tropd.config import Objective, ObjectiveConfig


@dataclass(frozen=True)
class Tokens:
    """Tokens of responses, (batch, tokens) each, with what both sides say of them, in nats."""

    student_log_probs: Tensor
    """Of the tokens, with a gradient."""

    teacher_log_probs: Tensor
    """Of the tokens; nothing of the teacher's side has a gradient."""

    mask: Tensor
    """bool: tokens of responses, and not what fills the batch up."""

    prefix_mask: Tensor
    """bool: those of them that the teacher wrote."""

    student_entropy: Tensor
    """Of the student's whole distribution, without a gradient."""

    teacher_entropy: Tensor | None = None
    """Of the teacher's."""

    student_top_log_probs: Tensor | None = None
    """(batch, tokens, k) of the teacher's likeliest tokens, with a gradient."""

    top_log_probs: Tensor | None = None
    """(batch, tokens, k), the teacher's own."""

    trust: Tensor | None = None
    """The trust mask, between 0 and 1, without a gradient."""

    importance: Tensor | None = None
    """How much each token counts that another policy than the student drew, without a gradient."""

    divergence: Tensor | None = None
    """The generalised Jensen-Shannon divergence over all tokens, with a gradient."""

    forward_kl: Tensor | None = None
    """KL(teacher || student) over all tokens, without a gradient, for the record."""

    @property
    def own(self) -> Tensor:
        """bool: tokens that the student sampled."""
        return self.mask & ~self.prefix_mask

    def blanked(self) -> Tokens:
        """The same with 0 where there is no token: what stands there, nan even, reaches no gradient."""
        values = {
            name: blank(value, self.mask)
            for name, value in vars(self).items()
            if value is not None and value.is_floating_point()
        }
        return replace(self, **values)


Terms = Callable[[Tokens, ObjectiveConfig, float], Tensor]


def opd(tokens: Tokens, config: ObjectiveConfig, progress: float) -> Tensor:
    """On-policy distillation: each token's worth R as its advantage.

    Args:
        tokens: the batch.
        config: of the objective.
        progress: unused.

    Returns:
        (batch, tokens): the loss of each token of the student's own.

    Source:
        The single-sample estimate of KL(student || teacher) as a reward, whose gradient has the expectation
        of the reverse KL's; neither discounted nor normalised. One update a rollout: the ratio is 1.
    """
    return policy_gradient_terms(tokens.student_log_probs, _gain(tokens))


def gkd(tokens: Tokens, config: ObjectiveConfig, progress: float) -> Tensor:
    """Generalised knowledge distillation: the Jensen-Shannon divergence at the student's own tokens.

    Args:
        tokens: the batch, with `divergence`.
        config: `jsd_beta` was used when the divergence was computed.
        progress: unused.

    Returns:
        (batch, tokens).

    Source:
        Agarwal et al. (2024).
    """
    return _needed(tokens.divergence, "divergence")


def fkl(tokens: Tokens, config: ObjectiveConfig, progress: float) -> Tensor:
    """The forward KL on the teacher's likeliest tokens, everywhere.

    Args:
        tokens: the batch, with the likeliest tokens.
        config: `tail`.
        progress: unused.

    Returns:
        (batch, tokens).

    Source:
        TrOPD's baseline, which collapses with few tokens: the mass beyond them is not held back.
    """
    return _forward_kl(tokens, config)


def eopd(tokens: Tokens, config: ObjectiveConfig, progress: float) -> Tensor:
    """On-policy distillation, and the forward KL too where the teacher is uncertain.

    Args:
        tokens: the batch, with the likeliest tokens and the teacher's entropy.
        config: `entropy_threshold` in nats, `tail`.
        progress: unused.

    Returns:
        (batch, tokens).

    Source:
        Entropy-aware on-policy distillation (arXiv:2603.07079): L_OPD + 1[H(teacher) > threshold] FKL.
    """
    uncertain = _needed(tokens.teacher_entropy, "teacher_entropy") > config.entropy_threshold
    return opd(tokens, config, progress) + torch.where(uncertain, _forward_kl(tokens, config), 0.0)


def reopold(tokens: Tokens, config: ObjectiveConfig, progress: float) -> Tensor:
    """On-policy distillation with a floor under the worth of a token, of fewer tokens.

    Args:
        tokens: the batch.
        config: `floor` in nats; `exploration`, the first part of the training, in which tokens at the floor
            learn nothing; `keep_entropy`, the part of the tokens that count behind it, by the student's
            entropy, the highest first, among those of a micro-batch.
        progress: of the training, 0 at the first step and 1 behind the last.

    Returns:
        (batch, tokens).

    Source:
        Relaxed on-policy distillation (arXiv:2603.11137). Of both stages we know an outline only.
    """
    gain = _gain(tokens)
    terms = policy_gradient_terms(tokens.student_log_probs, gain.clamp_min(config.floor))
    if progress < config.exploration:
        return torch.where(gain > config.floor, terms, 0.0)
    return torch.where(most_uncertain(tokens, config.keep_entropy), terms, 0.0)


def tropd(tokens: Tokens, config: ObjectiveConfig, progress: float) -> Tensor:
    """Trust-region on-policy distillation.

    Args:
        tokens: the batch, with `trust`, and with the likeliest tokens for outlier fkl.
        config: `outlier`, `floor`, `tail`.
        progress: unused.

    Returns:
        (batch, tokens).

    Source:
        TrOPD (arXiv:2606.01249), section 3; see `tropd_terms`.
    """
    return tropd_terms(
        tokens.student_log_probs,
        tokens.teacher_log_probs,
        student_top_log_probs=tokens.student_top_log_probs,
        top_log_probs=tokens.top_log_probs,
        trust=_needed(tokens.trust, "trust"),
        outlier=config.outlier,
        floor=config.floor,
        tail=config.tail,
    )


REGISTRY: Mapping[Objective, Terms] = {
    "opd": opd,
    "gkd": gkd,
    "fkl": fkl,
    "eopd": eopd,
    "reopold": reopold,
    "tropd": tropd,
}
"""Objective to its function. A new one adds one line here and one in `petkit.methods.tropd.config`."""


def objective_sum(tokens: Tokens, config: ObjectiveConfig, progress: float) -> Tensor:
    """The loss of a batch, summed over the tokens of its responses.

    Args:
        tokens: the batch.
        config: of the objective.
        progress: of the training, 0 at the first step and 1 behind the last.

    Returns:
        A scalar in nats. Tokens of a teacher's prefix add `prefix_weight` times T - S, except where the
        objective is a divergence at every token, which the prefix then has too.

    Raises:
        InputError: what the objective needs is missing, or a teacher's log-probabilities that are none.

    Source:
        TrOPD, section 3, for the prefix.
    """
    check_log_probs("teacher_log_probs", tokens.teacher_log_probs, tokens.mask)
    tokens = tokens.blanked()
    terms = REGISTRY[config.kind](tokens, config, progress)
    if config.kind not in ("gkd", "fkl"):
        # Means over the student's own draws; divergences are what they are, whoever drew the token.
        if tokens.importance is not None:
            terms = tokens.importance * terms
        given = tokens.teacher_log_probs.clamp_min(LEAST_LOG_PROB) - tokens.student_log_probs
        terms = torch.where(tokens.prefix_mask, config.prefix_weight * given, terms)
    return blank(terms, tokens.mask).sum()


def draw_trust(
    student_log_probs: Tensor, teacher_log_probs: Tensor, config: ObjectiveConfig, generator: torch.Generator
) -> Tensor:
    """The trust mask of a batch.

    Args:
        student_log_probs: (batch, tokens).
        teacher_log_probs: (batch, tokens).
        config: of the objective; those without a trust region get the expected mask, for the record.
        generator: of the draws.

    Returns:
        (batch, tokens) between 0 and 1.
    """
    mode = config.trust if config.kind == "tropd" else "expected"
    # Nan of a student in training is told of as a loss that is not finite.
    return trust_of(rewards(student_log_probs, teacher_log_probs), mode, generator, config.threshold)


def most_uncertain(tokens: Tokens, part: float) -> Tensor:
    """The student's own tokens with the highest entropy.

    Args:
        tokens: the batch.
        part: how many of them, 0 to 1; at least one.

    Returns:
        bool (batch, tokens); tokens of equal entropy stand or fall together.
    """
    own = tokens.own
    entropies = tokens.student_entropy[own]
    if not len(entropies):
        return own
    count = max(1, math.ceil(part * len(entropies) - 1e-9))
    return own & (tokens.student_entropy >= entropies.topk(count).values[-1])


def _gain(tokens: Tokens) -> Tensor:
    return rewards(tokens.student_log_probs, tokens.teacher_log_probs)


def _forward_kl(tokens: Tokens, config: ObjectiveConfig) -> Tensor:
    student = _needed(tokens.student_top_log_probs, "student_top_log_probs")
    return top_k_terms(student, _needed(tokens.top_log_probs, "top_log_probs"), config.tail)


def _needed(values: Tensor | None, name: str) -> Tensor:
    if values is None:
        raise InputError(f"this objective needs {name}, got none")
    return values
