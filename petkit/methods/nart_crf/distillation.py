"""Sequence-level distillation: the teacher's translations of the training sources, kept in a file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from petkit.data.parallel import SentencePair
from petkit.errors import InputError
from petkit.methods.nart_crf.decoding import Translator

log = logging.getLogger(__name__)

# Sentences between two writes: what a kill can cost.
CHUNK = 512


class DistilledFile:
    """Translations of one teacher, a JSON object a line behind a first line that says whose they are.

    Args:
        path: of the file, which need not be there yet.
        teacher_sha256: of the teacher's weights.
        beam: of its search.

    Raises:
        InputError: it cannot be read, holds another teacher's or beam's translations, or a line is none. An
            unfinished last line, which a killed run leaves, is cut off.
    """

    def __init__(self, path: Path, teacher_sha256: str, beam: int) -> None:
        self.path, self.head = path, {"teacher_sha256": teacher_sha256, "beam": beam}
        self.known: dict[str, str] = {}
        self._whole = self._size = 0
        if path.exists():
            self._read()

    def missing(self, sources: Sequence[str]) -> list[str]:
        """The sources that are not translated yet, each once, in their order."""
        return [source for source in dict.fromkeys(sources) if source not in self.known]

    def append(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """Keep translations, on the disk when this returns.

        Args:
            sources: sentences.
            targets: their translations.

        Raises:
            InputError: the file cannot be written, or another run has written it meanwhile.
        """
        rows: list[dict[str, Any]] = [
            {"source": source, "target": target} for source, target in zip(sources, targets, strict=True)
        ]
        head = [] if self._whole else [self.head]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (*head, *rows))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                self._check_alone(os.fstat(file.fileno()).st_size)
                file.truncate(self._whole)
                self._whole += file.write(text.encode())
                self._size = self._whole
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}") from error
        self.known.update(zip(sources, targets, strict=True))

    def _check_alone(self, size: int) -> None:
        if size != self._size:
            raise InputError(
                f"{self.path} has {size} bytes, this run left it with {self._size}: another run writes it "
                "too; wait for its end and start again"
            )

    def _read(self) -> None:
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from error
        self._whole, self._size = content.rfind(b"\n") + 1, len(content)
        for number, line in enumerate(content[: self._whole].splitlines(), start=1):
            row = _object(line)
            if number == 1:
                self._check_head(row)
            elif row is None or not all(isinstance(row.get(key), str) for key in ("source", "target")):
                raise InputError(
                    f"{self.path}:{number} must be a translation that petkit wrote: remove the line"
                )
            else:
                self.known[row["source"]] = row["target"]

    def _check_head(self, row: dict[str, Any] | None) -> None:
        if row is None or row.keys() != self.head.keys():
            raise InputError(
                f"{self.path} must hold a teacher's translations that petkit wrote: name another file with "
                "teacher.distilled"
            )
        for key, wanted in self.head.items():
            if row[key] != wanted:
                raise InputError(
                    f"{self.path} holds translations with {key} {row[key]}, not {wanted}: remove it, or name "
                    "another file with teacher.distilled"
                )


def distil(
    pairs: Sequence[SentencePair],
    teacher: Translator,
    file: DistilledFile,
    batch_size: int,
    advance: Callable[[int], None] | None = None,
) -> list[SentencePair]:
    """Put the teacher's translations in the place of the targets.

    Args:
        pairs: of the training split.
        teacher: translates what the file lacks.
        file: of its translations, to which new ones are added as they come.
        batch_size: sentences at once.
        advance: told how many more are translated.

    Returns:
        The pairs; one whose translation is empty keeps its own target.

    Raises:
        InputError: the file cannot be written.

    Source:
        Kim and Rush 2016, sequence-level knowledge distillation.
    """
    for chunk in _chunks(file.missing([pair.source for pair in pairs])):
        found = teacher.texts(teacher.translate(chunk, batch_size))
        file.append(chunk, found)
        if advance is not None:
            advance(len(chunk))
    made = [replace(pair, target=file.known[pair.source] or pair.target) for pair in pairs]
    empty = sum(not file.known[pair.source] for pair in pairs)
    if empty:
        log.warning("the teacher's translations of %d of %d sentences are empty", empty, len(pairs))
    return made


def _chunks(sources: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(sources), CHUNK):
        yield list(sources[start : start + CHUNK])


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
