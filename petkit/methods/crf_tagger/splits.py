"""The sentences of a recipe, with the tags that they may have."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from petkit.data.conll import TaggedSentence, read_conll, sample_file
from petkit.data.spans import checked_tags, likely_scheme
from petkit.errors import ConfigError, InputError
from petkit.methods.crf_tagger.config import TaggedDataConfig, TaggerConfig
from petkit.training.subset import seeded_subset

log = logging.getLogger(__name__)

Sentences = list[TaggedSentence]
# Of a tagger's labels, in a message.
SHOWN_LABELS = 20


@dataclass(frozen=True)
class Splits:
    """Checked sentences by the part they play, and the tags of those that are learned from."""

    train: Sentences
    validation: Sentences | None
    """None when no split selects."""

    test: Sentences
    labels: tuple[str, ...]

    def sha256(self) -> str:
        """Hash of what decides the weights."""
        used = [[[s.words, s.tags] for s in part or ()] for part in (self.train, self.validation)]
        return hashlib.sha256(json.dumps([self.labels, used]).encode()).hexdigest()


def load_splits(config: TaggerConfig) -> Splits:
    """Read and check every sentence of a recipe.

    Args:
        config: the validated recipe.

    Returns:
        The splits. Unless validation selects, its sentences are learned from too.

    Raises:
        ConfigError: validation is to select, and there is none.
        InputError: a file cannot be read, a tag breaks its scheme, or a tag is not among those of training;
            the message names file and line.
    """
    data = config.data
    train, test = measured_split(config, "train"), measured_split(config, "test")
    validation = read_split(data, "validation")
    if config.training.select == "validation":
        if validation is None:
            raise ConfigError(
                "training.select validation needs a validation split, got none: set data.validation or "
                "training.select=last"
            )
    else:
        train, validation = [*train, *(validation or ())], None
    labels = labels_of(train)
    _hint_at_spans(data, train)
    for part in (validation or (), test):
        check_known(part, labels)
    return Splits(train, validation, test, labels)


def read_split(data: TaggedDataConfig, split: str) -> Sentences | None:
    """Read the sentences of one split, with tags that are held against the scheme.

    Args:
        data: the `data:` section.
        split: train, validation or test.

    Returns:
        The sentences; None where the recipe names no file for the split.

    Raises:
        InputError: as `load_splits`.
    """
    if data.format == "sample":
        return read_checked(sample_file(data.sample, split), data)
    name = getattr(data, split)
    return None if name is None else read_checked(Path(name), data)


def measured_split(config: TaggerConfig, split: str) -> Sentences:
    """The sentences of a split as a run of the recipe takes them, its train_size or test_size applied.

    Args:
        config: the recipe.
        split: train, validation or test.

    Returns:
        The sentences.

    Raises:
        ConfigError: the recipe names no such file.
        InputError: as `load_splits`.
    """
    size = {"train": config.data.train_size, "test": config.data.test_size}.get(split)
    return seeded_subset(_required(config.data, split), size, config.seed, f"{split}_size", "sentences")


def read_checked(file: Path, data: TaggedDataConfig) -> Sentences:
    """Read a file of tagged sentences, and hold their tags against the scheme.

    Args:
        file: in columns.
        data: says how lines divide, the scheme, and what to do with faulty tags.

    Returns:
        The sentences, repaired where that is asked for.

    Raises:
        InputError: as `load_splits`.
    """
    repair = data.faulty_tags == "repair"
    read = read_conll(file, data.columns())
    found = [replace(one, tags=checked_tags(one, data.scheme, repair)) for one in read]
    repaired = sum(old.tags != new.tags for old, new in zip(read, found, strict=True))
    if repaired:
        log.warning(
            "%s: tags of %d of %d sentences broke %s and are repaired",
            file,
            repaired,
            len(found),
            data.scheme,
        )
    return found


def labels_of(sentences: Iterable[TaggedSentence]) -> tuple[str, ...]:
    """The tags of sentences: O first, then the others in the order of their types and letters."""
    found = {tag for sentence in sentences for tag in sentence.tags}
    return tuple(sorted(found, key=lambda tag: (tag != "O", tag.partition("-")[2], tag)))


def check_known(sentences: Iterable[TaggedSentence], labels: Sequence[str], is_trained: bool = False) -> None:
    """Refuse a tag that a tagger does not know.

    Args:
        sentences: that are measured.
        labels: the tagger's.
        is_trained: whether the tagger is there already, so that moving sentences to its training is too late.

    Raises:
        InputError: names file and line.
    """
    known = set(labels)
    for sentence in sentences:
        for position, tag in enumerate(sentence.tags):
            if tag not in known:
                raise InputError(f"{sentence.place(position)}: tag {tag!r} {_unknown(labels, is_trained)}")


def _unknown(labels: Sequence[str], is_trained: bool) -> str:
    if not is_trained:
        return (
            f"must be one of the {len(labels)} that training has: correct it, or move such a sentence to "
            "data.train"
        )
    more = len(labels) - SHOWN_LABELS
    shown = ", ".join(labels[:SHOWN_LABELS]) + (f" and {more} more" if more > 0 else "")
    return f"is none that the tagger knows ({shown}): correct it, or train a tagger that learns it"


def _hint_at_spans(data: TaggedDataConfig, sentences: Sentences) -> None:
    """Say that tags look like spans where they are scored as if each stood by itself."""
    scheme = likely_scheme(sentences) if data.scheme == "none" else None
    if scheme is not None:
        log.info(
            "data.scheme is none, but the tags look like %s: data.scheme=%s would score spans", scheme, scheme
        )


def _required(data: TaggedDataConfig, split: str) -> Sentences:
    found = read_split(data, split)
    if found is None:
        raise ConfigError(f"data.{split} is required: name the file")
    return found
