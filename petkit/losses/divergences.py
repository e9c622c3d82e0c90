"""Divergences between a student's and a teacher's distributions over all tokens."""

from __future__ import annotations

from torch import Tensor

from petkit.losses.masked import check_logits, masked_mean, token_mask
from petkit.ops.divergence import divergence


def forward_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    *,
    overwrite: bool = False,
) -> Tensor:
    """Mean of KL(teacher || student) over tokens.

    Args:
        student_logits: (batch, tokens, vocab) float32, bfloat16 or float16.
        teacher_logits: likewise; no gradient flows into them.
        mask: (batch, tokens); None counts every token. Masked logits are not read.
        temperature: both sides are divided by it; the loss is not multiplied by its square.
        overwrite: let the backward pass put the gradient where the student's logits are, which saves a
            tensor of their size; they are no logits any more then.

    Returns:
        A scalar in nats, float32.

    Raises:
        InputError: as `petkit.ops.divergence`; nothing that counts; on the CPU, logits of a token that counts
            that are no distribution.

    Source:
        Hinton, Vinyals and Dean (2015), without their factor of the temperature's square.
    """
    return jsd(student_logits, teacher_logits, 0.0, mask, temperature, overwrite=overwrite)


def reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    *,
    overwrite: bool = False,
) -> Tensor:
    """Mean of KL(student || teacher) over tokens; arguments and errors as `forward_kl`."""
    return jsd(student_logits, teacher_logits, 1.0, mask, temperature, overwrite=overwrite)


def jsd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 0.5,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    *,
    overwrite: bool = False,
) -> Tensor:
    """Mean of the generalised Jensen-Shannon divergence over tokens.

    Args:
        student_logits: as `forward_kl`.
        teacher_logits: likewise.
        beta: weight of the teacher in the mixture, as TRL counts it: 0 is the forward, 1 the reverse KL.
        mask: as `forward_kl`.
        temperature: likewise.
        overwrite: likewise.

    Returns:
        A scalar in nats, float32.

    Raises:
        InputError: as `forward_kl`.

    Source:
        Agarwal et al. (2024), on-policy distillation of language models, equation 1.
    """
    kept = token_mask(mask, student_logits.shape[:-1], student_logits.device)
    found = divergence(student_logits, teacher_logits, beta, mask, temperature, overwrite)
    check_logits(found.loss, kept, {"student_logits": student_logits, "teacher_logits": teacher_logits})
    return masked_mean(found.loss, mask)
