"""The models: a decoder that writes all tokens at once, with or without a CRF, and its teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from petkit.data.subwords import Subwords
from petkit.methods.nart_crf.algorithm import length_losses, token_losses
from petkit.methods.nart_crf.config import CRFS, TranslatorConfig
from petkit.models.translation import LENGTH_OFFSET, NonAutoregressiveTransformer, TranslationShape
from petkit.nn import BeamCRF
from petkit.training.evaluate import StepOutput

Batch = dict[str, Tensor]


class Nart(nn.Module):
    """NART, NART-CRF or NART-DCRF, by `model.kind`.

    Args:
        config: the recipe; of `lengths.offset` a number is needed where lengths have a constant offset.
        vocabulary: of source and target.

    Attributes:
        body: encoder, decoder and length predictor.
        crf: over the vocabulary; None for a plain NART.

    Source:
        Sun, Li, Wang, He, Lin and Deng. Fast structured decoding for sequence models. NeurIPS 2019,
        arXiv:1910.11555.
    """

    def __init__(self, config: TranslatorConfig, vocabulary: Subwords) -> None:
        super().__init__()
        self.config = config
        self.body = NonAutoregressiveTransformer(_shape(config, vocabulary))
        self.crf: BeamCRF | None = None
        if config.model.kind in CRFS:
            dynamic = config.model.kind == "nart-dcrf"
            width = config.model.hidden if dynamic else None
            self.crf = BeamCRF(len(vocabulary), config.crf.rank, config.crf.beam, dynamic, width)

    def forward(self, batch: Batch) -> Tensor:
        """Scores of the vocabulary at each position, (batch, time, vocab), given the target's length."""
        memory = self.body.encode(batch["source"], batch["source_mask"])
        return self.body.emissions(self._hidden(memory, batch))

    def step(self, batch: Batch) -> StepOutput:
        """The sum of the sentences' losses; each is a mean over the sentence's tokens.

        Args:
            batch: as `PairDataset.collate` makes it.

        Source:
            Sun et al. 2019, section 3.3: L_CRF + lambda L_NAR. The length's term is fairseq's.
        """
        loss, mask = self.config.loss, batch["target_mask"]
        memory = self.body.encode(batch["source"], batch["source_mask"])
        hidden = self._hidden(memory, batch)
        emissions = self.body.emissions(hidden)
        lengths = mask.sum(1)
        total = token_losses(emissions, batch["target"], mask, loss.label_smoothing) / lengths
        if self.crf is not None:
            states = hidden if self.crf.dynamic is not None else None
            likelihood = self.crf(emissions, batch["target"], mask, states, reduction="none")
            total = loss.nar * total - likelihood / lengths
        if self.body.length is not None:
            logits = self.body.length_logits(memory, batch["source_mask"])
            total = total + loss.length * length_losses(logits, batch["source_mask"], mask)
        return StepOutput(total.sum(), len(total))

    def expected_lengths(self, memory: Tensor, source_mask: Tensor) -> Tensor:
        """How many tokens each translation is to have, its end included: int64 (batch,)."""
        own = source_mask.sum(1)
        if self.body.length is None:
            return own + int(self.config.lengths.offset or 0)
        return own + self.body.length_logits(memory, source_mask).argmax(1) - LENGTH_OFFSET

    def _hidden(self, memory: Tensor, batch: Batch) -> Tensor:
        return self.body.decode(memory, batch["source"], batch["source_mask"], batch["target_mask"])


class Teacher(nn.Module):
    """An autoregressive encoder-decoder Transformer of the transformers library, of the recipe's sizes.

    Args:
        config: the recipe.
        vocabulary: of source and target.

    Source:
        Vaswani et al. 2017; transformers' M2M100, whose norms stand before its layers, as the student's.
    """

    def __init__(self, config: TranslatorConfig, vocabulary: Subwords) -> None:
        super().__init__()
        from transformers import M2M100Config, M2M100ForConditionalGeneration

        shape = config.model
        self.config, self.vocabulary = config, vocabulary
        self.body: Any = M2M100ForConditionalGeneration(
            M2M100Config(
                vocab_size=len(vocabulary),
                d_model=shape.hidden,
                encoder_layers=shape.encoder_layers,
                decoder_layers=shape.decoder_layers,
                encoder_attention_heads=shape.heads,
                decoder_attention_heads=shape.heads,
                encoder_ffn_dim=shape.feed_forward,
                decoder_ffn_dim=shape.feed_forward,
                encoder_layerdrop=0.0,
                decoder_layerdrop=0.0,
                dropout=shape.dropout,
                attention_dropout=shape.dropout,
                max_position_embeddings=shape.max_positions,
                pad_token_id=vocabulary.pad_id,
                bos_token_id=vocabulary.bos_id,
                eos_token_id=vocabulary.eos_id,
                decoder_start_token_id=vocabulary.bos_id,
            )
        )

    def forward(self, batch: Batch) -> Tensor:
        """Scores of each token given those before it, (batch, time, vocab)."""
        target = batch["target"]
        begin = torch.full_like(target[:, :1], self.vocabulary.bos_id)
        found: Tensor = self.body(
            input_ids=batch["source"],
            attention_mask=batch["source_mask"].long(),
            decoder_input_ids=torch.cat([begin, target[:, :-1]], dim=1),
            decoder_attention_mask=batch["target_mask"].long(),
        ).logits
        return found

    def step(self, batch: Batch) -> StepOutput:
        """The sum of the tokens' cross-entropies.

        Args:
            batch: as `PairDataset.collate` makes it.
        """
        mask, smoothing = batch["target_mask"], self.config.loss.label_smoothing
        losses = token_losses(self(batch), batch["target"], mask, smoothing)
        return StepOutput(losses.sum(), int(mask.sum()))

    def log_probabilities(self, batch: Batch) -> Tensor:
        """Log-probability of each target, (batch,) in nats."""
        return -token_losses(self(batch), batch["target"], batch["target_mask"])


def new_model(config: TranslatorConfig, vocabulary: Subwords) -> Nart | Teacher:
    """The model of a recipe, with initial weights from torch's global stream.

    Args:
        config: the recipe.
        vocabulary: of source and target.
    """
    return Teacher(config, vocabulary) if config.is_teacher else Nart(config, vocabulary)


def training_step(model: Any, batch: Any) -> StepOutput:
    """The loss of a batch, for the training loop.

    Args:
        model: a `Nart` or a `Teacher`.
        batch: as `PairDataset.collate` makes it.
    """
    found: StepOutput = model.step(batch)
    return found


def _shape(config: TranslatorConfig, vocabulary: Subwords) -> TranslationShape:
    own = config.model
    return TranslationShape(
        vocab_size=len(vocabulary),
        pad_id=vocabulary.pad_id,
        unknown_id=vocabulary.unknown_id,
        hidden=own.hidden,
        feed_forward=own.feed_forward,
        encoder_layers=own.encoder_layers,
        decoder_layers=own.decoder_layers,
        heads=own.heads,
        dropout=own.dropout,
        max_positions=own.max_positions,
        positional_attention=own.positional_attention,
        decoder_input=own.decoder_input,
        predicts_length=config.lengths.kind == "predictor",
    )
