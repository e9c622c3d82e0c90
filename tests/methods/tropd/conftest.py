"""Tiny language models, made once a session; to be left as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petkit.methods.tropd.config import DistillConfig
from tests.methods.tropd import tiny


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`models(3, rows=20)` gives the folder of a random model, made once."""
    root, made = tmp_path_factory.mktemp("models"), dict[str, str]()

    def make(seed: int, **shape: Any) -> str:
        key = f"{seed} {shape}"
        if key not in made:
            made[key] = tiny.save_model(root / str(len(made)), seed, **shape)
        return made[key]

    return make


@pytest.fixture
def recipe(tmp_path: Path, models: Callable[..., str]) -> Callable[..., DistillConfig]:
    """`recipe(objective__kind="gkd")` gives a recipe of four steps whose folder is a fresh one."""
    questions = tiny.write_questions(tmp_path / "questions.jsonl")

    def make(**changes: Any) -> DistillConfig:
        output = changes.pop("output", tmp_path / "run")
        student = changes.pop("student", None) or models(0)
        teacher = changes.pop("from_teacher", None) or models(1)
        return DistillConfig(**tiny.content(output, student, teacher, questions, **changes))

    return make
