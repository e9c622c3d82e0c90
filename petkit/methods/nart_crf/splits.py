"""The sentence pairs of a recipe, by the part they play."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from petkit.data.parallel import SentencePair, read_line_pairs, read_pairs, sample_pairs
from petkit.errors import ConfigError
from petkit.methods.nart_crf.config import PairDataConfig, TranslatorConfig
from petkit.training.subset import seeded_subset

Pairs = list[SentencePair]


@dataclass(frozen=True)
class Splits:
    """Sentence pairs by the part they play."""

    train: Pairs
    validation: Pairs | None
    """None when no split selects."""

    test: Pairs


def load_splits(config: TranslatorConfig) -> Splits:
    """Read every sentence pair of a recipe.

    Args:
        config: the validated recipe.

    Returns:
        The splits. Unless validation selects, its pairs are learned from too.

    Raises:
        ConfigError: validation is to select, and there is none.
        InputError: a file cannot be read or a row is faulty; the message names file and line.
    """
    train, test = measured_split(config, "train"), measured_split(config, "test")
    validation = read_split(config.data, "validation")
    if config.training.select == "last":
        return Splits([*train, *(validation or ())], None, test)
    if validation is None:
        raise ConfigError(
            "training.select validation needs a validation split, got none: set data.validation or "
            "training.select=last"
        )
    return Splits(train, validation, test)


def told(data: PairDataConfig, split: str) -> str:
    """What messages call a split: its key and file, or the embedded set.

    Args:
        data: the `data:` section.
        split: train, validation or test.
    """
    if data.format == "sample":
        return f"the {split} split of data.sample {data.sample}"
    name = getattr(data, split)
    if data.format == "jsonl":
        return f"data.{split} {name}"
    return f"data.{split} {' and '.join(f'{name}.{language}' for language in data.languages)}"


def read_split(data: PairDataConfig, split: str) -> Pairs | None:
    """Read the pairs of one split.

    Args:
        data: the `data:` section.
        split: train, validation or test.

    Returns:
        The pairs; None where the recipe names no file for the split.

    Raises:
        InputError: as `load_splits`.
    """
    if data.format == "sample":
        return read_pairs(sample_pairs(data.sample, split))
    name = getattr(data, split)
    if name is None:
        return None
    if data.format == "jsonl":
        return read_pairs(Path(name), data.skip_bad)
    source, target = (Path(f"{name}.{language}") for language in data.languages)
    return read_line_pairs(source, target, data.skip_bad)


def measured_split(config: TranslatorConfig, split: str) -> Pairs:
    """The pairs of a split as a run of the recipe takes them, its train_size or test_size applied.

    Args:
        config: the recipe.
        split: train, validation or test.

    Returns:
        The pairs.

    Raises:
        ConfigError: the recipe names no such file.
        InputError: as `load_splits`.
    """
    found = read_split(config.data, split)
    if found is None:
        raise ConfigError(f"data.{split} is required: name the file")
    size = {"train": config.data.train_size, "test": config.data.test_size}.get(split)
    return seeded_subset(found, size, config.seed, f"{split}_size", "pairs")


def pairs_sha256(pairs: Sequence[SentencePair]) -> str:
    """Hash of what a model learns from."""
    return hashlib.sha256(json.dumps([[one.source, one.target] for one in pairs]).encode()).hexdigest()
