"""Class-balanced, seeded choices of examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from petkit.errors import InputError


def balanced_order(labels: Sequence[int], seed: int) -> list[int]:
    """Order examples so that every prefix holds the classes as evenly as they allow.

    Args:
        labels: Class number of each example.
        seed: Seed of the choice within a class.

    Returns:
        A permutation of range(len(labels)): one example of each class, then a second of each, and so on;
        the same for the same labels and seed.
    """
    random = np.random.default_rng(seed)
    numbers = np.asarray(labels)
    rounds: list[tuple[int, int, int]] = []
    for label in np.unique(numbers):
        members = random.permutation(np.flatnonzero(numbers == label))
        rounds.extend((turn, int(label), int(member)) for turn, member in enumerate(members))
    return [member for _, _, member in sorted(rounds)]


def choose(labels: Sequence[int], size: int | None, seed: int, key: str) -> list[int]:
    """The first `size` examples of the balanced order.

    Args:
        labels: Class number of each example.
        size: How many; None keeps all in their own order.
        seed: Seed of the choice.
        key: Name of the configuration key, for the message.

    Returns:
        Positions.

    Raises:
        InputError: There are fewer examples than asked for.
    """
    if size is None:
        return list(range(len(labels)))
    if size > len(labels):
        raise InputError(f"{key} asks for {size} examples, but the split has {len(labels)}: ask for fewer")
    return balanced_order(labels, seed)[:size]
