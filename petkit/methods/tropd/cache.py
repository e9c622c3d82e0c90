"""Responses with a teacher's log-probabilities on disk: a teacher is asked once, and not in every run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from petkit.artifacts import atomic_write
from petkit.artifacts.run_directory import is_unstarted
from petkit.errors import ArtifactError, ConfigError, InputError
from petkit.training.checkpoint import dotted_settings

MANIFEST = "cache.json"
Writer = Literal["teacher", "student"]

# What a shard holds for every response, and for every token of its responses.
ROWS = ("prompt", "prompt_length", "length", "finished")
TOKENS = ("token_ids", "log_probs", "entropy", "top_ids", "top_log_probs", "tail")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CachedBy(_Part):
    """A teacher that was asked."""

    id: str
    sha256: str


class CachedDraws(_Part):
    """How the responses were drawn: what of `SamplingConfig` changes them."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    stop: tuple[str, ...]


class CacheManifest(_Part):
    """What a cache is, and which of its shards are there."""

    schema_version: Literal[2]
    teachers: dict[str, CachedBy] = Field(min_length=1)
    """By the data set of their prompts; the key "" is the teacher of all."""

    writer: Writer
    """Who wrote the responses."""

    student_sha256: str | None = None
    """Of the student that wrote them; None where the teachers did."""

    vocabulary_sha256: str
    """Of the tokenizer's tokens and their numbers."""

    prompts_sha256: str
    sampling: CachedDraws
    top_k: int = Field(ge=1)
    """Likeliest tokens that are kept."""

    samples: int = Field(ge=1)
    seed: int
    shards: dict[str, str] = {}
    """SHA-256 of each shard that is there."""

    @property
    def teacher(self) -> str:
        """The teachers' names, as one text."""
        return ", ".join(f"{key + ': ' if key else ''}{one.id}" for key, one in self.teachers.items())


@dataclass(frozen=True)
class CachedRow:
    """One response: ids, and what the teacher says of each of its tokens, in nats."""

    number: int
    """Of its prompt."""

    finished: bool
    """Whether it has ended, and was not cut off."""

    prompt: Tensor
    token_ids: Tensor
    log_probs: Tensor
    entropy: Tensor
    top_ids: Tensor
    top_log_probs: Tensor
    tail: Tensor
    """log of the probability of all tokens but the likeliest."""


def vocabulary_sha256(tokenizer: Any) -> str:
    """Hash a tokenizer's tokens with their numbers."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def shard_name(index: int) -> str:
    """The file of a shard."""
    return f"scores-{index:05d}.safetensors"


def log_tail(top_log_probs: Tensor) -> Tensor:
    """log(1 - sum of probabilities) of the likeliest tokens, -inf where they are all there is."""
    return (1 - top_log_probs.double().exp().sum(-1)).clamp_min(0.0).log().float()


def pack_rows(rows: Sequence[CachedRow]) -> bytes:
    """The content of a shard.

    Args:
        rows: at least one.

    Returns:
        A safetensors file: numbers of every response, and of all tokens one response behind the other.
    """
    tensors = {
        "prompt": torch.tensor([row.number for row in rows], dtype=torch.int32),
        "prompt_length": torch.tensor([len(row.prompt) for row in rows], dtype=torch.int32),
        "finished": torch.tensor([row.finished for row in rows], dtype=torch.uint8),
        "length": torch.tensor([len(row.token_ids) for row in rows], dtype=torch.int32),
        "prompt_ids": torch.cat([row.prompt for row in rows]).int(),
    }
    for name in TOKENS:
        whole = torch.cat([getattr(row, name) for row in rows])
        tensors[name] = whole.int() if name in ("token_ids", "top_ids") else whole.float()
    return bytes(save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}))


def unpack_rows(content: bytes, path: Path) -> list[CachedRow]:
    """Read the content of a shard.

    Raises:
        ArtifactError: it is no such file, or its parts contradict each other.
    """
    try:
        tensors = load_tensors(content)
        lengths = tensors["length"].tolist()
        columns: dict[str, Sequence[Tensor]] = {name: torch.split(tensors[name], lengths) for name in TOKENS}
        prompts = torch.split(tensors["prompt_ids"], tensors["prompt_length"].tolist())
        finished = [bool(value) for value in tensors["finished"].tolist()]
        rows = zip(tensors["prompt"].tolist(), finished, prompts, *columns.values(), strict=True)
        return [CachedRow(*row) for row in rows]
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"{path} must be a shard of a cache, got {str(error)[:200]}") from error


def read_manifest(folder: Path) -> CacheManifest:
    """Read what a cache is.

    Raises:
        InputError: there is none.
        ArtifactError: its description is broken.
    """
    path = folder / MANIFEST
    try:
        return CacheManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{folder} must be a cache of `petkit distill cache`, it has no {MANIFEST}"
        ) from error
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        if fault["loc"] == ("schema_version",):
            raise ArtifactError(
                f"{path} was written by another version of petkit: make the cache anew with `petkit distill "
                "cache`"
            ) from error
        place = "".join(f"{part}." for part in fault["loc"])[:-1]
        raise ArtifactError(f"{path} is broken: {place and place + ': '}{fault['msg']}") from error


def write_manifest(folder: Path, manifest: CacheManifest) -> None:
    """Write what a cache is, whole or not at all."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
    atomic_write(folder / MANIFEST, text.encode())


def check_folder(folder: Path) -> None:
    """Refuse a folder for a cache that holds something else.

    Args:
        folder: of the cache; it may be missing, or hold one.

    Raises:
        InputError: a file, or a folder with other content.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {folder} must be a folder, it is a file: choose another")
    if folder.is_dir() and not (folder / MANIFEST).exists() and not is_unstarted(folder):
        raise InputError(f"output folder {folder} is not empty and holds no cache: choose another")


def begin(folder: Path, wanted: CacheManifest) -> CacheManifest:
    """Begin a cache, or go on with one of the same teacher, prompts and settings.

    Args:
        folder: of the cache.
        wanted: what it is to be, without shards.

    Returns:
        The same with the shards that are there and whole.

    Raises:
        ConfigError: a cache of something else is there; the message names what differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MANIFEST).exists():
        write_manifest(folder, wanted)
        return wanted
    found = read_manifest(folder)
    own, other = (dotted_settings(one.model_dump(exclude={"shards"})) for one in (found, wanted))
    changed = [
        f"{key}: {own.get(key)!r} -> {other.get(key)!r}"
        for key in own | other
        if own.get(key) != other.get(key)
    ]
    if changed:
        raise ConfigError(
            f"{folder} is a cache of other settings ({'; '.join(changed)}): choose another folder"
        )
    whole = {name: sha for name, sha in found.shards.items() if _sha256(folder / name) == sha}
    return found.model_copy(update={"shards": whole})


def read_cache(folder: Path) -> tuple[CacheManifest, list[CachedRow]]:
    """Read a whole cache.

    Args:
        folder: of it.

    Returns:
        What it is, and its responses in order.

    Raises:
        InputError: there is none, or nothing in it.
        ArtifactError: a shard is missing or altered.
    """
    manifest = read_manifest(folder)
    rows: list[CachedRow] = []
    for name in sorted(manifest.shards):
        path = folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{path} is missing, which {MANIFEST} names") from error
        if hashlib.sha256(content).hexdigest() != manifest.shards[name]:
            raise ArtifactError(f"{path} was altered: {MANIFEST} says another sha256")
        rows += unpack_rows(content, path)
        if rows[-1].top_ids.shape[-1] != manifest.top_k:
            raise ArtifactError(
                f"{path} must have the {manifest.top_k} likeliest tokens that {MANIFEST} says, got "
                f"{rows[-1].top_ids.shape[-1]}"
            )
    if not rows:
        raise InputError(f"{folder} must hold at least one response, got none")
    return manifest, rows


def chunked(items: Sequence[Any], size: int) -> Iterator[tuple[int, Sequence[Any]]]:
    """Items in runs of a size, with the number of each run."""
    for index, start in enumerate(range(0, len(items), size)):
        yield index, items[start : start + size]


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
