"""Run a command line in this process."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from petkit.cli.main import run


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
