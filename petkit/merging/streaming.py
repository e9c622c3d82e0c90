"""A plan carried out: every tensor read, merged and written piece by piece."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from petkit.merging.plan import Plan, Planned
from petkit.merging.slices import PIECE
from petkit.merging.sources import Source
from petkit.merging.tensors import merged_pieces

# Numbers of a piece that are compared with the base first.
LOOK = 4096


class Taker(Protocol):
    """What takes the merged numbers."""

    def write(self, tensor: str, start: int, numbers: Tensor) -> None:
        """Take numbers of a tensor, from the `start`-th on."""


@dataclass
class Outcome:
    """What a merge did.

    Args:
        tensors: that were merged.
        copied: that were no floats.
        changed: that differ from the base, or from the first model where there is no base.
    """

    tensors: int = 0
    copied: int = 0
    changed: int = 0


def carry_out(plan: Plan, writer: Taker, advance: Callable[[int], None] | None = None) -> Outcome:
    """Merge every tensor of a plan.

    Args:
        plan: what is merged.
        writer: takes the numbers.
        advance: told how many more bytes of the result are written.

    Returns:
        Counts.

    Raises:
        InputError: a number is not finite, or nothing can be written.
    """
    merged = [(one.slices, one.values) for one in plan.tensors if one.is_merged]
    surveyed = plan.method.survey(merged)
    outcome = Outcome()
    for one, following in itertools.zip_longest(plan.tensors, plan.tensors[1:]):
        differs = False
        for start, numbers in _pieces(plan, one, surveyed, following):
            writer.write(one.name, start, numbers)
            # Looked at only until the first difference: most tensors have it in their first piece.
            differs = differs or _differs(one, start, numbers)
            if advance is not None:
                advance(numbers.numel() * numbers.element_size())
        outcome.tensors += one.is_merged
        outcome.copied += not one.is_merged
        outcome.changed += differs
    return outcome


def _pieces(
    plan: Plan, one: Planned, surveyed: object, following: Planned | None
) -> Iterator[tuple[int, Tensor]]:
    if one.is_merged:
        after = following.slices if following is not None and following.is_merged else None
        yield from merged_pieces(plan.method, one.slices, one.values, surveyed, one.dtype, after)
        return
    reading = one.slices.base or one.slices.models[0]
    for start in range(0, one.slices.count, PIECE):
        numbers = torch.empty(min(PIECE, one.slices.count - start), dtype=one.dtype)
        reading.source.read(reading.tensor, start, numbers)
        yield start, numbers


def _differs(one: Planned, start: int, numbers: Tensor) -> bool:
    # Nearly always the first few numbers tell.
    return any(_part_differs(one, start, numbers, part) for part in (slice(0, LOOK), slice(LOOK, None)))


def _part_differs(one: Planned, start: int, numbers: Tensor, part: slice) -> bool:
    own = numbers[part]
    reading = one.before
    # What an adapter changes in its base is a change.
    source: Source = getattr(reading.source, "base", reading.source)
    other = torch.empty(len(own), dtype=source.entries[reading.tensor].dtype)
    source.read(reading.tensor, start + part.start, other)
    return not torch.equal(other.to(own.dtype), own)
