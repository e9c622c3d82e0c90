"""The tagger: an encoder of words, a linear head, and a CRF when the head asks for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from petkit.methods.crf_tagger.algorithm import cross_entropy
from petkit.methods.crf_tagger.config import EncoderConfig, TaggerConfig
from petkit.methods.crf_tagger.inputs import PADDING, SPECIAL, Vocabulary
from petkit.models.loaded import new_head
from petkit.nn import CRF, bio_constraints
from petkit.training.seeds import derive, stream

Batch = Mapping[str, Tensor]


class BiLstm(nn.Module):
    """Embeddings of words and characters, then an LSTM in both directions.

    Args:
        config: the sizes.
        vocabulary: says how many embeddings there are.
    """

    def __init__(self, config: EncoderConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.words = nn.Embedding(len(vocabulary.words) + SPECIAL, config.word_size, padding_idx=PADDING)
        self.characters = CharacterFilters(config, vocabulary) if vocabulary.characters else None
        width = config.word_size + (config.character_filters if vocabulary.characters else 0)
        self.dropout = nn.Dropout(config.dropout)
        self.lstm = nn.LSTM(
            width, config.hidden, config.layers, batch_first=True, bidirectional=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )  # fmt: skip
        self.width = 2 * config.hidden

    def forward(self, batch: Batch) -> Tensor:
        """Features (batch, words, width); they do not depend on the padding."""
        inputs = self.words(batch["words"])
        if self.characters is not None:
            inputs = torch.cat((inputs, self.characters(batch["characters"])), dim=-1)
        # On the CPU, where packing wants them.
        lengths = batch["mask"].sum(1).cpu()
        packed = pack_padded_sequence(self.dropout(inputs), lengths, batch_first=True, enforce_sorted=False)
        features: Tensor = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]
        return features


class CharacterFilters(nn.Module):
    """A convolution over the characters of a word, and the largest answer of each filter.

    Args:
        config: the sizes.
        vocabulary: says how many characters there are.

    Source:
        Ma and Hovy 2016 (arXiv 1603.01354), section 2.1.
    """

    def __init__(self, config: EncoderConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        size = len(vocabulary.characters) + SPECIAL
        self.embedding = nn.Embedding(size, config.character_size, padding_idx=PADDING)
        self.filters = nn.Conv1d(config.character_size, config.character_filters, 3, padding=1)

    def forward(self, characters: Tensor) -> Tensor:
        """(batch, words, filters) of int64 (batch, words, characters)."""
        batch, words, _ = characters.shape
        answers = self.filters(self.embedding(characters.flatten(0, 1)).transpose(1, 2))
        is_padding = (characters == PADDING).flatten(0, 1)[:, None]
        # Padding must not answer: the width of the longest word of a batch would show in the features.
        lowest = torch.finfo(answers.dtype).min
        best: Tensor = answers.masked_fill(is_padding, lowest).amax(-1).unflatten(0, (batch, words))
        # A word of padding has no character at all; the LSTM never sees it, but infinities would spread.
        return best.clamp(min=-1e4)


class Pieces(nn.Module):
    """A transformers encoder, read at the first piece of each word.

    Args:
        encoder: its output has `last_hidden_state`.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        settings: Any = encoder.config
        self.width = int(settings.hidden_size)

    def forward(self, batch: Batch) -> Tensor:
        """Features (batch, words, width)."""
        found = self.encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        hidden: Tensor = found.last_hidden_state
        return hidden.flatten(0, 1)[batch["places"]]


class Tagger(nn.Module):
    """Scores of tags for each word, the loss that trains them, and the tags that they choose.

    Args:
        backbone: `BiLstm` or `Pieces`.
        config: head, scheme, dropout and seed.
        labels: the tags, in the order of the head's rows.
    """

    def __init__(self, backbone: BiLstm | Pieces, config: TaggerConfig, labels: Sequence[str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(config.model.dropout)
        self.head: nn.Module = new_head(backbone.width, len(labels), stream(config.seed, "init", "head"))
        self.crf = _crf(config, labels) if config.head.kind == "crf" else None

    def forward(self, batch: Batch) -> Tensor:
        """Emissions (batch, words, tags), float32."""
        emissions: Tensor = self.head(self.dropout(self.backbone(batch)))
        return emissions.float()

    def loss(self, batch: Batch) -> Tensor:
        """Minus the log-likelihood of the batch's tags, summed, in nats."""
        return self.loss_of(self(batch), batch)

    def loss_of(self, emissions: Tensor, batch: Batch) -> Tensor:
        """The same, from emissions that are known."""
        if self.crf is None:
            return cross_entropy(emissions, batch["tags"], batch["mask"])
        likelihood: Tensor = self.crf(emissions, batch["tags"], batch["mask"], reduction="sum")
        return -likelihood

    def decode(self, emissions: Tensor, mask: Tensor) -> list[list[int]]:
        """Numbers of the tags of each sentence.

        Args:
            emissions: (batch, words, tags).
            mask: bool (batch, words).
        """
        if self.crf is not None:
            return self.crf.decode(emissions, mask)
        best = emissions.argmax(-1)
        return [row[kept].tolist() for row, kept in zip(best, mask, strict=True)]


def new_bilstm(config: TaggerConfig, vocabulary: Vocabulary) -> BiLstm:
    """Make a BiLSTM with the initial weights of the seed's stream `init/encoder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "init", "encoder"))
        return BiLstm(config.model, vocabulary)


def _crf(config: TaggerConfig, labels: Sequence[str]) -> CRF:
    constrain = config.constrain
    constraints = None if constrain == "none" else bio_constraints(list(labels), config.data.scheme)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "init", "crf"))
        return CRF(
            len(labels),
            batch_first=True,
            constraints=constraints,
            constrain="decode" if constrain == "decode" else "both",
        )
