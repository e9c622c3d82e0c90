"""A sentence on the command line in the place of a file: what looks like a file's name is refused."""

from __future__ import annotations

import os
import re

from petkit.errors import ConfigError, InputError

STANDARD_INPUT = "-"
# One word with a slash, or with a file's ending: the dot of "Hello.", of "3.14" and of "e.g" begins none.
PATH_PATTERN = re.compile(r"\S*[/\\]\S*|\S*[^\s.]\.[A-Za-z][A-Za-z0-9]{1,7}")


def words_of(text: str, kinds: str) -> str:
    """The words of an INPUT that is a sentence, one space between them.

    Args:
        text: of the command line, and no file.
        kinds: the files that the command reads, for messages.

    Returns:
        The sentence.

    Raises:
        ConfigError: it is blank, or the `-` that elsewhere means the standard input.
        InputError: it is a folder or a device, or one word that looks like the name of a missing file.
    """
    found = " ".join(re.findall(r"[^ \t\r\n]+", text))
    if not found.strip():
        raise ConfigError("an INPUT must hold at least one word, got blanks")
    if found == STANDARD_INPUT:
        raise ConfigError(f"an INPUT must be a file or a sentence, got -: name a file, {kinds}")
    # Unlike a Path's own methods, these also take a sentence that is too long to be a file's name.
    if os.path.exists(text):
        kind = "folder" if os.path.isdir(text) else "pipe or device"
        raise InputError(f"{text} is a {kind}: expected a file, {kinds}, or a sentence")
    if PATH_PATTERN.fullmatch(found):
        raise InputError(
            f"{text} does not exist: expected a file, {kinds}; if it is a sentence of one word, put it on a "
            "line of a .txt file"
        )
    return found
