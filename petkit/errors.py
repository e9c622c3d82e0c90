"""Every error that petkit raises on purpose.

    PetkitError                exit 1   the run failed
    ├── ConfigError            exit 2   a key or value of a recipe or flag (also ValueError)
    ├── InputError             exit 2   a path, shape or data set that cannot be used (also ValueError)
    │   └── ArtifactError      exit 2   an artifact that is damaged or that petkit did not write
    ├── GateError              exit 3   the work ran, but a check of its result failed (also RuntimeError)
    ├── MissingError           exit 4   a dependency, device or backend is not here (also ImportError)
    ├── SafetyError            exit 5   refused: pickle, path traversal, remote code (also PermissionError)
    └── OfflineError           exit 6   offline and not in the cache (also FileNotFoundError)

The command line turns a PetkitError into one line and its exit code; anything else keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class PetkitError(Exception):
    """Base of petkit's errors. One line: what was expected, what came, which field, what to do."""

    exit_code: ClassVar[int] = 1
    passing: ClassVar[bool] = False
    """Whether the same may succeed later, so that a run saves a checkpoint before it ends."""


class ConfigError(PetkitError, ValueError):
    """A recipe or flag holds an unknown, duplicate, ineffective or invalid key."""

    exit_code = 2


class InputError(PetkitError, ValueError):
    """A path, file, shape or data set cannot be used."""

    exit_code = 2


class ArtifactError(InputError):
    """An artifact is truncated, altered, of a later schema version, or not an artifact."""


class GateError(PetkitError, RuntimeError):
    """The work ran to its end, but a check of its result failed."""

    exit_code = 3


class MissingError(PetkitError, ImportError):
    """An optional dependency, an asked-for device or a compiled backend is missing."""

    exit_code = 4


class SafetyError(PetkitError, PermissionError):
    """Refused for safety: a pickle, a path that leaves its folder, remote code."""

    exit_code = 5


class OfflineError(PetkitError, FileNotFoundError):
    """Offline, and a needed file is not in the local cache."""

    exit_code = 6


@contextmanager
def under_key(inner: str, outer: str) -> Iterator[None]:
    """Let errors name the key that the reader has set.

    Args:
        inner: key that errors of what is called name.
        outer: key in the recipe at hand.
    """
    try:
        yield
    except PetkitError as error:
        text = str(error).replace(inner, outer)
        if text == str(error):
            raise
        raise type(error)(text) from error
