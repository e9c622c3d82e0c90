"""Recipes of models that train in a second, and a vocabulary small enough to try all sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from petkit.methods.nart_crf.config import TranslatorConfig
from petkit.methods.nart_crf.recipe import run
from petkit.training.context import RunContext

SHAPE = {"hidden": 16, "feed_forward": 32, "encoder_layers": 1, "decoder_layers": 1, "heads": 2}
SIZE = 320
SOURCES = (
    "the dog sees the cat.",
    "the old car begins.",
    "the small bridge hides the red lamp every day.",
    "the bird paints the boat today.",
    "the",
    "the heavy table cleans the house in the evening.",
)


class SevenTokens:
    """What a model wants to know of a vocabulary: three words beside the special tokens."""

    pad_id, bos_id, eos_id, unknown_id = range(4)

    def __len__(self) -> int:
        return 7


def content(output: Path | str, **changes: Any) -> dict[str, Any]:
    """A recipe of a few steps on 100 made-up phrases; `model__kind="nart"` changes one key."""
    found: dict[str, Any] = {
        "output": str(output),
        "model": {**SHAPE, "max_positions": 48},
        "vocabulary": {"size": SIZE},
        "data": {"format": "sample", "train_size": 100, "test_size": 10, "max_length": 47},
        "training": {"epochs": 1, "batch_size": 20, "warmup_epochs": 0, "learning_rate": 1e-2},
    }
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


def trained(folder: Path, **changes: Any) -> Path:
    """Train into a folder, which is to be left as it is."""
    config = recipe(folder, **changes)
    run(config, context(config))
    return folder
