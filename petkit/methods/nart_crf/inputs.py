"""Sentence pairs as numbers: a map-style data set whose batches are padded to their longest sentence."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from petkit.data.parallel import SentencePair
from petkit.data.subwords import Subwords
from petkit.errors import InputError

log = logging.getLogger(__name__)

Item = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Ids:
    """Rows of numbers with their end, padded on the right."""

    ids: Tensor
    """int64 (batch, time)."""

    mask: Tensor
    """bool (batch, time), set where a token is."""


class PairDataset:
    """Sentence pairs, each side with the end of the sentence behind its subwords.

    Args:
        pairs: at least one.
        vocabulary: of both sides.

    Attributes:
        batch_lengths: subwords of both sides, by which the loader puts like sentences together.
    """

    def __init__(self, pairs: Sequence[SentencePair], vocabulary: Subwords) -> None:
        self.pairs, self.vocabulary = list(pairs), vocabulary
        end = vocabulary.eos_id
        sources = vocabulary.encode([pair.source for pair in self.pairs])
        targets = vocabulary.encode([pair.target for pair in self.pairs])
        self.items: list[Item] = [
            ([*own, end], [*other, end]) for own, other in zip(sources, targets, strict=True)
        ]
        self.batch_lengths = tuple(len(source) + len(target) for source, target in self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]

    def collate(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Make a batch: `source`, `target` int64 (batch, time) and their `_mask`, bool."""
        source = padded([own for own, _ in items], self.vocabulary.pad_id)
        target = padded([other for _, other in items], self.vocabulary.pad_id)
        return {
            "source": source.ids,
            "source_mask": source.mask,
            "target": target.ids,
            "target_mask": target.mask,
        }

    def check_positions(self, positions: int, whose: str = "") -> None:
        """Refuse sentences that a model cannot hold.

        Args:
            positions: of the model.
            whose: what the message says of where the pairs are from, such as " of data.test".

        Raises:
            InputError: a side of a pair has more subwords with its end; the message names the first pair.
        """
        for number, (pair, item) in enumerate(zip(self.pairs, self.items, strict=True), start=1):
            longest = max(map(len, item))
            if longest > positions:
                side = "source" if len(item[0]) == longest else "target"
                begins = getattr(pair, side)[:40]
                raise InputError(
                    f"the {side} of pair {pair.id or number}{whose}, which begins {begins!r}, has {longest} "
                    f"subwords with its end, the model has {positions} positions: leave it out, divide it, "
                    "or train with more model.max_positions"
                )


def padded(rows: Sequence[Sequence[int]], value: int) -> Ids:
    """Pad rows of numbers to the longest.

    Args:
        rows: none empty.
        value: that fills.
    """
    lengths = torch.tensor([len(row) for row in rows])
    time = int(lengths.max())
    ids = torch.tensor([[*row, *[value] * (time - len(row))] for row in rows], dtype=torch.int64)
    return Ids(ids, torch.arange(time) < lengths[:, None])


def short_enough(
    pairs: Sequence[SentencePair], vocabulary: Subwords, max_length: int, distilled: str | None = None
) -> list[SentencePair]:
    """The pairs of which no side has more subwords than are allowed.

    Args:
        pairs: of the training split.
        vocabulary: counts.
        max_length: the most subwords, the end not counted.
        distilled: the file of the teacher's translations, where the targets are these.

    Returns:
        The pairs that are kept; the log says how many are not.

    Raises:
        InputError: none is kept.
    """
    both = (vocabulary.encode([getattr(pair, side) for pair in pairs]) for side in ("source", "target"))
    longest = [max(len(own), len(other)) for own, other in zip(*both, strict=True)]
    kept = [pair for pair, length in zip(pairs, longest, strict=True) if length <= max_length]
    if not kept:
        raise InputError(_none_left(max_length, min(longest), distilled))
    if len(kept) < len(pairs):
        left = len(pairs) - len(kept)
        log.info(
            "%d of %d training pairs, with the teacher's translations if there are, are longer than "
            "data.max_length and left out",
            left,
            len(pairs),
        )
    return kept


def _none_left(max_length: int, shortest: int, distilled: str | None) -> str:
    text = f"data.max_length {max_length} leaves no training pair, since the shortest has {shortest} subwords"
    if distilled is None:
        return f"{text}: raise it"
    # The sources are short enough, or they would not have been translated.
    return (
        f"{text}: the targets are the teacher's translations ({distilled}), and one that never ends its "
        "sentences is of no use: train it for longer, or learn from the data's own with teacher.distill=false"
    )
