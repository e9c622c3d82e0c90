"""Choosing the next token of each row: the likeliest, or one drawn by temperature and nucleus."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How a row's tokens are chosen.

    Args:
        temperature: 0 takes the likeliest token; else logits are divided by it.
        top_p: draw among the likeliest tokens that make up this probability.
        generator: of the row's own random stream.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    generator: torch.Generator = field(default_factory=torch.Generator)

    @classmethod
    def of(cls, temperature: float | None, top_p: float | None, seed: int | None) -> Sampling:
        """From the fields of a request; without a seed another stream each time."""
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        return cls(temperature or 0.0, 1.0 if top_p is None else top_p, generator)


def draw(logits: Tensor, sampling: Sampling) -> int:
    """Choose one token.

    Args:
        logits: (vocab,).
        sampling: how.

    Returns:
        Its id.

    Source:
        Nucleus sampling (arXiv 1904.09751): the fewest of the likeliest tokens whose probabilities add up to
        top_p, the one that crosses it included.
    """
    if not sampling.temperature:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.double().cpu() / sampling.temperature, dim=-1)
    values, ids = probabilities.sort(descending=True, stable=True)
    before = values.cumsum(dim=-1) - values
    # The likeliest token stays, however small top_p is.
    kept = torch.where((before < sampling.top_p) | (before == 0), values, 0.0)
    place = torch.multinomial(kept, 1, generator=sampling.generator)
    return int(ids[place])
