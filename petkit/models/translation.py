"""A Transformer that writes all tokens of a translation at once, from the source and a length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from petkit.errors import InputError

# Lengths are predicted as differences to the source's, from -LENGTH_OFFSET to LENGTH_OFFSET - 1.
LENGTH_OFFSET = 128


@dataclass(frozen=True)
class TranslationShape:
    """Sizes of the model; those of the paper's small setting but for the vocabulary."""

    vocab_size: int
    pad_id: int = 0
    unknown_id: int = 3
    hidden: int = 256
    feed_forward: int = 1024
    encoder_layers: int = 5
    decoder_layers: int = 5
    heads: int = 4
    dropout: float = 0.1
    max_positions: int = 256
    positional_attention: bool = False
    decoder_input: Literal["unknown", "copy"] = "unknown"
    predicts_length: bool = True


class Attention(nn.Module):
    """Attention with a norm before it and the residual after it."""

    def __init__(self, shape: TranslationShape) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(shape.hidden)
        self.attention = nn.MultiheadAttention(
            shape.hidden, shape.heads, dropout=shape.dropout, batch_first=True
        )
        self.dropout = nn.Dropout(shape.dropout)

    def forward(
        self, x: Tensor, padding: Tensor, memory: Tensor | None = None, places: Tensor | None = None
    ) -> Tensor:
        """Attend to `memory`, or to x itself; with `places` both queries and keys are positions.

        Args:
            x: (batch, time, hidden).
            padding: bool (batch, time of what is attended to), set where nothing is.
            memory: (batch, source time, hidden) or None.
            places: (batch, time, hidden) or None.
        """
        normed = self.norm(x)
        values = normed if memory is None else memory
        queries, keys = (normed, values) if places is None else (places, places)
        found, _ = self.attention(queries, keys, values, key_padding_mask=padding, need_weights=False)
        mixed: Tensor = x + self.dropout(found)
        return mixed


class FeedForward(nn.Module):
    """Two linear maps with a norm before them and the residual after them."""

    def __init__(self, shape: TranslationShape) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(shape.hidden),
            nn.Linear(shape.hidden, shape.feed_forward),
            nn.ReLU(),
            nn.Dropout(shape.dropout),
            nn.Linear(shape.feed_forward, shape.hidden),
            nn.Dropout(shape.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x and what the maps add to it, (batch, time, hidden)."""
        mixed: Tensor = x + self.layers(x)
        return mixed


class DecoderLayer(nn.Module):
    """Attention to every position of the target, to positions alone when asked for, and to the source."""

    def __init__(self, shape: TranslationShape) -> None:
        super().__init__()
        self.self_attention = Attention(shape)
        self.positional_attention = Attention(shape) if shape.positional_attention else None
        self.source_attention = Attention(shape)
        self.feed_forward = FeedForward(shape)

    def forward(
        self, x: Tensor, padding: Tensor, memory: Tensor, source_padding: Tensor, places: Tensor
    ) -> Tensor:
        """One layer, (batch, time, hidden) to (batch, time, hidden)."""
        x = self.self_attention(x, padding)
        if self.positional_attention is not None:
            x = self.positional_attention(x, padding, places=places)
        mixed: Tensor = self.feed_forward(self.source_attention(x, source_padding, memory))
        return mixed


class EncoderLayer(nn.Module):
    """Attention to every position of the source."""

    def __init__(self, shape: TranslationShape) -> None:
        super().__init__()
        self.self_attention = Attention(shape)
        self.feed_forward = FeedForward(shape)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """One layer, (batch, time, hidden) to (batch, time, hidden)."""
        mixed: Tensor = self.feed_forward(self.self_attention(x, padding))
        return mixed


class NonAutoregressiveTransformer(nn.Module):
    """Encoder and unmasked decoder; source, target and output share one embedding.

    Args:
        shape: sizes. `positional_attention` adds to each decoder layer an attention whose queries and keys
            are positions; `decoder_input` is the embedding of the unknown token everywhere, or `copy`, the
            source's embeddings spread evenly over the target's positions.

    Source:
        Gu et al. 2018 and Sun et al. 2019; pre-norm layers and the length predictor as in later work.
    """

    def __init__(self, shape: TranslationShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab_size, shape.hidden, padding_idx=shape.pad_id)
        self.positions = nn.Embedding(shape.max_positions, shape.hidden)
        self.encoder = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(shape) for _ in range(shape.decoder_layers))
        self.encoder_norm = nn.LayerNorm(shape.hidden)
        self.decoder_norm = nn.LayerNorm(shape.hidden)
        self.length = nn.Linear(shape.hidden, 2 * LENGTH_OFFSET) if shape.predicts_length else None
        self.dropout = nn.Dropout(shape.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Embeddings from N(0, 1 / hidden), so that scores of the tied output start small."""
        nn.init.normal_(self.embedding.weight, std=self.shape.hidden**-0.5)
        nn.init.normal_(self.positions.weight, std=self.shape.hidden**-0.5)
        with torch.no_grad():
            self.embedding.weight[self.shape.pad_id].zero_()

    def encode(self, source: Tensor, source_mask: Tensor) -> Tensor:
        """States of the source, (batch, source time, hidden).

        Args:
            source: ids (batch, source time).
            source_mask: bool (batch, source time), set where a token is.

        Raises:
            InputError: the source is longer than the model's positions.
        """
        x = self._embed(source)
        for layer in self.encoder:
            x = layer(x, ~source_mask)
        states: Tensor = self.encoder_norm(x)
        return states

    def length_logits(self, memory: Tensor, source_mask: Tensor) -> Tensor:
        """Scores of the target's length as a difference to the source's: (batch, 256), the middle is none.

        Raises:
            InputError: the shape has no predictor.
        """
        if self.length is None:
            raise InputError("predicts_length must be true for a length to be predicted, got false")
        weights = source_mask.to(memory.dtype)[:, :, None]
        mean = (memory * weights).sum(1) / weights.sum(1)
        logits: Tensor = self.length(mean)
        return logits

    def decode(self, memory: Tensor, source: Tensor, source_mask: Tensor, target_mask: Tensor) -> Tensor:
        """Hidden states of all target positions at once, (batch, time, hidden).

        Args:
            memory: what `encode` gave.
            source: ids (batch, source time).
            source_mask: bool (batch, source time).
            target_mask: bool (batch, time): its rows are as long as the translations shall be.

        Raises:
            InputError: a target longer than the model's positions.
        """
        x, places = self._decoder_input(source, source_mask, target_mask)
        for layer in self.decoder:
            x = layer(x, ~target_mask, memory, ~source_mask, places)
        states: Tensor = self.decoder_norm(x)
        return states

    def emissions(self, hidden: Tensor) -> Tensor:
        """Raw scores of the vocabulary, (batch, time, vocab), by the tied embedding."""
        return nn.functional.linear(hidden, self.embedding.weight)

    def _embed(self, ids: Tensor) -> Tensor:
        scaled = self.embedding(ids) * self.shape.hidden**0.5
        found: Tensor = self.dropout(scaled + self._places(ids.shape[1]) * self.shape.hidden**0.5)
        return found

    def _places(self, time: int) -> Tensor:
        if time > self.shape.max_positions:
            raise InputError(
                f"the model has {self.shape.max_positions} positions, got a sentence of {time} tokens: "
                "shorten it, or train with a larger model.max_positions"
            )
        found: Tensor = self.positions.weight[:time]
        return found

    def _decoder_input(
        self, source: Tensor, source_mask: Tensor, target_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, time = target_mask.shape
        if self.shape.decoder_input == "copy":
            ids = source.gather(1, spread(source_mask.sum(1), target_mask.sum(1), time))
        else:
            ids = torch.full((batch, time), self.shape.unknown_id, device=source.device)
        places = self._places(time).expand(batch, time, self.shape.hidden)
        return self._embed(ids), places


def spread(source_lengths: Tensor, target_lengths: Tensor, time: int) -> Tensor:
    """Which source position stands at each target position when the source is spread evenly.

    Args:
        source_lengths: (batch,).
        target_lengths: (batch,).
        time: of the result; positions behind a target's end repeat the last.

    Returns:
        int64 (batch, time): the first and the last meet the source's first and last.

    Source:
        Gu et al. 2018, uniform copying.
    """
    steps = torch.arange(time, device=source_lengths.device)
    ratio = (source_lengths - 1).double() / (target_lengths - 1).clamp_min(1)
    found = (steps * ratio[:, None]).round().long()
    return found.clamp_max((source_lengths - 1)[:, None])
