"""Divergences between rows of logits in float64, straight from their definitions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.reference.token_statistics import log_softmax

Float = NDArray[np.float64]


def relative_entropy(log_p: Float, log_q: Float) -> Float:
    """Sum of p (log p - log q) over the tokens that p holds for possible, (rows,)."""
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        terms = np.where(p > 0, p * (log_p - log_q), 0.0)
    return terms.sum(-1)


def mixture(log_p: Float, log_q: Float, beta: float) -> Float:
    """Logarithm of beta p + (1 - beta) q; -infinity where both are impossible."""
    with np.errstate(divide="ignore"):
        return np.logaddexp(log_p + np.log(beta), log_q + np.log1p(-beta))


def divergence(student: Float, teacher: Float, beta: float, temperature: float = 1.0) -> dict[str, Float]:
    """Loss, KL(teacher || student) and KL(student || teacher) of each row of logits."""
    log_q, log_p = log_softmax(student, temperature), log_softmax(teacher, temperature)
    forward, reverse = relative_entropy(log_p, log_q), relative_entropy(log_q, log_p)
    loss = forward if beta == 0 else reverse
    if 0 < beta < 1:
        log_m = mixture(log_p, log_q, beta)
        loss = beta * relative_entropy(log_p, log_m) + (1 - beta) * relative_entropy(log_q, log_m)
    return {"loss": loss, "forward_kl": forward, "reverse_kl": reverse}


def gradient(student: Float, teacher: Float, upstream: Float, beta: float, temperature: float = 1.0) -> Float:
    """Gradient of sum(upstream loss) in the student's logits, by the chain rule through its softmax.

    First the derivative g of the loss in each q, then q (g - sum(q g)) / temperature.
    """
    log_q, log_p = log_softmax(student, temperature), log_softmax(teacher, temperature)
    q, p = np.exp(log_q), np.exp(log_p)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if beta == 0:
            weighted = -p
        elif beta == 1:
            weighted = np.where(q > 0, q * (log_q - log_p + 1), 0.0)
        else:
            log_m = mixture(log_p, log_q, beta)
            # Both divergences hold the mixture, of which q is a share of 1 - beta.
            of_mixture = -(beta * p + (1 - beta) * q) * (1 - beta) * np.exp(log_q - log_m)
            own = (1 - beta) * q * (log_q - log_m + 1)
            weighted = np.where(q > 0, own + of_mixture, 0.0)
        # weighted is q g, which stays finite where q is 0; of an infinite loss it does not everywhere.
        centred = weighted - q * weighted.sum(-1, keepdims=True)
    return upstream[:, None] * centred / temperature


def binary_entropy(beta: float) -> float:
    """What the generalised Jensen-Shannon divergence can be at most, in nats."""
    return float(-sum(share * np.log(share) for share in (beta, 1 - beta) if share > 0))
