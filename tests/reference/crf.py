"""Linear-chain CRFs of one row in float64: every path by enumeration, and the recursions for longer rows.

`emissions` is (time, tags) of the set positions only, `parameters` is (transitions, start, end).
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Parameters = tuple[Float, Float, Float]


def logsumexp(x: Float, axis: int | None = None) -> Float:
    """log of the sum of exp(x), -inf where every x is."""
    peak = np.max(x, axis=axis, keepdims=True)
    peak = np.where(np.isfinite(peak), peak, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x - peak).sum(axis)) + np.squeeze(peak, axis)


def score(path: tuple[int, ...], emissions: Float, parameters: Parameters) -> float:
    """Score of one path, term by term."""
    transitions, start, end = parameters
    total = start[path[0]] + end[path[-1]]
    total += sum(emissions[i, tag] for i, tag in enumerate(path))
    return float(total + sum(transitions[a, b] for a, b in itertools.pairwise(path)))


def all_paths(emissions: Float, parameters: Parameters) -> tuple[list[tuple[int, ...]], Float]:
    """Every path and its score."""
    time, tags = emissions.shape
    paths = list(itertools.product(range(tags), repeat=time))
    return paths, np.array([score(path, emissions, parameters) for path in paths])


def enumerated(emissions: Float, parameters: Parameters) -> dict[str, Float]:
    """log_z, marginals (time, tags), transition counts (tags, tags), entropy and rising best scores."""
    time, tags = emissions.shape
    paths, scores = all_paths(emissions, parameters)
    log_z = logsumexp(scores)
    probabilities = np.exp(scores - log_z)
    marginals, counts = np.zeros((time, tags)), np.zeros((tags, tags))
    for path, probability in zip(paths, probabilities, strict=True):
        marginals[np.arange(time), list(path)] += probability
        for pair in itertools.pairwise(path):
            counts[pair] += probability
    possible = probabilities > 0
    entropy = -(probabilities[possible] * np.log(probabilities[possible])).sum()
    return {
        "log_z": np.asarray(log_z),
        "marginals": marginals,
        "counts": counts,
        "entropy": np.asarray(entropy),
        "best": np.sort(scores)[::-1],
    }


def recursed(emissions: Float, parameters: Parameters) -> dict[str, Float]:
    """log_z, marginals, transition counts and the best score by forward and backward recursion."""
    transitions, start, end = parameters
    time = len(emissions)
    forward, backward, best = (np.empty_like(emissions) for _ in range(3))
    forward[0] = best[0] = emissions[0] + start
    for i in range(1, time):
        forward[i] = logsumexp(forward[i - 1][:, None] + transitions, axis=0) + emissions[i]
        best[i] = (best[i - 1][:, None] + transitions).max(0) + emissions[i]
    backward[-1] = end
    for i in range(time - 1, 0, -1):
        backward[i - 1] = logsumexp(transitions + emissions[i] + backward[i], axis=1)
    log_z = logsumexp(forward[-1] + end)
    pairs = forward[:-1, :, None] + transitions + (emissions + backward)[1:, None, :]
    return {
        "log_z": np.asarray(log_z),
        "marginals": np.exp(forward + backward - log_z),
        "counts": np.exp(pairs - log_z).sum(0),
        "best": np.asarray((best[-1] + end).max()),
    }


def gradients(emissions: Float, parameters: Parameters) -> tuple[Float, Float, Float, Float]:
    """Gradients of log_z in emissions, transitions, start and end."""
    found = recursed(emissions, parameters)
    marginals = found["marginals"]
    return marginals, found["counts"], marginals[0], marginals[-1]
