"""Predictions of one adapter or of a bank: most likely classes with probabilities, or generated text."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from petkit.data.chat import Chat, render_chat
from petkit.data.images import FileImages, normalize, read_image
from petkit.data.text import encode_texts
from petkit.data.tokens import TokenDataset, padding_token
from petkit.errors import InputError
from petkit.models.loaded import compute_logits
from petkit.models.loading import AdaptedModel
from petkit.serving.bank import BankModel
from petkit.serving.samples import LeftOut, Sample
from petkit.training.config import Precision
from petkit.training.evaluate import autocast, to_device

log = logging.getLogger(__name__)

# What a text model keeps of a text when neither its artifact nor its tokenizer says.
MAX_LENGTH = 512


@dataclass(frozen=True)
class Prediction:
    """What is predicted for one input.

    Args:
        name: the input's name.
        adapter: which adapter of a bank was used.
        classes: most likely classes with their probabilities, the likeliest first.
        text: what a language model wrote.
        row: the input's row, as in Sample.
    """

    name: str
    adapter: str | None = None
    classes: tuple[tuple[str, float], ...] = ()
    text: str | None = None
    row: str | None = None

    def payload(self) -> dict[str, Any]:
        """The prediction as JSON values."""
        found: dict[str, Any] = {"input": self.name}
        if self.row is not None:
            found["row"] = self.row
        if self.adapter is not None:
            found["adapter"] = self.adapter
        if self.text is not None:
            return {**found, "text": self.text}
        return {**found, "classes": [{"class": name, "probability": p} for name, p in self.classes]}


@dataclass(frozen=True)
class Preparation:
    """How an input becomes a tensor, and what the classes are called.

    Args:
        preprocess: image_size, mean, std and interpolation, for pictures.
        max_length: tokens kept, for texts.
        classes: names in the order of the head's rows; empty when the artifact does not know them.
    """

    preprocess: Mapping[str, Any] | None
    max_length: int
    classes: tuple[str, ...]


class Classifier(Protocol):
    """One adapter, or a bank of many."""

    tokenizer: Any | None
    device: torch.device

    def preparation(self, sample: Sample) -> Preparation:
        """How this sample is prepared."""

    def logits(self, batch: Mapping[str, Tensor], samples: Sequence[Sample]) -> Sequence[Tensor]:
        """Logits (classes,) of each sample."""


class OneAdapter:
    """Classifies with one artifact.

    Args:
        adapted: the artifact with its base.
    """

    def __init__(self, adapted: AdaptedModel) -> None:
        self.adapted, self.tokenizer = adapted, adapted.tokenizer
        self.device = next(adapted.model.parameters()).device
        task = adapted.artifact.manifest.task
        length = (task.max_length if task else None) or MAX_LENGTH
        self._preparation = Preparation(adapted.preprocess, length, adapted.classes)

    def preparation(self, sample: Sample) -> Preparation:
        """The artifact's own, whatever the sample."""
        return self._preparation

    def logits(self, batch: Mapping[str, Tensor], samples: Sequence[Sample]) -> Sequence[Tensor]:
        """Logits (classes,) of each sample."""
        with torch.inference_mode():
            return list(compute_logits(self.adapted.model, to_device(batch, self.device)))


class ManyAdapters:
    """Classifies each sample with its own adapter of a bank.

    Args:
        bank: the adapters.
    """

    def __init__(self, bank: BankModel) -> None:
        self.bank, self.tokenizer, self.device = bank, bank.base.tokenizer, bank.device

    def preparation(self, sample: Sample) -> Preparation:
        """As the sample's adapter records it."""
        task = self.bank.entry(str(sample.adapter)).task
        preprocess = task.preprocess.model_dump() if task.preprocess else self.bank.base.preprocess
        return Preparation(preprocess, task.max_length or MAX_LENGTH, task.classes)

    def logits(self, batch: Mapping[str, Tensor], samples: Sequence[Sample]) -> Sequence[Tensor]:
        """Logits of each sample, as many as its adapter has classes."""
        return self.bank(batch, [sample.adapter for sample in samples])


def classify(
    model: Classifier,
    samples: Sequence[Sample],
    *,
    top_k: int = 3,
    batch_size: int = 32,
    skip_bad: bool = False,
    precision: Precision = "fp32",
    left_out: list[LeftOut] | None = None,
) -> Iterator[Prediction]:
    """Classify inputs, a batch at a time.

    Args:
        model: one adapter or a bank.
        samples: pictures or texts.
        top_k: classes to give, at least 1.
        batch_size: samples a forward pass.
        skip_bad: leave unreadable pictures out, each named in the log.
        precision: bf16 runs under autocast.
        left_out: is given those pictures too, as they come.

    Returns:
        Predictions in the order of the samples, as soon as their batch is done.

    Raises:
        InputError: a picture that cannot be read; the message names it.
    """
    for start in range(0, len(samples), batch_size):
        chunk, batch = _batch(model, samples[start : start + batch_size], skip_bad, left_out)
        if not chunk:
            continue
        with autocast(model.device, precision):
            found = model.logits(batch, chunk)
        for sample, logits in zip(chunk, found, strict=True):
            classes = model.preparation(sample).classes
            likeliest = most_likely(logits, classes, top_k)
            yield Prediction(sample.name, sample.adapter, likeliest, row=sample.row)


def most_likely(logits: Tensor, classes: Sequence[str], top_k: int) -> tuple[tuple[str, float], ...]:
    """Name the most likely classes.

    Args:
        logits: (classes,).
        classes: names in the same order; numbers stand in where there are none.
        top_k: how many to give; fewer when there are fewer classes.

    Returns:
        Pairs of name and probability, the likeliest first.

    Raises:
        InputError: another number of names than logits.

    Source:
        Softmax in float64.
    """
    names = tuple(classes) or tuple(str(number) for number in range(len(logits)))
    if len(names) != len(logits):
        raise InputError(f"the artifact names {len(names)} classes, its head has {len(logits)}")
    best = torch.softmax(logits.double(), dim=-1).topk(min(top_k, len(names)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple((names[index], probability) for index, probability in pairs)


def _batch(
    model: Classifier, samples: Sequence[Sample], skip_bad: bool, left_out: list[LeftOut] | None
) -> tuple[list[Sample], dict[str, Tensor]]:
    if samples[0].image is None:
        return list(samples), _texts(model, samples)
    kept, pixels = [], []
    for sample in samples:
        preprocess = model.preparation(sample).preprocess
        if sample.image is None or preprocess is None:
            raise InputError(f"{sample.name} cannot be prepared: the artifact does not say how pictures are")
        try:
            pixels.append(_picture(sample.image, preprocess))
            kept.append(sample)
        except InputError as error:
            _leave_out(sample, str(error).rpartition("; ")[0], skip_bad, left_out)
    return kept, {"pixel_values": torch.stack(pixels)} if pixels else {}


def _leave_out(sample: Sample, reason: str, skip_bad: bool, left_out: list[LeftOut] | None) -> None:
    message = reason if sample.row is None else f"{sample.row}: {reason}"
    if not skip_bad:
        raise InputError(f"{message}; repair it or pass --skip-bad")
    log.warning("left out: %s", message)
    if left_out is not None:
        left_out.append(LeftOut(sample.name, reason, sample.row))


def _picture(image: Path, preprocess: Mapping[str, Any]) -> Tensor:
    pixels = read_image(FileImages((image,)), 0, preprocess)
    return normalize(pixels, preprocess["mean"], preprocess["std"])


def _texts(model: Classifier, samples: Sequence[Sample]) -> dict[str, Tensor]:
    if model.tokenizer is None:
        raise InputError("text needs a model with a tokenizer, got an image model: pass pictures")
    examples = []
    for sample in samples:
        (ids,) = encode_texts([sample.text or ""], model.tokenizer, model.preparation(sample).max_length)
        examples.append({"input_ids": ids, "labels": 0})
    batch = TokenDataset(examples, padding_token(model.tokenizer)).collate(examples)
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def generate(
    adapted: AdaptedModel,
    samples: Sequence[Sample],
    max_new_tokens: int,
    precision: Precision = "fp32",
    skip_bad: bool = False,
    left_out: list[LeftOut] | None = None,
) -> Iterator[Prediction]:
    """Continue prompts greedily, one at a time.

    Args:
        adapted: a causal language model with its adapter.
        samples: prompts or conversations; a prompt is put as a user's message when the model has a chat
            template.
        max_new_tokens: tokens to write at most, at least 1.
        precision: bf16 runs under autocast.
        skip_bad: leave conversations that the template refuses out, each named in the log.
        left_out: is given those conversations too, as they come.

    Returns:
        What the model wrote after each prompt, special tokens left out.

    Raises:
        InputError: a conversation for a model without a chat template, or one that the template refuses.

    Source:
        Greedy decoding of transformers.
    """
    tokenizer: Any = adapted.tokenizer
    device = next(adapted.model.parameters()).device
    for sample in samples:
        try:
            ids = torch.tensor([_prompt(tokenizer, sample)], device=device)
        except InputError:
            raise
        except ValueError as error:
            _leave_out(sample, str(error), skip_bad, left_out)
            continue
        with torch.inference_mode(), autocast(device, precision):
            written = adapted.model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=padding_token(tokenizer),
            )
        text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        yield Prediction(sample.name, text=text, row=sample.row)


def _prompt(tokenizer: Any, sample: Sample) -> list[int]:
    if getattr(tokenizer, "chat_template", None):
        chat = sample.chat or Chat(({"role": "user", "content": sample.text or ""},))
        rendered = render_chat(chat, tokenizer, prompt=True)
        ids = list(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    elif sample.chat is not None:
        where = sample.row or sample.name
        raise InputError(f"{where}: messages need a model with a chat template: pass text")
    else:
        ids = list(tokenizer(sample.text or "")["input_ids"])
    if not ids:
        raise ValueError("a prompt needs at least one token, and the tokenizer knows none of this one's")
    if len(ids) >= tokenizer.model_max_length:
        raise ValueError(f"the prompt has {len(ids)} tokens, the model takes {tokenizer.model_max_length}")
    return ids
