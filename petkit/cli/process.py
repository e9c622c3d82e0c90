"""Manners of the process: closed pipes, odd encodings, SIGTERM, launchers with many ranks."""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType
from typing import TextIO

SIGTERM_EXIT_CODE = 143


def is_main_process() -> bool:
    """Whether this process may print: the only one, or rank 0 under torchrun and `accelerate launch`."""
    return os.environ.get("RANK", "0") == "0"


def adopt_manners() -> None:
    """Make stdout and stderr survive a closed pipe and any encoding, and SIGTERM unwind the stack."""
    sys.stdout = _patient(sys.stdout)
    sys.stderr = _patient(sys.stderr)
    signal.signal(signal.SIGTERM, _terminate)


class _PatientStream(io.TextIOWrapper):
    """A stream whose reader may leave: the rest is thrown away, and the exit code stays that of the work."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            self._silence()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._silence()

    def _silence(self) -> None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())
        os.close(nothing)


def _patient(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    encoding = stream.encoding
    # A log must not wait in a buffer: stderr off a terminal writes through, and so must what replaces it.
    lines = stream.line_buffering or stream.write_through
    return _PatientStream(stream.detach(), encoding=encoding, errors="replace", line_buffering=lines)


def _terminate(number: int, frame: FrameType | None) -> None:
    # As an exception, so that locks are released and half-written folders removed on the way out.
    raise SystemExit(SIGTERM_EXIT_CODE)
