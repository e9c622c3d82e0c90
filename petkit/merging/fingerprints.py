"""SHA-256 of the models' files, taken in a thread beside imports and merging. Torch-free."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from petkit.artifacts.paths import open_inside
from petkit.errors import ArtifactError
from petkit.merging.shards import located

# Read in long pieces: after each one the thread waits for the interpreter's lock.
BLOCK = 1 << 25
# Bytes that may be hashed before the merging comes to them: they are still in the page cache then.
LEAD = 4_000_000_000


class _Hashed(NamedTuple):
    name: str
    file: FileIO
    size: int
    digest: Any


class Fingerprints:
    """Hashes of files that are read at one pace, as merging reads them too.

    Args:
        folders: of models, each by the name that it is recorded by.

    Raises:
        PetkitError: a model cannot be read.
    """

    def __init__(self, folders: Mapping[str, Path], stack: ExitStack) -> None:
        self._files: Sequence[_Hashed] = [
            _hashed(f"{name}/{file}", stack.enter_context(open_inside(folder, file)))
            for name, folder in folders.items()
            for file in dict.fromkeys(file for file, _ in located(folder).values())
        ]
        self._total = sum(one.size for one in self._files)
        self._merged = 0.0
        self._changed = threading.Condition()
        self._is_over = False
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="petkit-hash", daemon=True)
        self._thread.start()

    def merged(self, share: float) -> None:
        """Say how much of the merge is done, 0 to 1: the hashing stays a little ahead of it."""
        with self._changed:
            self._merged = share
            self._changed.notify()

    def result(self) -> dict[str, str]:
        """Wait for the hashes.

        Returns:
            Hexadecimal SHA-256 by `model/file`.

        Raises:
            ArtifactError: a file cannot be read, or became shorter.
        """
        self.merged(1.0)
        self._thread.join()
        if self._fault is not None:
            raise self._fault
        return {one.name: one.digest.hexdigest() for one in self._files}

    def close(self) -> None:
        """Stop."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._hash()
        except (OSError, ArtifactError) as error:
            self._fault = error if isinstance(error, ArtifactError) else ArtifactError(str(error))

    def _hash(self) -> None:
        buffer = memoryview(bytearray(BLOCK))
        done = 0
        # The least read first, by its share, so that all files end together.
        while rest := [one for one in self._files if one.file.tell() < one.size]:
            one = min(rest, key=lambda file: file.file.tell() / file.size)
            if not self._may_read(done):
                return
            count = one.file.readinto(buffer)
            if not count:
                raise ArtifactError(f"{one.name} became shorter while it was read")
            one.digest.update(buffer[:count])
            done += count

    def _may_read(self, done: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or done <= self._merged * self._total + LEAD)
            return not self._is_over


@contextmanager
def fingerprints(folders: Mapping[str, Path]) -> Iterator[Fingerprints]:
    """Begin to hash the files of models.

    Args:
        folders: of models by the names that they are recorded by.

    Yields:
        What gives the hashes; it is stopped when the context ends.

    Raises:
        PetkitError: a model cannot be read.
    """
    with ExitStack() as stack:
        begun = Fingerprints(folders, stack)
        stack.callback(begun.close)
        yield begun


def _hashed(name: str, file: FileIO) -> _Hashed:
    return _Hashed(name, file, os.fstat(file.fileno()).st_size, hashlib.sha256())
