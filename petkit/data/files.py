"""Files that a data set names: a pipe or a device is refused, since reading it could wait for ever."""

from __future__ import annotations

from pathlib import Path

from petkit.errors import InputError


def refuse_special(path: Path) -> None:
    """Refuse what is there and is no regular file; one that is missing is left to whoever opens it.

    Args:
        path: The file.

    Raises:
        InputError: A pipe, a device, a socket or a folder.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} must be a regular file, got a folder, pipe or device")


def read_text(path: Path) -> str:
    """Read a whole file of UTF-8 text.

    Args:
        path: The file.

    Returns:
        Its text.

    Raises:
        InputError: It is missing, no regular file, or not UTF-8.
    """
    refuse_special(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {error}") from error
