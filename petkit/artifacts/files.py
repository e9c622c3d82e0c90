"""Writing files and folders so that a final name never holds half of one: temporary name, fsync, rename."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from petkit.errors import InputError


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that its name holds either the old content or all of the new one.

    Args:
        path: final name; its folder exists.
        data: content.

    Raises:
        InputError: it cannot be written (a full disk, say); then nothing has changed under the final name.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    with _named_errors(path):
        try:
            _write_synced(temporary, data)
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write a JSON file at once: two spaces, a line feed at the end.

    Args:
        path: final name; its folder exists.
        content: plain values; NaN and infinity are refused with ValueError, since they are no JSON.

    Raises:
        InputError: it cannot be written; then nothing has changed under the final name.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(path, text.encode("utf-8"))


def write_folder(path: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
    """Write a whole folder under a temporary name and rename it, replacing what has that name.

    Args:
        path: final name; folders above it are made.
        files: content by relative path.

    Raises:
        InputError: it cannot be written; then nothing has changed under the final name.
    """
    path = Path(os.path.abspath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    with _named_errors(path):
        try:
            temporary.mkdir(parents=True)
            for name, content in files.items():
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                _write_synced(target, content)
            for made in {temporary, *((temporary / name).parent for name in files)}:
                _sync_folder(made)
            _put_in_place(temporary, path)
            _sync_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    # A folder that is not empty cannot be renamed over: the old one steps aside, and comes back on failure.
    aside = temporary.with_suffix(".replaced")
    path.rename(aside)
    try:
        temporary.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside)


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; nothing was left under that name"
        ) from error
