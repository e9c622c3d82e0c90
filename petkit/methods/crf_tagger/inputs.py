"""From words to what an encoder takes: numbers of words and characters, or a tokenizer's pieces."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from petkit.data.conll import TaggedSentence
from petkit.errors import ArtifactError, InputError

log = logging.getLogger(__name__)

Item = dict[str, Any]
PADDING, UNKNOWN = 0, 1
SPECIAL = 2
# Longer words tell nothing more by their middle; the filters would cost by the longest word of a batch.
MAX_CHARACTERS = 40
# The loss leaves it out; so does the CRF, whatever it is.
NO_TAG = -100


class Reader(Protocol):
    """Turns the words of sentences into the inputs of an encoder."""

    def read(self, words: Sequence[str]) -> Item:
        """The item of one sentence, without tags."""
        ...

    def collate(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """The inputs of a batch, with `mask` (batch, words), true where a word is."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """The words and characters that training knows; the first two numbers are padding and unknown."""

    words: tuple[str, ...]
    characters: tuple[str, ...] = ()

    @classmethod
    def of(cls, sentences: Iterable[Sequence[str]], min_count: int, characters: bool) -> Vocabulary:
        """Collect a vocabulary.

        Args:
            sentences: words of the training sentences.
            min_count: how often a word must occur to be known.
            characters: whether characters are wanted.

        Returns:
            Words, the most frequent first, and characters by their code.
        """
        counts = Counter(word for words in sentences for word in words)
        known = sorted((word for word in counts if counts[word] >= min_count), key=lambda w: (-counts[w], w))
        found = sorted({character for word in counts for character in word}) if characters else ()
        return cls(tuple(known), tuple(found))

    def to_json(self) -> bytes:
        """The content of vocabulary.json."""
        content = {"words": self.words, "characters": self.characters}
        return (json.dumps(content, ensure_ascii=False, indent=0) + "\n").encode("utf-8")

    @classmethod
    def from_json(cls, content: Any, place: str) -> Vocabulary:
        """Read the content of vocabulary.json.

        Args:
            content: parsed JSON.
            place: the file, for messages.

        Returns:
            The vocabulary.

        Raises:
            ArtifactError: it is not what `to_json` writes.
        """
        fits = isinstance(content, Mapping) and content.keys() == {"words", "characters"}
        parts = [content["words"], content["characters"]] if fits else []
        for part in parts:
            fits = fits and isinstance(part, list) and all(isinstance(one, str) for one in part)
            fits = fits and len(set(part)) == len(part)
        if not fits:
            raise ArtifactError(f"{place} must hold lists of different words and characters: copy it again")
        return cls(*(tuple(part) for part in parts))

    @cached_property
    def word_numbers(self) -> dict[str, int]:
        """Number of each word."""
        return {word: number for number, word in enumerate(self.words, start=SPECIAL)}

    @cached_property
    def character_numbers(self) -> dict[str, int]:
        """Number of each character."""
        return {character: number for number, character in enumerate(self.characters, start=SPECIAL)}


@dataclass(frozen=True)
class WordReader:
    """Inputs of the BiLSTM."""

    vocabulary: Vocabulary

    def read(self, words: Sequence[str]) -> Item:
        """Numbers of the words, and of their characters where the vocabulary has any."""
        known, letters = self.vocabulary.word_numbers, self.vocabulary.character_numbers
        item: Item = {"words": [known.get(word, UNKNOWN) for word in words]}
        if letters:
            item["characters"] = [[letters.get(c, UNKNOWN) for c in word[:MAX_CHARACTERS]] for word in words]
        return item

    def collate(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """`words` and `mask` (batch, words), `characters` (batch, words, characters)."""
        words = _padded([item["words"] for item in items], PADDING)
        batch = {"words": words, "mask": words != PADDING}
        if "characters" in items[0]:
            batch["characters"] = _padded_words([item["characters"] for item in items], words.shape[1])
        return batch


class PieceReader:
    """Inputs of a transformers encoder: each word is read at its first piece.

    A sentence with more pieces than the model has positions is divided between words into windows, as few as
    possible, each with the model's special tokens. The head and the CRF then see the whole sentence; only
    the encoder does not look beyond a window. Of a word that is longer than a window the beginning is read.

    Args:
        tokenizer: a fast tokenizer of transformers; `model_max_length` is the longest window.

    Raises:
        InputError: the tokenizer cannot tell pieces of words apart, or leaves no room for any.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.is_fast:
            raise InputError(f"model.encoder needs a fast tokenizer, got {type(tokenizer).__name__}")
        self.tokenizer = tokenizer
        self.before, self.after = _special_tokens(tokenizer)
        self.room = int(tokenizer.model_max_length) - len(self.before) - len(self.after)
        if self.room < 1:
            raise InputError(f"model.encoder must have room for a piece, its tokenizer allows {self.room}")
        padding = tokenizer.pad_token_id
        self.padding = 0 if padding is None else int(padding)

    def read(self, words: Sequence[str]) -> Item:
        """Windows of token numbers, and for each word the window and the position of its first piece."""
        windows: list[list[int]] = [[]]
        places: list[tuple[int, int]] = []
        for pieces in self._pieces(words):
            pieces = pieces[: self.room]
            if len(windows[-1]) + len(pieces) > self.room:
                windows.append([])
            places.append((len(windows) - 1, len(self.before) + len(windows[-1])))
            windows[-1] += pieces
        return {"windows": [[*self.before, *window, *self.after] for window in windows], "places": places}

    def _pieces(self, words: Sequence[str]) -> list[list[int]]:
        """Token numbers of each word; a word of which the tokenizer leaves nothing is an unknown one."""
        # As one text: byte-level tokenizers take a word without the space before it for the middle of one.
        text = " ".join(words)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        word_at = [number for number, word in enumerate(words) for _ in f" {word}"][1:]
        pieces: list[list[int]] = [[] for _ in words]
        for token, (_, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            pieces[word_at[max(end - 1, 0)]].append(token)
        return [own or [self._unknown()] for own in pieces]

    def _unknown(self) -> int:
        unknown = self.tokenizer.unk_token_id
        return self.padding if unknown is None else int(unknown)

    def collate(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (windows, tokens); `places`, numbers in the windows laid end to
        end, and `mask`, (batch, words)."""
        windows = [window for item in items for window in item["windows"]]
        tokens = _padded(windows, self.padding)
        lengths = torch.tensor([len(window) for window in windows])
        attention = torch.arange(tokens.shape[1]) < lengths[:, None]
        rows, first = [], 0
        for item in items:
            rows.append([(first + window) * tokens.shape[1] + at for window, at in item["places"]])
            first += len(item["windows"])
        places = _padded(rows, -1)
        mask = places >= 0
        return {
            "input_ids": tokens,
            "attention_mask": attention.long(),
            "places": places.clamp(min=0),
            "mask": mask,
        }


class TaggedSentences:
    """A split as `fit` takes it: items and batches with the numbers of their tags.

    Args:
        sentences: with tags that are all among the labels.
        labels: the tags, in the order of the head's rows.
        reader: makes the inputs.
    """

    def __init__(self, sentences: Sequence[TaggedSentence], labels: Sequence[str], reader: Reader) -> None:
        self.sentences, self.reader = sentences, reader
        numbers = {label: number for number, label in enumerate(labels)}
        self._tags = [[numbers[tag] for tag in sentence.tags] for sentence in sentences]

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: int) -> Item:
        return {**self._read(index), "tags": self._tags[index]}

    def _read(self, index: int) -> Item:
        return self.reader.read(self.sentences[index].words)

    def collate(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """The reader's inputs and `tags` (batch, words), int64."""
        return {**self.reader.collate(items), "tags": _padded([item["tags"] for item in items], NO_TAG)}


def warn_of_divided(name: str, sentences: Sequence[Sequence[str]], reader: Reader) -> None:
    """Log how many sentences are longer than the encoder's positions; none is with a BiLSTM.

    Args:
        name: of the split or the file.
        sentences: their words.
        reader: makes the inputs.
    """
    if not isinstance(reader, PieceReader):
        return
    long = sum(len(reader.read(words)["windows"]) > 1 for words in sentences)
    if long:
        what = "sentences that are longer than the encoder reads, and go in parts"
        log.warning("%s: %s: %d of %d", name, what, long, len(sentences))


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise InputError(f"model.encoder: {type(tokenizer).__name__} makes no piece of the word 'a'")


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.int64)


def _padded_words(sentences: Sequence[Sequence[Sequence[int]]], words: int) -> Tensor:
    longest = max(len(word) for sentence in sentences for word in sentence)
    blank = [PADDING] * longest
    rows = [
        [*([*word, *blank[len(word) :]] for word in sentence), *[blank] * (words - len(sentence))]
        for sentence in sentences
    ]
    return torch.tensor(rows, dtype=torch.int64)
