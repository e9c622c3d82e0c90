"""Files that a data set names: a pipe or a device is refused, since reading it could wait for ever."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from petkit.errors import InputError

URL_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")


def refuse_url(name: str, key: str) -> None:
    """Refuse an address in the place of a file's name.

    Args:
        name: What should be the name of a file.
        key: What names it, for the message.

    Raises:
        InputError: It is the address of something on a network, or holds the data itself.
    """
    # A path would lose one of the two slashes, and the message with it its sense.
    if URL_PATTERN.match(name):
        raise InputError(
            f"{key} {name:.200} is a URL, and URLs are not fetched: download it and name the file"
        )


def refuse_special(path: Path) -> None:
    """Refuse what is there and is no regular file; one that is missing is left to whoever opens it.

    Args:
        path: The file.

    Raises:
        InputError: A pipe, a device, a socket or a folder.
    """
    # Unlike a Path's own methods, these also take a name that no file can have, such as one too long.
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path} must be a regular file, got a folder, pipe or device")


def read_text(path: Path) -> str:
    """Read a whole file of UTF-8 text.

    Args:
        path: The file.

    Returns:
        Its text, without the byte order mark that some editors begin it with.

    Raises:
        InputError: It is missing, no regular file, or not UTF-8.
    """
    refuse_special(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: expected a file of UTF-8 text") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {error}") from error


def placed_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a file of UTF-8 text, without blank ones.

    Args:
        path: The file.

    Returns:
        Pairs of `path:line` and line. Separators such as U+2028 may stand inside a line.

    Raises:
        InputError: As `read_text`.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", line
