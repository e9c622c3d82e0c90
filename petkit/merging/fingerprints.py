"""SHA-256 of the models' files, taken by a process beside imports and merging. Torch-free."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path

from petkit.artifacts.paths import open_inside
from petkit.errors import ArtifactError
from petkit.merging.shards import located

CHILD = Path(__file__).with_name("hashing_child.py")
# Bytes that may be hashed before the merging comes to them: they are still in the page cache then.
LEAD = 4_000_000_000
# The least progress that is told.
STEP = 0.01


class Fingerprints:
    """Hashes of files that are read at one pace, as merging reads them too.

    Args:
        files: open, by the name that each is recorded by.
        lead: bytes that the hashing may be ahead.
    """

    def __init__(self, files: Mapping[str, FileIO], lead: int) -> None:
        self._names = list(files)
        descriptors = [file.fileno() for file in files.values()]
        pairs = [str(number) for one in descriptors for number in (one, os.fstat(one).st_size)]
        # -I and -S: nothing but the standard library is looked for.
        command = [sys.executable, "-I", "-S", str(CHILD), str(lead), *pairs]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=descriptors, text=True
        )
        self._told = 0.0
        self._found: dict[str, str] = {}

    def merged(self, share: float) -> None:
        """Say how much of the merge is done, 0 to 1: the hashing stays a little ahead of it."""
        if share < 1.0 and share - self._told < STEP:
            return
        self._told = share
        assert self._child.stdin is not None
        # Gone when it has hashed all.
        with suppress(BrokenPipeError):
            self._child.stdin.write(f"{share}\n")
            self._child.stdin.flush()

    def result(self) -> dict[str, str]:
        """Wait for the hashes.

        Returns:
            Hexadecimal SHA-256 by `model/file`.

        Raises:
            ArtifactError: a file cannot be read, or became shorter.
        """
        if self._found:
            return self._found
        self.merged(1.0)
        assert self._child.stdout is not None
        found = json.loads(self._child.stdout.read() or "[]") or [None] * len(self._names)
        for name, digest in zip(self._names, found, strict=True):
            if digest is None:
                raise ArtifactError(f"{name} became shorter while it was read, or cannot be read")
        self._found = dict(zip(self._names, found, strict=True))
        return self._found

    def close(self) -> None:
        """Stop."""
        self._child.kill()
        with suppress(BrokenPipeError):
            self._child.communicate()


@contextmanager
def fingerprints(folders: Mapping[str, Path], lead: int = LEAD) -> Iterator[Fingerprints]:
    """Begin to hash the files of models.

    Args:
        folders: of models by the names that they are recorded by.
        lead: bytes that the hashing may be ahead of the merging.

    Yields:
        What gives the hashes; it is stopped when the context ends.

    Raises:
        PetkitError: a model cannot be read.
    """
    with ExitStack() as stack:
        files = {
            f"{name}/{file}": stack.enter_context(open_inside(folder, file))
            for name, folder in folders.items()
            for file in dict.fromkeys(file for file, _ in located(folder).values())
        }
        begun = Fingerprints(files, lead)
        stack.callback(begun.close)
        yield begun
