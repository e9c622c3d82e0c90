"""Tokenised examples as a map-style data set; a batch is padded to its longest example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from petkit.errors import InputError

# Positions that the loss leaves out, as torch's cross entropy and transformers have it.
IGNORED = -100


class TokenDataset:
    """A map-style set of `{"input_ids": list, "labels": int or list}`.

    Args:
        examples: Token numbers, and either one class number or one label per token (-100: not learnt).
        padding: Token number that fills short examples, on the right.
    """

    def __init__(self, examples: Sequence[Mapping[str, Any]], padding: int) -> None:
        self.examples, self.padding = list(examples), padding
        self.rows = list(range(len(self.examples)))
        # One class per example, for class-balanced choices; a chat has none.
        self.labels = [
            0 if isinstance(item["labels"], list) else int(item["labels"]) for item in self.examples
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.examples[self.rows[index]])

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a batch: input_ids and attention_mask int64 (batch, tokens), labels (batch,) or (batch,
        tokens).

        Raises:
            InputError: The batch is empty.
        """
        if not examples:
            raise InputError("a batch needs at least one example, got none")
        ids = [example["input_ids"] for example in examples]
        labels = [example["labels"] for example in examples]
        per_token = isinstance(labels[0], list)
        return {
            "input_ids": _padded(ids, self.padding),
            "attention_mask": _padded([[1] * len(row) for row in ids], 0),
            "labels": _padded(labels, IGNORED) if per_token else torch.tensor(labels, dtype=torch.int64),
        }

    def select(self, indices: Sequence[int]) -> TokenDataset:
        """The examples at the given positions, in that order."""
        chosen = TokenDataset.__new__(TokenDataset)
        chosen.__dict__.update(self.__dict__)
        chosen.rows = [self.rows[index] for index in indices]
        chosen.labels = [self.labels[index] for index in indices]
        return chosen


def at_targets(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the predictions of a language model that a loss looks at.

    Args:
        logits: (batch, tokens, vocab); position t predicts token t + 1.
        labels: int64 (batch, tokens), the tokens themselves, -100 where a token is no target (prompt,
            padding).

    Returns:
        Logits (targets, vocab) and the tokens they predict (targets,).
    """
    targets = labels[:, 1:]
    kept = targets != IGNORED
    return logits[:, :-1][kept], targets[kept]


def padding_token(tokenizer: Any) -> int:
    """The token to pad with, hidden by the mask: the tokenizer's own, else its end of sequence, else 0."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], dtype=torch.int64)
