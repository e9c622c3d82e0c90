"""Measured outcomes on disk: hours of decoding that survive a kill and serve several commands."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from petkit.artifacts.provenance import file_sha256
from petkit.artifacts.whole_model import is_whole
from petkit.data.questions import Question
from petkit.errors import InputError
from petkit.methods.edrm.config import RouterConfig

DIGITS = 32
# Settings that change what is measured.
MEASURED = {"probe_tokens", "max_new_tokens", "chat_template", "prompts"}


def outcome_key(question: Question, config: RouterConfig, model_sha256: str) -> str:
    """Name everything that a question's outcome depends on.

    Args:
        question: with its answer.
        config: of which prompts and lengths matter; all modes are measured, whichever would be chosen.
        model_sha256: of the model that answers.

    Returns:
        32 hexadecimal digits.
    """
    settings = config.model_dump(mode="json", include=MEASURED)
    # Outcomes that were measured before there were stops keep their keys.
    if config.stop:
        settings["stop"] = list(config.stop)
    content = json.dumps([model_sha256, settings, vars(question)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:DIGITS]


def model_files(name: str) -> str | None:
    """Hash the files of a local model, which is soon done: its own hash needs its weights to be loaded.

    Args:
        name: as a recipe's `model.name`.

    Returns:
        Hexadecimal SHA-256; None for an adapter, whose base is elsewhere, and for what is no folder.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() or ((folder / "petkit.json").is_file() and not is_whole(folder)):
        return None
    found = {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


class OutcomeFile:
    """Records in a JSONL file, each under its key; of several with one key the last counts.

    Args:
        path: of the file, which need not be there yet. None keeps nothing.
        files: hash of the model's files, as `model_files` gives it; kept beside the model's own.

    Raises:
        InputError: it cannot be read, or a line is no record. An unfinished last line, which a killed
            process leaves, is cut off by the next `append`.
    """

    def __init__(self, path: Path | None, files: str | None = None) -> None:
        self.path, self.files = path, files
        self.records: dict[str, dict[str, Any]] = {}
        # Bytes of whole lines, and of everything that was there.
        self._whole = self._size = 0
        if path is not None and path.exists():
            self._read(path)

    @property
    def measured_by(self) -> str | None:
        """What the model with these files was when outcomes of it were kept; None where there are none."""
        found = (record["model"] for record in self.records.values() if "model" in record)
        same = (one["measured_by"] for one in found if self.files and one["files"] == self.files)
        return next(same, None)

    def find(self, questions: Sequence[Question], config: RouterConfig) -> list[dict[str, Any]] | None:
        """The records of all questions for the model with these files; None unless every one is there."""
        measured_by = self.measured_by
        if measured_by is None:
            return None
        keys = [outcome_key(question, config, measured_by) for question in questions]
        return [self.records[key] for key in keys] if all(key in self.records for key in keys) else None

    def append(self, records: Sequence[tuple[str, dict[str, Any]]], measured_by: str = "") -> None:
        """Keep records, on the disk when this returns.

        Args:
            records: pairs of key and record.
            measured_by: of the model that they are of.

        Raises:
            InputError: the file cannot be written, or another process has written to it.
        """
        if self.files:
            known = {"measured_by": measured_by, "files": self.files}
            records = [(key, {**record, "model": known}) for key, record in records]
        self.records.update(records)
        if self.path is None or not records:
            return
        lines = "".join(
            json.dumps({"key": key, **record}, ensure_ascii=False) + "\n" for key, record in records
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as stream:
                if stream.tell() != self._size:
                    raise InputError(f"outcomes {self.path} were changed by another process: run it again")
                stream.truncate(self._whole)
                self._whole += stream.write(lines.encode())
                self._size = self._whole
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise InputError(f"outcomes cannot be written to {self.path}: {error.strerror}") from error

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"outcomes {path} cannot be read: {error.strerror}") from error
        self._whole, self._size = content.rfind(b"\n") + 1, len(content)
        for number, line in enumerate(content[: self._whole].splitlines(), start=1):
            record = _record(line)
            if record is None:
                raise InputError(f"{path}:{number} must be an outcome that petkit wrote: remove the line")
            self.records[record.pop("key")] = record


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    wanted = {"key", "id", "dataset", "entropies", "probabilities", "probe_tokens", "modes"}
    whole = isinstance(record, dict) and wanted <= record.keys() and _is_measured(record)
    return record if whole and _is_named(record.get("model")) else None


def _is_named(model: Any) -> bool:
    """Whether the model's hashes are there, which records of other models than local ones lack."""
    if model is None:
        return True
    return isinstance(model, dict) and all(
        isinstance(model.get(key), str) for key in ("measured_by", "files")
    )


def _is_measured(record: dict[str, Any]) -> bool:
    """Whether the numbers are there that a comparison computes with."""
    try:
        outcomes = [record["modes"][mode] for mode in ("direct", "standard", "cot")]
        numbers = [value for one in outcomes for value in (one["correct"], one["tokens"])]
        numbers += [record["probe_tokens"], *record["entropies"], *record["probabilities"]]
    except (LookupError, TypeError):
        return False
    return all(type(number) in (int, float) for number in numbers)
