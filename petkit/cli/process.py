"""Manners of the process: closed pipes and streams, full disks, odd encodings, SIGTERM, many ranks."""

from __future__ import annotations

import atexit
import codecs
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, TextIO

from petkit.errors import PetkitError

SIGTERM_EXIT_CODE = 143
ENCODING_ERRORS = "petkit.plain"
# What tables, trees, bars and panels are drawn with, and the signs in petkit's own sentences.
PLAIN = {
    **dict.fromkeys("─━═╌╴╶╸╺", "-"),
    **dict.fromkeys("│┃║", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛┡┩╇", "+"),
    "±": "+/-",
    "…": "...",
}


def is_main_process() -> bool:
    """Whether this process may print: the only one, or rank 0 under torchrun and `accelerate launch`."""
    return os.environ.get("RANK", "0") == "0"


def adopt_manners() -> None:
    """Make stdout and stderr survive being closed and any encoding, and SIGTERM unwind the stack."""
    codecs.register_error(ENCODING_ERRORS, _plain)
    _open_closed_streams()
    sys.stdout = _patient(sys.stdout)
    sys.stderr = _patient(sys.stderr)
    signal.signal(signal.SIGTERM, _terminate)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import much at once: what is made meanwhile stays, so that looking for garbage in it is in vain."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def leave(code: int) -> NoReturn:
    """End the process once threads and exit handlers are through, without taking every module apart.

    That would cost a process with torch 0.3 s, and a quarter more memory than it had at its peak.
    """
    # As the interpreter does before it runs the handlers.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(PetkitError, OSError, ValueError):
            stream.flush()
    os._exit(code)


def let_threads_sleep() -> None:
    """Keep OpenMP's idle threads, once torch is imported, from spinning on cores that other threads need."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _open_closed_streams() -> None:
    """Put /dev/null in the place of streams that the shell closed: `petkit ... >&-`."""
    # In the order of their numbers: the lowest free one is given out, else to a later file.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for the process's life


class _PatientStream(io.TextIOWrapper):
    """A stream whose reader may leave: the rest is thrown away, and the exit code stays that of the work."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())
        os.close(nothing)
        # A result that is lost is a failure, a log that is lost is none.
        if self.name == "<stdout>" and not isinstance(error, BrokenPipeError):
            raise PetkitError(f"the result cannot be written to stdout: {error.strerror}") from error


def _patient(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    encoding = stream.encoding
    # A log must not wait in a buffer: stderr off a terminal writes through, and so must what replaces it.
    lines = stream.line_buffering or stream.write_through
    return _PatientStream(stream.detach(), encoding=encoding, errors=ENCODING_ERRORS, line_buffering=lines)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace signs that a stream's encoding lacks by ASCII that looks alike, or else by a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(sign, "?") for sign in lacking), error.end


def _terminate(number: int, frame: FrameType | None) -> None:
    # As an exception, so that locks are released and half-written folders removed on the way out.
    raise SystemExit(SIGTERM_EXIT_CODE)
