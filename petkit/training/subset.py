"""Fewer examples than there are: the first of a seeded order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from petkit.errors import InputError
from petkit.training.seeds import stream

Example = TypeVar("Example")


def seeded_subset(
    examples: Sequence[Example], size: int | None, seed: int, key: str, what: str
) -> list[Example]:
    """Choose some of a split.

    Args:
        examples: of the split.
        size: how many; None is all.
        seed: of the recipe; the order uses its stream `data` and the key.
        key: of the `data:` section that asks for it, such as train_size.
        what: the examples are, for the message.

    Returns:
        The first `size` of a seeded order, in the order of the file.

    Raises:
        InputError: there are fewer.
    """
    if size is None or size == len(examples):
        return list(examples)
    if size > len(examples):
        raise InputError(f"data.{key} must be at most {len(examples)}, the {what} there are, got {size}")
    order = torch.randperm(len(examples), generator=stream(seed, "data", key))[:size]
    return [examples[index] for index in sorted(order.tolist())]
