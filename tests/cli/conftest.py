"""Run a command line in this process."""

import errno
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from petkit.cli.main import run
from tests.methods.nart_crf import tiny
from tests.serving.text_models import save_llama


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def petkit(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Result]]:
    """`petkit("recipes", "ls")` gives the exit code and what was printed."""
    logger = logging.getLogger("petkit")
    before = logger.level, list(logger.handlers)

    def call(*arguments: Any) -> Result:
        code = run([str(one) for one in arguments])
        return Result(code, *capsys.readouterr())

    yield call
    logger.setLevel(before[0])
    logger.handlers[:] = before[1]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny language model; to be left as it is."""
    return Path(save_llama(tmp_path_factory.mktemp("llama") / "model"))


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an autoregressive translator; to be left as it is."""
    return tiny.teacher(tmp_path_factory)


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a nart-crf of the teacher's vocabulary; to be left as it is."""
    return tiny.student(tmp_path_factory)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Three questions with answers, as JSONL."""
    path = tmp_path / "questions.jsonl"
    rows = [{"question": text, "answer": "yes"} for text in ("the cat", "dog ran", "on the mat")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`full_disk("checks.json")` fills the disk in the moment when a file of this name is written."""
    from petkit.artifacts import files

    write = files._write_synced

    def fill(name: str) -> None:
        def fail(path: Path, data: bytes) -> None:
            if name in path.name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(path, data)

        monkeypatch.setattr(files, "_write_synced", fail)

    return fill
