"""Where words go: results on stdout, logs and progress on stderr, one versioned JSON object with `--json`."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from petkit.cli.process import is_main_process

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

SCHEMA_VERSION = 1
SECONDS_PER_LINE = 10.0

Advance: TypeAlias = Callable[..., None]
"""`advance(count=1, note="")`: so many more are done; the note (a loss, say) is shown beside the bar."""

_LOGGER = logging.getLogger("petkit")


class _StderrHandler(logging.Handler):
    """Writes to the stderr of the moment, which tests and launchers replace."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record as one line."""
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        print(f"{prefix}{self.format(record)}", file=sys.stderr)


def configure_logging(quiet: bool = False, verbose: bool = False) -> None:
    """Show petkit's log on stderr: warnings only when quiet, everything when verbose; on rank 0 only."""
    if quiet or not sys.stderr.isatty():
        # Libraries' own bars, which would fill a log file; tqdm reads it when it is first imported.
        os.environ.setdefault("TQDM_DISABLE", "1")
    if not any(isinstance(handler, _StderrHandler) for handler in _LOGGER.handlers):
        _LOGGER.addHandler(_StderrHandler())
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    _LOGGER.setLevel(level if is_main_process() else logging.ERROR)


def is_verbose() -> bool:
    """Whether `-v` was given."""
    return _LOGGER.isEnabledFor(logging.DEBUG)


def log(message: str) -> None:
    """Say something to the person at the terminal, on stderr; silent with `--quiet`."""
    _LOGGER.info("%s", message)


def log_notes(notes: Iterable[str]) -> None:
    """Like `log`, for each of what a person may want to know and need not act on."""
    for note in notes:
        log(f"note: {note}")


def warn(message: str) -> None:
    """Like `log`, for what deserves attention; shown with `--quiet` too."""
    _LOGGER.warning("%s", message)


def print_error(message: str) -> None:
    """`error: ...` on stderr, one line per line of the message; other ranks than 0 say which they are."""
    rank = "" if is_main_process() else f"[rank {os.environ['RANK']}] "
    for line in message.splitlines() or [""]:
        print(f"{rank}error: {line}", file=sys.stderr)


def print_result(result: RenderableType, payload: Mapping[str, Any], as_json: bool) -> None:
    """Print a command's result on stdout.

    Args:
        result: text, or a rich table, for people.
        payload: the same for programs; `schema_version` is put in front, non-finite numbers become null.
        as_json: print the payload, as exactly one JSON object, instead of the result.
    """
    if not is_main_process():
        return
    if as_json:
        print(json.dumps({"schema_version": SCHEMA_VERSION, **_jsonable(payload)}, indent=2, allow_nan=False))
    elif isinstance(result, str):
        print(result)
    elif sys.stdout.isatty():
        _console(sys.stdout).print(result)
    else:
        print(_plain(result))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> Table:
    """A table in petkit's style; columns whose cells are all numbers are aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    built = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=any(columns))
    built.title, built.title_justify = title, "left"
    for position, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[position], int | float) for row in rows)
        built.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        built.add_row(*(Text(_cell(value)) for value in row))
    return built


def stacked(*parts: RenderableType) -> RenderableType:
    """Several results, one below the other."""
    from rich.console import Group

    return Group(*parts)


@contextmanager
def progress(label: str, total: int | None, unit: str = "steps", done: int = 0) -> Iterator[Advance]:
    """Show how far a loop is, with rate and time left: a bar on a terminal, else a line every ten seconds.

    Args:
        label: what is being done.
        total: number of units, or None when it is not known.
        unit: what is counted, in the plural.
        done: how many of the total an earlier process did; the rate leaves them out.

    Returns:
        A context manager that yields `advance(count=1, note="")`.
    """
    if not _LOGGER.isEnabledFor(logging.INFO):
        yield lambda count=1, note="": None
    elif sys.stderr.isatty():
        with _bar(label, total, unit, done) as advance:
            yield advance
    else:
        yield _Lines(label, total, unit, done)


class _Lines:
    """Progress as log lines, for files and CI."""

    def __init__(self, label: str, total: int | None, unit: str, done: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.before = self.done = done
        self.start = self.last = time.monotonic()
        self.ended = False

    def __call__(self, count: int = 1, note: str = "") -> None:
        """Count, and log a line when the last one is old enough."""
        self.done += count
        now = time.monotonic()
        ended = self.done == self.total
        # Who counts may tell of nothing more behind the end, which is said once.
        if self.ended or (not ended and now - self.last < SECONDS_PER_LINE):
            return
        self.last, self.ended = now, ended
        log(", ".join(part for part in (self._state(now), note) if part))

    def _state(self, now: float) -> str:
        text = f"{self.label} {self.done}" + (f"/{self.total}" if self.total else "")
        if self.done == self.before:
            return text
        rate = (self.done - self.before) / max(now - self.start, 1e-9)
        left = f", {duration((self.total - self.done) / rate)} left" if self.total and rate > 0 else ""
        return f"{text} ({_digits(rate, 3)} {self.unit}/s{left})"


@contextmanager
def _bar(label: str, total: int | None, unit: str, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{_digits(task.speed, 3)} {unit}/s" if task.speed else "")

    note_column = TextColumn("{task.fields[note]}", markup=False)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, note_column, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, completed=done, note="")

        def advance(count: int = 1, note: str = "") -> None:
            bar.update(task, advance=count, note=note)

        yield advance


def duration(seconds: float) -> str:
    """`45s`, `3m20s`, `2h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _console(file: IO[str], width: int | None = None) -> Any:
    from rich.console import Console

    return Console(file=file, width=width)


def _plain(result: RenderableType) -> str:
    """Draw for a pipe, which has no width: nothing is cut, and no line ends in blanks."""
    drawn = io.StringIO()
    _console(drawn, width=10_000).print(result)
    return "\n".join(line.rstrip() for line in drawn.getvalue().splitlines())


def _cell(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return _digits(value, 4)
    return "" if value is None else str(value)


def _digits(value: float, digits: int) -> str:
    from petkit.report.rounding import significant

    return significant(value, digits)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
