"""Writing files and folders so that a final name never holds half of one: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from petkit.errors import InputError, PetkitError

log = logging.getLogger(__name__)

# In a temporary folder, held by the process that makes it.
LOCK = "lock"

# What the user can mend by naming another place; any other failure, such as a full disk, is the run's.
_WRONG_PLACE = (
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that its name holds either the old content or all of the new one.

    Args:
        path: final name; its folder exists.
        data: content.

    Raises:
        InputError: the place cannot be written to.
        PetkitError: it cannot be written (a full disk, say); then nothing has changed under the final name.
    """
    atomic_write_all({Path(path): data})


def atomic_write_all(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: none gets its name before the content of all is on the disk.

    Args:
        files: content by final name; their folders exist.

    Raises:
        InputError: the place cannot be written to.
        PetkitError: one cannot be written; then nothing has changed under any of the names.
    """
    temporary = {path: _temporary(path) for path in files}
    try:
        for path, data in files.items():
            with _named_errors(path):
                _write_synced(temporary[path], data)
        for path in files:
            with _named_errors(path):
                temporary[path].replace(path)
                _sync_folder(path.parent)
    finally:
        for left in temporary.values():
            with suppress(OSError):
                left.unlink()


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write a JSON file at once: two spaces, a line feed at the end.

    Args:
        path: final name; its folder exists.
        content: plain values; NaN and infinity are refused with ValueError, since they are no JSON.

    Raises:
        InputError: the place cannot be written to.
        PetkitError: it cannot be written; then nothing has changed under the final name.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(path, text.encode("utf-8"))


def write_folder(path: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
    """Write a whole folder under a temporary name and rename it, replacing what has that name.

    Args:
        path: final name; folders above it are made.
        files: content by relative path.

    Raises:
        InputError: the place cannot be written to.
        PetkitError: it cannot be written; then nothing has changed under the final name.
    """
    with staged_folder(path) as stage, _named_errors(stage):
        stage.mkdir()
        for name, content in files.items():
            target = stage / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_synced(target, content)
        for made in {stage, *((stage / name).parent for name in files)}:
            _sync_folder(made)


@contextmanager
def staged_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Let a folder be made in several steps, and give it its name after the last one.

    Args:
        path: final name; folders above it are made.

    Yields:
        Where the folder is to be made meanwhile: nothing is there yet, and its last part is the final one.
        Errors that name this place name the final one on their way out.

    Raises:
        InputError: the place cannot be written to, or another process is about to.
        PetkitError: it cannot be written; then nothing has changed under the final name, nothing is left
            behind, and the same holds when the body fails.
    """
    final = Path(os.path.abspath(path))
    missing = [parent for parent in final.parents if not parent.exists()]
    temporary = _temporary(final)
    stage = temporary / final.name
    try:
        with _named_errors(Path(path)):
            _refuse_or_remove_others(final)
            temporary.mkdir(parents=True)
        with _locked(temporary), renamed_errors(stage, Path(path)):
            yield stage
        with _named_errors(Path(path)):
            _put_in_place(stage, final)
            _sync_folder(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in missing:
            # One that somebody else has put something into stays.
            with suppress(OSError):
                parent.rmdir()
        raise
    shutil.rmtree(temporary, ignore_errors=True)


def move_into(source: Path, target: Path, last: str) -> None:
    """Rename every file of a folder into another one on the same filesystem, over what is there.

    Args:
        source: the folder, emptied of files.
        target: the folder that gets them; its other files stay.
        last: the file that tells that all are there; an old one goes first, the new one comes last.

    Raises:
        PetkitError: a file cannot be renamed; `last` is then not there.
    """
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    with _named_errors(target):
        with suppress(FileNotFoundError):
            (target / last).unlink()
        for name in sorted(files, key=lambda name: name == Path(last)):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).replace(target / name)
        _sync_folder(target)


@contextmanager
def renamed_errors(stage: Path, final: Path) -> Iterator[None]:
    """Make errors inside name the final place instead of the temporary one."""
    try:
        yield
    except PetkitError as error:
        if str(stage) not in str(error):
            raise
        raise type(error)(str(error).replace(str(stage), str(final))) from error


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_beginning(path)}{secrets.token_hex(6)}.partial")


def _beginning(path: Path) -> str:
    # A long name must stay within the filesystem's limit.
    return f".{path.name[:40]}."


def _refuse_or_remove_others(final: Path) -> None:
    """Refuse a place that another process is making a folder for; remove what a killed one left there."""
    others = final.parent.glob(f"{glob.escape(_beginning(final))}*.partial")
    for other in sorted(path for path in others if (path / LOCK).is_file()):
        with (other / LOCK).open("r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"{final} is being written by another process") from None
            shutil.rmtree(other, ignore_errors=True)
        log.info("removed %s, which a killed process left", other)


@contextmanager
def _locked(temporary: Path) -> Iterator[None]:
    """Show that a process is at work on a temporary folder, for as long as it lives."""
    with (temporary / LOCK).open("w+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _put_in_place(stage: Path, path: Path) -> None:
    if not path.exists():
        stage.rename(path)
        return
    # A folder that is not empty cannot be renamed over: the old one steps aside, and comes back on failure.
    aside = _temporary(path)
    path.rename(aside)
    try:
        stage.rename(path)
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
        raise write_error(path, error, "; nothing was left under that name") from error


def write_error(path: Path, error: OSError, more: str = "") -> PetkitError:
    """What to raise when something cannot be written: another place helps against some causes only.

    Args:
        path: what was written.
        error: of the system.
        more: end of the message.

    Returns:
        The error: an InputError where the place is wrong, a PetkitError otherwise, such as on a full disk.
    """
    kind = InputError if error.errno in _WRONG_PLACE else PetkitError
    return kind(f"cannot write {path}: {error.strerror or error}{more}")
