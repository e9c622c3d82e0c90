"""Tiny translators, trained once a session; to be left as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from petkit.data.subwords import Subwords, train_subwords
from petkit.methods.nart_crf.config import TranslatorConfig
from petkit.methods.nart_crf.inputs import PairDataset
from petkit.methods.nart_crf.splits import load_splits
from petkit.methods.nart_crf.stored import Stored, load_translator
from tests.methods.nart_crf import tiny


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., TranslatorConfig]:
    """`recipe(model__kind="nart")` gives a recipe of a few steps whose folder is a fresh one."""

    def make(**changes: Any) -> TranslatorConfig:
        return tiny.recipe(changes.pop("output", tmp_path / "run"), **changes)

    return make


@pytest.fixture(scope="session")
def subwords() -> Subwords:
    """Subwords of the tiny recipes' training sentences."""
    pairs = load_splits(tiny.recipe()).train
    return train_subwords((text for pair in pairs for text in (pair.source, pair.target)), tiny.SIZE)


@pytest.fixture(scope="session")
def batch(subwords: Subwords) -> dict[str, torch.Tensor]:
    """Four sentence pairs of different lengths."""
    data = PairDataset(load_splits(tiny.recipe()).test[:4], subwords)
    return data.collate(data.items)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an autoregressive translator."""
    return tiny.teacher(tmp_path_factory)


@pytest.fixture(scope="session")
def nart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a nart without a teacher, of the teacher's vocabulary."""
    return tiny.nart(tmp_path_factory)


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a nart-crf that began as the nart and learned from the teacher."""
    return tiny.student(tmp_path_factory)


@pytest.fixture(scope="session")
def loaded(teacher: Path, nart: Path, student: Path) -> dict[str, Stored]:
    """All three, read back."""
    folders = {"teacher": teacher, "nart": nart, "student": student}
    return {name: load_translator(folder) for name, folder in folders.items()}
