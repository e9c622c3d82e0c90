"""SIGINT and SIGTERM: asked to stop, a run saves a checkpoint first."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from petkit.errors import PetkitError


class Interrupted(PetkitError):
    """SIGINT came; the checkpoint that the message names was saved."""

    exit_code = 130


class Terminated(PetkitError):
    """SIGTERM came; the checkpoint that the message names was saved."""

    exit_code = 143


class StopRequest:
    """Remembers the first SIGINT or SIGTERM; the second one of a kind acts as it would without petkit."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Python delivers signals to the main thread only, and refuses handlers elsewhere.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._previous[number])


def stop_error(number: int, where: str) -> PetkitError:
    """Make the error that ends a run which a signal stopped.

    Args:
        number: signal.SIGINT or signal.SIGTERM.
        where: the checkpoint that was saved.

    Returns:
        The error; its exit code is 128 + number.
    """
    kind = Terminated if number == signal.SIGTERM else Interrupted
    return kind(f"stopped by {signal.Signals(number).name} after saving {where}: go on with --resume")
