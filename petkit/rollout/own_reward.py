"""Rewards by a function of the user's own, which may raise, hang or answer nonsense: in a child process."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from petkit.data.questions import Question
from petkit.errors import ConfigError, InputError, PetkitError
from petkit.rollout.verifiers import score

CHILD = Path(__file__).with_name("reward_child.py")
# Importing torch and more may take a while.
START_SECONDS = 120.0
SHOWN = 80


class Judge(Protocol):
    """Rewards of responses to questions; None where nothing is known of a question's answer."""

    def __call__(
        self, questions: Sequence[Question], texts: Sequence[str], source: str = ""
    ) -> list[float | None]:
        """Judge the responses; `source` says in messages where the questions are from."""


def by_answers(questions: Sequence[Question], texts: Sequence[str], source: str = "") -> list[float | None]:
    """Judge responses by the questions' own answers.

    Args:
        questions: one for each text.
        texts: responses.
        source: where the questions are from; nothing is said of it.

    Returns:
        1.0 or 0.0, see `petkit.rollout.verifiers.score`; None for a question without an answer.
    """
    pairs = zip(questions, texts, strict=True)
    return [None if question.answer is None else score(question, text) for question, text in pairs]


class OwnReward:
    """A function of a Python file, in a child process with limits: that protects from accidents alone.

    The process has its own folder, group and environment, without any tokens; it is not a security boundary.
    It starts when it is first needed, and ends with this object.

    Args:
        function: `FILE.py:NAME`. It is called with question, choices, answer, dataset and response by name,
            and returns a number from 0 to 1.
        timeout: seconds that a call may take; the import may take START_SECONDS.

    Attributes:
        sha256: of the file; what it imports is not part of it.

    Raises:
        ConfigError: `function` is not of that form.
        InputError: there is no such file.
    """

    def __init__(self, function: str, timeout: float) -> None:
        file, colon, name = function.rpartition(":")
        if not colon or not file.endswith(".py") or not name.isidentifier():
            raise ConfigError(f"reward.function must be FILE.py:NAME, got {function!r}")
        self.function, self.timeout = function, timeout
        self._path, self._name = Path(file).absolute(), name
        if not self._path.is_file():
            raise InputError(f"reward.function {function}: there is no file {file}")
        self._child: _Child | None = None
        # Once, since the process goes on with what it has read, whatever becomes of the file.
        self.sha256 = hashlib.sha256(self._path.read_bytes()).hexdigest()

    def check(self) -> None:
        """Start the process.

        Raises:
            InputError: the file cannot be imported, or has no such function.
        """
        if self._child is not None:
            return
        child = _Child([str(self._path), self._name])
        try:
            answer = child.ask(None, START_SECONDS)
        except TimeoutError:
            raise InputError(
                f"reward.function {self.function}: importing it took more than {START_SECONDS:g} s, the "
                "bound whatever reward.timeout is"
            ) from None
        if "error" in answer:
            child.close()
            why = answer.get("ended") or answer["error"]
            raise InputError(f"reward.function {self.function} cannot be used: {printable(why)}")
        self._child = child

    def __call__(
        self, questions: Sequence[Question], texts: Sequence[str], source: str = ""
    ) -> list[float | None]:
        """Judge responses.

        Args:
            questions: one for each text.
            texts: responses.
            source: where the questions are from, for messages.

        Returns:
            Numbers from 0 to 1.

        Raises:
            InputError: as `check`.
            PetkitError: the function raised, took too long, ended its process, or returned no such number;
                the message names the question and shows the response.
        """
        pairs = zip(questions, texts, strict=True)
        return [self._one(question, text, source) for question, text in pairs]

    def _one(self, question: Question, text: str, source: str) -> float:
        self.check()
        assert self._child is not None
        asked = {
            "question": question.text,
            "choices": list(question.choices),
            "answer": question.answer,
            "dataset": question.dataset,
            "response": text,
        }
        of = f" of {source}" if source else ""
        where = f"for the response {text[:SHOWN]!r} to {printable(question.name)}{of}"
        try:
            answer = self._child.ask(asked, self.timeout)
        except TimeoutError:
            # The process is gone with its call; another one begins with the next call.
            self._child = None
            raise PetkitError(
                f"reward.function {self.function} took more than {self.timeout:g} s (reward.timeout) {where}"
            ) from None
        if "ended" in answer:
            self._child = None
            raise PetkitError(
                f"reward.function {self.function} ended its process ({answer['ended']}) {where}"
            )
        if "error" in answer:
            raise PetkitError(f"reward.function {self.function} raised {printable(answer['error'])} {where}")
        value = answer["value"]
        # Whatever is nan is not between anything.
        if not isinstance(value, float) or not 0 <= value <= 1:
            raise PetkitError(
                f"reward.function {self.function} must return a number from 0 to 1, got "
                f"{printable(str(value))} {where}"
            )
        return value


def printable(text: str) -> str:
    """Escape what a terminal would obey, line ends too."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class _Child:
    """The process: lines of JSON go in and out."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="petkit-reward-", ignore_cleanup_errors=True)
        home = self._folder.name
        own = {"PATH": os.defpath, "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8"}
        process = subprocess.Popen(
            [sys.executable, "-I", str(CHILD), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=home,
            env=own,
            start_new_session=True,
        )
        self._process, self._rest = process, b""
        self.close = weakref.finalize(self, _end, process, self._folder)

    def ask(self, content: Any, seconds: float) -> dict[str, Any]:
        """Send a line, unless there is nothing to say, and read one.

        Raises:
            TimeoutError: none came in time; the process is ended.
        """
        assert self._process.stdin is not None
        if content is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(content).encode() + b"\n")
                self._process.stdin.flush()
        line = self._line(time.monotonic() + seconds)
        if line is not None:
            found: dict[str, Any] = json.loads(line)
            return found
        code = self._process.wait()
        self.close()
        return {"ended": f"signal {-code}" if code < 0 else f"exit code {code}", "error": "it ended"}

    def _line(self, deadline: float) -> bytes | None:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                raise TimeoutError
            part = os.read(pipe, 1 << 16)
            if not part:
                return None
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def _end(process: subprocess.Popen[bytes], folder: tempfile.TemporaryDirectory[str]) -> None:
    """End the process with all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
    folder.cleanup()
