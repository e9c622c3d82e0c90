"""Beam CRFs of one row in float64: candidates by sorting, and the linear chain over them.

`emissions` is (time, vocab) of the set positions only; `matrices` are D of the steps into all but the first.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from tests.reference.crf import logsumexp

Float = NDArray[np.float64]
Int = NDArray[np.int64]


def candidates(emissions: Float, beam: int, targets: Int | None = None) -> list[Int]:
    """The largest emissions of each position, of equal ones the lower; a missing target replaces the last."""
    chosen = [np.argsort(-row, kind="stable")[:beam] for row in emissions]
    for i, ids in enumerate(chosen):
        if targets is not None and targets[i] not in ids:
            ids[-1] = targets[i]
    return chosen


def transitions(step: int, chosen: list[Int], left: Float, right: Float, matrices: Float | None) -> Float:
    """Scores of the transitions from the candidates of step - 1 to those of step."""
    lefts = left[chosen[step - 1]]
    if matrices is not None:
        lefts = lefts @ matrices[step - 1]
    return lefts @ right[chosen[step]].T


def recursed(
    emissions: Float, chosen: list[Int], left: Float, right: Float, matrices: Float | None
) -> tuple[float, float]:
    """log-partition and the best score."""
    total = best = emissions[0, chosen[0]]
    for i in range(1, len(emissions)):
        scores, here = transitions(i, chosen, left, right, matrices), emissions[i, chosen[i]]
        total = logsumexp(total[:, None] + scores, axis=0) + here
        best = (best[:, None] + scores).max(0) + here
    return float(logsumexp(total)), float(best.max())


def score(path: Int, emissions: Float, left: Float, right: Float, matrices: Float | None) -> float:
    """Score of one path, term by term."""
    total = sum(float(emissions[i, token]) for i, token in enumerate(path))
    for i, (a, b) in enumerate(itertools.pairwise(path)):
        matrix = np.eye(left.shape[1]) if matrices is None else matrices[i]
        total += float(left[a] @ matrix @ right[b])
    return total


def all_scores(emissions: Float, left: Float, right: Float, matrices: Float | None) -> Float:
    """Scores of every path through the whole vocabulary."""
    time, vocab = emissions.shape
    paths = itertools.product(range(vocab), repeat=time)
    return np.array([score(np.array(path), emissions, left, right, matrices) for path in paths])


def gradients(
    emissions: Float, chosen: list[Int], left: Float, right: Float, matrices: Float | None
) -> tuple[Float, Float, Float, Float]:
    """Gradients of the log-partition in emissions, left, right and the matrices, by pair marginals."""
    time = len(emissions)
    steps = [transitions(i, chosen, left, right, matrices) for i in range(1, time)]
    unary = [emissions[i, chosen[i]] for i in range(time)]
    forward, backward = [unary[0]], [np.zeros(len(chosen[-1]))]
    for i in range(1, time):
        forward.append(logsumexp(forward[-1][:, None] + steps[i - 1], axis=0) + unary[i])
        backward.insert(0, logsumexp(steps[-i] + unary[-i] + backward[0], axis=1))
    log_z = logsumexp(forward[-1])
    of_emissions, of_left, of_right = np.zeros_like(emissions), np.zeros_like(left), np.zeros_like(right)
    rank = left.shape[1]
    of_matrices = np.zeros((max(time - 1, 0), rank, rank))
    for i in range(time):
        of_emissions[i, chosen[i]] = np.exp(forward[i] + backward[i] - log_z)
    for i in range(1, time):
        pairs = np.exp(forward[i - 1][:, None] + steps[i - 1] + unary[i] + backward[i] - log_z)
        a, b = left[chosen[i - 1]], right[chosen[i]]
        matrix = np.eye(rank) if matrices is None else matrices[i - 1]
        np.add.at(of_left, chosen[i - 1], pairs @ b @ matrix.T)
        np.add.at(of_right, chosen[i], pairs.T @ a @ matrix)
        of_matrices[i - 1] = a.T @ pairs @ b
    return of_emissions, of_left, of_right, of_matrices
