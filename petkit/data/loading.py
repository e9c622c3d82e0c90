"""From the `data:` section to the splits of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from petkit.data.chat import Chat, check_tokenizer, cut_chats, encode_chat, parse_chat
from petkit.data.classes import check_seen, class_names, class_numbers
from petkit.data.config import DataConfig
from petkit.data.images import ImageDataset, JoinedImages, effective_preprocess
from petkit.data.jsonl import convert, placed_rows, read_rows
from petkit.data.listings import Listing, list_folders, list_sample, list_vtab
from petkit.data.subsets import choose
from petkit.data.text import encode_texts, parse_text
from petkit.data.tokens import TokenDataset, padding_token
from petkit.errors import ConfigError, InputError

SPLITS = ("train", "validation", "test")
TASK_FORMATS = {
    "image_classification": ("sample", "vtab", "image_folder"),
    "text_classification": ("text",),
    "causal_lm": ("chat",),
}


class Dataset(Protocol):
    """A map-style data set that can make a batch of its examples.

    `labels` holds a class number per example (0 throughout for chats), `rows` the position of each example
    among all that were listed.
    """

    labels: list[int]
    rows: list[int]

    def __len__(self) -> int:
        """How many examples there are."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example."""

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a batch of tensors, `labels` among them."""

    def select(self, indices: Sequence[int]) -> Dataset:
        """The examples at the given positions, in that order."""


@dataclass(frozen=True)
class Splits:
    """The data of a run. A split that the data set does not have, or that was not asked for, is None.

    `everything` is train and validation together, for a run that does not select on validation.
    `preprocess` is what is really done to pixels, for the artifact's record.
    """

    train: Dataset | None
    validation: Dataset | None
    everything: Dataset | None
    test: Dataset | None
    classes: tuple[str, ...]
    preprocess: dict[str, Any] | None = None


# From the model's `preprocess` (images) and `tokenizer` (text) to the splits.
Finish = Callable[[Mapping[str, Any] | None, Any | None], Splits]


def load_data(
    config: DataConfig,
    task: str,
    preprocess: Mapping[str, Any] | None = None,
    tokenizer: Any | None = None,
    *,
    classes: Sequence[str] | None = None,
    splits: Sequence[str] = SPLITS,
    seed: int = 0,
) -> Splits:
    """Load the splits of a task.

    Args:
        config: The `data:` section.
        task: image_classification, text_classification or causal_lm.
        preprocess: image_size, mean, std and interpolation of the model, for images.
        tokenizer: The model's tokenizer, for text.
        classes: Class names of an artifact, whose numbering then holds; by default the names in the data.
        splits: Which of train, validation and test to load; train and test must exist when named.
        seed: Seed of train_size's and test_size's choice.

    Returns:
        The splits in a deterministic order.

    Raises:
        ConfigError: The format does not serve the task, or a needed key is missing.
        InputError: A split is missing or empty, an example is malformed, or a class is unknown.
        SafetyError: A path leaves the data folder.
    """
    return list_data(config, task, classes=classes, splits=splits, seed=seed)(preprocess, tokenizer)


def list_data(
    config: DataConfig,
    task: str,
    *,
    classes: Sequence[str] | None = None,
    splits: Sequence[str] = SPLITS,
    seed: int = 0,
) -> Finish:
    """Find the examples of a task, check and number them: all of loading that needs no model.

    List files and JSONL rows are read here, once. Decoding and tokenising are left to what is returned, and
    so are the faults that only they can find: an unreadable image, a chat that the template refuses.

    Args:
        config, task, classes, splits, seed: As in `load_data`.

    Returns:
        A function that takes the model's `preprocess` and `tokenizer` and returns the splits.

    Raises:
        ConfigError, InputError, SafetyError: As `load_data`.
    """
    check_data(config, task)
    make = {"text": _list_texts, "chat": _list_chats}.get(config.format, _list_images)
    return make(config, classes, splits, seed)


def check_data(config: DataConfig, task: str) -> None:
    """Refuse what cannot be loaded with any model, at no cost: the wrong format, or no folder.

    Args:
        config: The `data:` section.
        task: image_classification, text_classification or causal_lm.

    Raises:
        ConfigError: The format does not serve the task, or `data.path` is missing.
        InputError: `data.path` is not a folder.
    """
    formats = TASK_FORMATS.get(task, ())
    if config.format not in formats:
        raise ConfigError(
            f"data.format for task {task} must be {' or '.join(formats)}, got {config.format!r}"
        )
    if config.format != "sample":
        data_folder(config)


def _list_images(
    config: DataConfig, classes: Sequence[str] | None, splits: Sequence[str], seed: int
) -> Finish:
    listings, known = _image_listings(config, splits)
    labels = {split: listing.labels for split, listing in listings.items()}
    numbered = config.format == "vtab"
    names, numbers = _number(config, labels, splits, classes or known, numbered)

    def finish(preprocess: Mapping[str, Any] | None, tokenizer: Any) -> Splits:
        if preprocess is None:
            raise ConfigError("images need the model's preprocess: image_size, mean, std and interpolation")
        effective = effective_preprocess(preprocess, config)

        def build(parts: Sequence[str]) -> Dataset:
            source = JoinedImages(tuple(listings[part].source for part in parts))
            dataset = ImageDataset(source, [number for part in parts for number in numbers[part]], effective)
            return dataset.readable() if config.skip_bad else dataset

        return assemble(build, _sizes(labels), names, config, seed, effective)

    return finish


def _image_listings(
    config: DataConfig, splits: Sequence[str]
) -> tuple[dict[str, Listing], tuple[str, ...] | None]:
    if config.format == "sample":
        return list_sample(config.sample, splits)
    folder = data_folder(config)
    if config.format == "vtab":
        return list_vtab(folder, splits, config.skip_bad), None
    return list_folders(folder, splits), None


def _list_texts(
    config: DataConfig, classes: Sequence[str] | None, splits: Sequence[str], seed: int
) -> Finish:
    found = {
        split: read_rows(path, parse_text, config.skip_bad) for split, path in _row_files(config, splits)
    }
    labels = {split: [row.label for row in rows] for split, rows in found.items()}
    numbered = all(row.numbered for rows in found.values() for row in rows)
    names, numbers = _number(config, labels, splits, classes, numbered)

    def finish(preprocess: Mapping[str, Any] | None, tokenizer: Any) -> Splits:
        if tokenizer is None:
            raise ConfigError(
                "data.format text needs a model with a tokenizer: hf/ORG/NAME or a local folder"
            )

        def build(parts: Sequence[str]) -> Dataset:
            texts = [row.text for part in parts for row in found[part]]
            targets = [number for part in parts for number in numbers[part]]
            encoded = encode_texts(texts, tokenizer, config.max_length)
            pairs = zip(encoded, targets, strict=True)
            return TokenDataset(
                [{"input_ids": ids, "labels": label} for ids, label in pairs], padding_token(tokenizer)
            )

        return assemble(build, _sizes(found), names, config, seed)

    return finish


def _number(
    config: DataConfig,
    labels: Mapping[str, Sequence[str]],
    splits: Sequence[str],
    classes: Sequence[str] | None,
    numbered: bool,
) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Name the classes, number every example's, and refuse splits and classes that cannot be used."""
    require_splits(_sizes(labels), splits, config)
    names = tuple(classes or class_names(labels, numbered, config.allow_unseen_classes))
    numbers = {split: class_numbers(values, names, split) for split, values in labels.items()}
    if not config.allow_unseen_classes:
        check_seen(numbers, names)
    return names, numbers


def _list_chats(
    config: DataConfig, classes: Sequence[str] | None, splits: Sequence[str], seed: int
) -> Finish:
    files = _row_files(config, splits)
    found = {split: placed_rows(path, parse_chat, config.skip_bad) for split, path in files}
    # Fine-tuning data often comes without a test part.
    needed = [split for split in splits if split != "test" or split in found]
    require_splits(_sizes(found), needed, config)

    def finish(preprocess: Mapping[str, Any] | None, tokenizer: Any) -> Splits:
        check_tokenizer(tokenizer)
        encoded = {split: _encode_chats(rows, tokenizer, config) for split, rows in found.items()}
        require_splits(_sizes(encoded), needed, config)

        def build(parts: Sequence[str]) -> Dataset:
            return TokenDataset([row for part in parts for row in encoded[part]], padding_token(tokenizer))

        return assemble(build, _sizes(encoded), (), config, seed)

    return finish


def _encode_chats(
    rows: Sequence[tuple[str, Chat]], tokenizer: Any, config: DataConfig
) -> list[dict[str, list[int]]]:
    encoded = convert(rows, lambda chat: encode_chat(chat, tokenizer), config.skip_bad)
    longest = min(config.max_length, tokenizer.model_max_length)
    return cut_chats([example for _, example in encoded], longest)


def _sizes(found: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    return {split: len(values) for split, values in found.items()}


def _row_files(config: DataConfig, splits: Sequence[str]) -> list[tuple[str, Path]]:
    folder = data_folder(config)
    files = [(split, folder / f"{split}.jsonl") for split in splits]
    return [(split, path) for split, path in files if path.is_file()]


def data_folder(config: DataConfig) -> Path:
    """The folder that `data.path` names.

    Args:
        config: The `data:` section.

    Returns:
        An existing folder.

    Raises:
        ConfigError: The key is missing.
        InputError: It is not a folder.
    """
    if config.path is None:
        raise ConfigError(f"data.path is needed for data.format {config.format}: give the folder of the data")
    folder = Path(config.path).expanduser()
    if not folder.is_dir():
        raise InputError(f"data.path {folder} is not a folder: give the folder of the data")
    return folder


def require_splits(sizes: Mapping[str, int], splits: Sequence[str], config: DataConfig) -> None:
    """Refuse a missing or empty split.

    Args:
        sizes: Number of examples by split found.
        splits: Splits asked for; validation may be missing.
        config: The `data:` section, for the message.

    Raises:
        InputError: A split is missing or empty.
    """
    where = config.path or config.sample
    for split in splits:
        if split not in sizes and split != "validation":
            raise InputError(
                f"{where} has no {split} split for data.format {config.format} (see docs/data.md)"
            )
        if sizes.get(split) == 0:
            raise InputError(f"the {split} split of {where} is empty: it needs at least one example")


def assemble(
    build: Callable[[Sequence[str]], Dataset],
    sizes: Mapping[str, int],
    classes: tuple[str, ...],
    config: DataConfig,
    seed: int,
    preprocess: dict[str, Any] | None = None,
) -> Splits:
    """Make the splits so that train and validation share one set of decoded examples.

    Args:
        build: Makes the data set of the named splits, one after another.
        sizes: Number of listed examples by split.
        classes: Class names.
        config: `train_size` and `test_size`.
        seed: Seed of their choice.
        preprocess: Recorded as it is.

    Returns:
        The splits.

    Raises:
        InputError: Nothing readable is left of a split, or it has fewer examples than asked for.
    """
    fitted = [split for split in ("train", "validation") if split in sizes]
    joined = build(fitted) if fitted else None
    parts: dict[str, Dataset | None] = dict.fromkeys(SPLITS)
    everything = None
    if joined is not None:
        border = sizes.get("train", 0)
        parts["train"] = _chosen(joined, lambda row: row < border, config.train_size, seed, "train")
        parts["validation"] = _chosen(joined, lambda row: row >= border, None, seed, "validation")
        everything = _chosen(joined, lambda row: True, config.train_size, seed, "train")
    if "test" in sizes:
        parts["test"] = _chosen(build(["test"]), lambda row: True, config.test_size, seed, "test")
    for split, size in sizes.items():
        if size and not parts[split]:
            raise InputError(f"no readable example is left in the {split} split of {config.path}")
    return Splits(parts["train"], parts["validation"], everything, parts["test"], classes, preprocess)


def _chosen(
    dataset: Dataset, belongs: Callable[[int], bool], size: int | None, seed: int, split: str
) -> Dataset | None:
    part = dataset.select([index for index, row in enumerate(dataset.rows) if belongs(row)])
    if len(part) == 0:
        return None
    return part.select(choose(part.labels, size, seed, f"data.{split}_size"))
