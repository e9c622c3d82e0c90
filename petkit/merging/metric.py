"""The user's command that scores a merged model: no shell, a time limit, killed as a group. Torch-free."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petkit.configuration.messages import nearest
from petkit.errors import ConfigError, PetkitError

MODEL = "{model}"
# A name in single braces; double ones stand for themselves.
_PLACEHOLDER = re.compile(r"(?<!\{)\{(\w+)\}(?!\})")
_DOUBLED = re.compile(r"\{\{(\w+)\}\}")
_SHELL = frozenset({"|", "||", "&", "&&", ";", ">", ">>", "<", "<<", "2>", "2>&1", "2>/dev/null"})
# Of what a command writes, the end is looked at.
_TAIL = 1 << 20
_LINES = 5
_LONGEST = 400
# Between SIGTERM, which lets a command tidy up, and SIGKILL.
GRACE_SECONDS = 3.0


class MetricError(PetkitError):
    """The command failed, ran out of time, or printed no score."""


@dataclass(frozen=True)
class Metric:
    """A command that prints a score.

    Args:
        text: as it was given.
        words: the same, split as a shell would; `{model}` is not yet replaced.
        key: of the JSON object that it prints; None where it prints a number.
        seconds: that it may take; None for any time.
    """

    text: str
    words: tuple[str, ...]
    key: str | None = None
    seconds: float | None = None


def read_metric(text: str, key: str | None = None, seconds: float | None = None) -> Metric:
    """Check a command before any work.

    Args:
        text: the command line, with `{model}` where the merged folder's path goes.
        key: of the JSON object that it prints, `a.b` for a key inside another.
        seconds: that one run may take.

    Returns:
        The command.

    Raises:
        ConfigError: it cannot be split, has no `{model}` or an unknown placeholder, needs a shell, or its
            program is not found.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(
            f"--metric cannot be split into words: {str(error).lower()}, got {text!r}"
        ) from error
    if not words:
        raise ConfigError(f"--metric must be a command with {MODEL}, got nothing")
    found = [name for word in words for name in _PLACEHOLDER.findall(word)]
    for name in found:
        if name != "model":
            near = nearest(name, ("model",))
            hint = (
                f"did you mean {MODEL}?" if near else f"there is {MODEL}; {{{{{name}}}}} is {{{name}}} itself"
            )
            raise ConfigError(f"--metric has an unknown placeholder {{{name}}}; {hint}")
    if not found:
        raise ConfigError(f"--metric must hold {MODEL}, where the merged model's folder goes, got {text!r}")
    for word in words:
        if word in _SHELL:
            raise ConfigError(f"--metric is run without a shell, {word} has no meaning: use sh -c '...'")
    if shutil.which(words[0]) is None:
        what = "is not executable" if Path(words[0]).exists() else "is not found"
        raise ConfigError(f"--metric: the command {words[0]} {what}")
    return Metric(text, tuple(words), key, seconds)


def measure(metric: Metric, model: Path, scratch: Path) -> float:
    """Run the command on a model.

    Args:
        metric: the command.
        model: the merged folder.
        scratch: an existing folder for what the command prints.

    Returns:
        The score, a finite number.

    Raises:
        MetricError: it ended with another code than 0, ran out of time or printed no score; the last lines of
            its stderr are in the message.
    """
    words = [_replaced(word, str(model.resolve())) for word in metric.words]
    out, errors = scratch / "stdout", scratch / "stderr"
    with out.open("wb") as out_file, errors.open("wb") as errors_file:
        try:
            # Files, since a process that the command leaves behind would keep a pipe open.
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out_file,
                stderr=errors_file,
                start_new_session=True,
            )
        except OSError as error:
            raise MetricError(f"cannot run {words[0]}: {error.strerror}") from error
        try:
            in_time = _ended(child.pid, metric.seconds)
        finally:
            _kill_group(child)
    if not in_time:
        raise MetricError(f"took longer than {metric.seconds:g} s and was stopped{_last_lines(errors)}")
    if child.returncode != 0:
        raise MetricError(f"{_ending(child.returncode)}{_last_lines(errors)}")
    return read_score(_tail(out), metric.key)


def read_score(text: str, key: str | None) -> float:
    """The score in what a command printed.

    Args:
        text: its stdout.
        key: of the JSON object in the last line, or over all lines; None where the last line is a number.

    Returns:
        A finite number.

    Raises:
        MetricError: there is none.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise MetricError("printed nothing, its last line must be the score")
    found = _number(lines[-1]) if key is None else _value(_object(lines[-1], text), key)
    if not math.isfinite(found):
        raise MetricError(f"the score must be finite, got {found:g}")
    return found


def _number(line: str) -> float:
    try:
        return float(line)
    except ValueError:
        is_object = isinstance(_parsed(line), Mapping)
        hint = ": name its key with --key" if is_object else ""
        raise MetricError(f"the last line must be a number, got {line[:80]!r}{hint}") from None


def _object(line: str, text: str) -> Mapping[str, Any]:
    for one in (line, text):
        content = _parsed(one)
        if isinstance(content, Mapping):
            return content
    raise MetricError(f"the last line must be a JSON object for --key, got {line[:80]!r}")


def _value(content: Mapping[str, Any], key: str) -> float:
    found: Any = content.get(key)
    if key not in content:
        found = content
        for part in key.split("."):
            if not isinstance(found, Mapping) or part not in found:
                near = nearest(key, content)
                hint = (
                    f"did you mean {near}?"
                    if near
                    else f"there are {', '.join(list(content)[:12]) or 'none'}"
                )
                raise MetricError(f"the JSON object has no {key}; {hint}")
            found = found[part]
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise MetricError(f"{key} must be a number, got {found!r:.80}")
    return float(found)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _replaced(word: str, model: str) -> str:
    # What comes in is not looked at again: a folder may have braces in its name.
    parts = _PLACEHOLDER.split(word)
    return model.join(_DOUBLED.sub(r"{\1}", part) for part in parts[::2])


def _ended(child: int, seconds: float | None) -> bool:
    """Wait for a child without collecting it, so that its number stays that of its group."""
    start = time.monotonic()
    pause = 0.001
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if seconds is not None and time.monotonic() - start > seconds:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return True


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """End whatever is left of the command: nothing may go on beside the next trial."""
    try:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGTERM)
        _ended(child.pid, GRACE_SECONDS)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _ending(code: int) -> str:
    if code > 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _last_lines(path: Path) -> str:
    lines = [line.rstrip() for line in _tail(path).splitlines() if line.strip()][-_LINES:]
    text = " | ".join(lines)
    return f": {text[-_LONGEST:]}" if text else ""


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        return file.read().decode("utf-8", "replace")
