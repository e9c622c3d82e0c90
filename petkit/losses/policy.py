"""The clipped policy gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.losses.masked import blank, can_look, masked_mean, token_mask
from petkit.ops._checks import first_place


def policy_gradient(
    log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    old_log_probs: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Tensor:
    """Mean over tokens of PPO's clipped surrogate, as a loss.

    Args:
        log_probs: (batch, tokens) of the sampled tokens under the policy that learns.
        advantages: (batch, tokens); no gradient flows into them.
        mask: (batch, tokens); None counts every token.
        old_log_probs: of the policy that sampled; None when it is the one that learns, so that the ratio is
            1 and nothing is clipped.
        clip_low: the ratio counts for no less than 1 - clip_low,
        clip_high: and for no more than 1 + clip_high.

    Returns:
        A scalar.

    Raises:
        InputError: shapes differ, or nothing that counts; on the CPU, numbers of tokens that count that are
            not finite.

    Source:
        Schulman et al. (2017): -min(w A, clip(w) A), w the ratio of both policies.
    """
    kept = token_mask(mask, log_probs.shape, log_probs.device)
    _check_shapes(log_probs, advantages, old_log_probs)
    old = None if old_log_probs is None else blank(old_log_probs, kept)
    terms = policy_gradient_terms(blank(log_probs, kept), blank(advantages, kept), old, clip_low, clip_high)
    mean = masked_mean(terms, kept)
    if can_look(mean) and not mean.isfinite():
        _check_finite(
            kept, {"log_probs": log_probs, "advantages": advantages, "old_log_probs": old_log_probs}
        )
    return mean


def _check_finite(kept: Tensor, inputs: Mapping[str, Tensor | None]) -> None:
    """Name the argument that made a loss infinite."""
    for name, values in inputs.items():
        strange = kept & ~torch.isfinite(kept if values is None else values.detach())
        if values is not None and strange.any():
            raise InputError(
                f"{name} must be finite, got {float(values[strange][0]):g} at {first_place(strange)}"
            )


def policy_gradient_terms(
    log_probs: Tensor,
    advantages: Tensor,
    old_log_probs: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Tensor:
    """The loss of each token; see `policy_gradient`."""
    _check_shapes(log_probs, advantages, old_log_probs)
    old = log_probs.detach() if old_log_probs is None else old_log_probs.detach()
    ratio, gain = (log_probs - old).exp(), advantages.detach()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * gain, clipped * gain)


def _check_shapes(log_probs: Tensor, advantages: Tensor, old_log_probs: Tensor | None) -> None:
    for name, other in (("advantages", advantages), ("old_log_probs", old_log_probs)):
        if other is not None and other.shape != log_probs.shape:
            raise InputError(
                f"{name} must be {tuple(log_probs.shape)} as log_probs are, got {tuple(other.shape)}"
            )
