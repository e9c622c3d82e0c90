"""Recipes of models that train in a second, and a vocabulary small enough to try all sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from petkit.methods.nart_crf.config import TranslatorConfig
from petkit.methods.nart_crf.recipe import run
from petkit.training.context import RunContext

SHAPE = {"hidden": 16, "feed_forward": 32, "encoder_layers": 1, "decoder_layers": 1, "heads": 2}
SIZE = 340
POSITIONS = 16
# Sentences of one to five words, translated word by word: even the tiniest teacher learns to end them.
WORDS = Path(__file__).parents[2] / "data" / "words"
SOURCES = (
    "dog sees cat",
    "red boat",
    "bird hides old lamp tree",
    "new tree finds bird",
    "cat",
    "lamp lamp sees red dog",
)
# The phrases of the package, for runs like a user's first one.
PHRASES = {
    "model__max_positions": 48,
    "data": {"format": "sample", "train_size": 100, "test_size": 10, "max_length": 47},
}


class SevenTokens:
    """What a model wants to know of a vocabulary: three words beside the special tokens."""

    pad_id, bos_id, eos_id, unknown_id = range(4)

    def __len__(self) -> int:
        return 7


def content(output: Path | str, **changes: Any) -> dict[str, Any]:
    """A recipe of ten steps on 200 sentences; `model__kind="nart"` changes one key."""
    found: dict[str, Any] = {
        "output": str(output),
        "model": {**SHAPE, "max_positions": POSITIONS},
        "vocabulary": {"size": SIZE},
        "data": {split: str(WORDS / f"{split}.jsonl") for split in ("train", "validation", "test")},
        # With a checkpoint at the end alone, since each waits for the disk.
        "training": {"epochs": 1, "batch_size": 20, "warmup_epochs": 0, "learning_rate": 1e-2}
        | {"checkpoint_every": 50},
    }
    found["data"] |= {"train_size": 100, "test_size": 10, "max_length": POSITIONS - 1}
    if "crf" in changes.get("model__kind", "nart-crf"):
        found["crf"] = {"rank": 4, "beam": 16}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            found.setdefault(section, {})[key] = value
        else:
            found[section] = value
    return found


def recipe(output: Path | str = "unused", **changes: Any) -> TranslatorConfig:
    """The same, validated."""
    return TranslatorConfig(**content(output, **changes))


def context(config: TranslatorConfig, **more: Any) -> RunContext:
    """Its surroundings."""
    return RunContext(Path(config.output), torch.device("cpu"), **more)


def teacher(session: pytest.TempPathFactory) -> Path:
    """The folder of an autoregressive translator whose sentences end at different lengths."""
    still = {"model__dropout": 0.0, "loss__label_smoothing": 0.0}
    return _trained(
        session, "teacher", model__kind="autoregressive", model__hidden=32, training__epochs=12, **still
    )


def nart(session: pytest.TempPathFactory) -> Path:
    """The folder of a nart without a teacher, of the teacher's vocabulary."""
    return _trained(session, "nart", model__kind="nart", training__epochs=8)


def student(session: pytest.TempPathFactory) -> Path:
    """The folder of a nart-crf that began as the nart and learned from the teacher."""
    own = {"model": str(teacher(session)), "beam": 2}
    return _trained(session, "student", start=str(nart(session)), teacher=own)


def _trained(session: pytest.TempPathFactory, name: str, **changes: Any) -> Path:
    """Train into a folder once a session; it is to be left as it is."""
    folder = session.getbasetemp() / "translators" / name
    if not folder.exists():
        config = recipe(folder, **changes)
        run(config, context(config))
    return folder
