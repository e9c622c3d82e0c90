"""The directory of one run: refused when it is in use or not empty, locked while the run lasts."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from petkit.errors import InputError

LOCK = ".petkit.lock"
# A folder that holds one of these was written by petkit, so `--overwrite` may empty it.
MARKERS = (LOCK, "petkit.json", "result.json", "metrics.jsonl")

# POSIX record locks belong to the process: a second one from the same process would succeed, and closing it
# would drop the first. So a process remembers what it holds. (flock would not do: forked loader workers keep
# it when the run itself is killed.)
_held: set[Path] = set()


@dataclass(frozen=True)
class RunDirectory:
    """An open run's directory.

    Args:
        path: the directory; it exists, and no other run writes into it.
        resumed: it already held files and the run continues them.
    """

    path: Path
    resumed: bool


@contextmanager
def open_run(
    folder: str | os.PathLike[str], overwrite: bool = False, resume: bool = False
) -> Iterator[RunDirectory]:
    """Take a directory for one run, make it when it is missing, and release it at the end.

    Args:
        folder: the run's output.
        overwrite: empty it first, if petkit wrote what is in it.
        resume: keep what is in it and go on from there.

    Yields:
        The directory, locked. A lock left behind by a process that died is taken over.

    Raises:
        InputError: another run holds the directory; a run has begun in it and neither flag is given; both
            flags are given; or `overwrite` would delete files that petkit did not write.
    """
    path = Path(folder)
    if overwrite and resume:
        raise InputError("--overwrite and --resume exclude each other: one deletes what the other continues")
    refuse_long_names(path)
    _make(path)
    refuse_locked(path)
    _refuse_filled(path, overwrite, resume)
    descriptor = _lock(path)
    known = path.resolve()
    _held.add(known)
    try:
        if overwrite:
            _empty(path)
        # Another run may have come and gone between the first look and the lock.
        _refuse_filled(path, overwrite, resume)
        yield RunDirectory(path, resumed=not is_unstarted(path))
    finally:
        _held.discard(known)
        with suppress(FileNotFoundError):
            (path / LOCK).unlink()
        os.close(descriptor)


def refuse_locked(folder: Path) -> None:
    """Refuse a folder that a running process has open as its run directory."""
    if folder.resolve() in _held:
        raise InputError(f"output folder {folder} is in use by another run of this process")
    if (folder / LOCK).exists():
        os.close(_lock(folder))


def refuse_long_names(folder: Path) -> None:
    """Refuse an output with a name that its filesystem cannot hold, before anything looks for it there."""
    existing = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    limit = os.pathconf(existing, "PC_NAME_MAX")
    for part in folder.parts:
        size = len(os.fsencode(part))
        if size > limit:
            raise InputError(
                f"output {part[:40]}... must have a name of at most {limit} bytes, got {size}: "
                "choose a shorter one"
            )


def refuse_unwritable(folder: Path) -> None:
    """Refuse a folder that cannot be made, or is there and cannot be written to; nothing is left behind."""
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if existing == folder:
        # Without a trace, since another process of the same run may be looking whether the folder is empty.
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"cannot write to output folder {folder}: choose another")
        return
    try:
        # Only the attempt tells: root may write anywhere, and yet nobody can in /proc.
        os.rmdir(tempfile.mkdtemp(prefix=".petkit-", dir=existing))
    except OSError as error:
        raise _not_made(folder, error) from error


def refuse_foreign(folder: Path) -> None:
    """Refuse to delete a folder that petkit did not write."""
    if not any((folder / name).exists() for name in MARKERS):
        raise InputError(
            f"--overwrite deletes only what petkit wrote, and {folder} holds none of {', '.join(MARKERS)}"
        )


def is_unstarted(folder: Path) -> bool:
    """Whether a folder holds nothing that a run has worked out: it is empty, or a run died at once.

    Args:
        folder: it exists.

    Returns:
        True when there is nothing but a lock, half-written files, `config.yaml` and an empty `metrics.jsonl`.
    """
    return all(_is_trace(entry) for entry in folder.iterdir())


def is_without_checkpoint(folder: Path) -> bool:
    """Whether a folder is that of a run that died before its first checkpoint: it can only begin again.

    Args:
        folder: it may be missing.

    Returns:
        True when there is nothing beyond what `is_unstarted` allows but the records of the first steps.
    """
    records = ("metrics.jsonl", "tensorboard")
    return folder.is_dir() and all(entry.name in records or _is_trace(entry) for entry in folder.iterdir())


def _is_trace(entry: Path) -> bool:
    if entry.name == "metrics.jsonl":
        return entry.is_file() and entry.stat().st_size == 0
    half_written = entry.name.startswith(".") and entry.name.endswith(".partial")
    return half_written or entry.name in (LOCK, "config.yaml")


def _refuse_filled(path: Path, overwrite: bool, resume: bool) -> None:
    if is_unstarted(path) or resume:
        return
    if not overwrite:
        raise InputError(f"output folder {path} is not empty: choose another, --resume or --overwrite")
    refuse_foreign(path)


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_made(path, error) from error


def _not_made(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot make output folder {path}: {error.strerror or error}")


def _lock(path: Path) -> int:
    """Return the descriptor of the lock file, locked and holding the owner's name."""
    while True:
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise InputError(
                f"output folder {path} is in use by another run ({owner or 'just starting'})"
            ) from None
        # The last owner may have removed the file between our open and our lock: that locks a nameless file.
        with suppress(FileNotFoundError):
            if os.stat(path / LOCK).st_ino == os.fstat(descriptor).st_ino:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                return descriptor
        os.close(descriptor)


def _empty(path: Path) -> None:
    for entry in path.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
