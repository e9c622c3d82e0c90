"""What an artifact holds, in rows and numbers; and what a folder or file that is no artifact seems to be."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from petkit.artifacts.dense import to_float32
from petkit.artifacts.paths import PICKLE_SUFFIXES, looks_like_pickle, refuse_pickle
from petkit.artifacts.reader import MANIFEST, Artifact, small_file
from petkit.artifacts.router import is_router, read_router
from petkit.artifacts.tagger import TaggerArtifact
from petkit.artifacts.translator import TranslatorArtifact
from petkit.errors import ArtifactError, InputError

MAX_SMALL = 2**20
AnyArtifact: TypeAlias = Artifact | TaggerArtifact | TranslatorArtifact


@dataclass(frozen=True)
class Module:
    """One matrix or dense tensor of an artifact.

    Args:
        name: module name of a packed matrix, tensor name of a dense tensor.
        shape: (out, in) of a matrix.
        bits: bits of a weight.
        nbytes: bytes in the file, a shift and a scale included.
        shift: mean of the weights.
        scale: standard deviation of the weights (of a dense tensor: computed, so that both can be compared).
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    nbytes: int
    shift: float
    scale: float


@dataclass(frozen=True)
class Summary:
    """What `petkit inspect` shows.

    Args:
        modules: in the natural order of the names.
        nbytes: bytes of all tensors.
        float32_nbytes: bytes they would need as float32.
        file_nbytes: bytes of the tensor file, names included.
    """

    modules: tuple[Module, ...]
    nbytes: int
    float32_nbytes: int
    file_nbytes: int


def summarize(artifact: AnyArtifact) -> Summary:
    """Return the tensors of an artifact as rows, and its sizes."""
    modules = tuple(sorted(_modules(artifact), key=lambda module: natural(module.name)))
    return Summary(
        modules,
        nbytes=artifact.nbytes,
        float32_nbytes=sum(4 * math.prod(module.shape) for module in modules),
        file_nbytes=artifact.tensor_file.stat().st_size,
    )


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts blocks.2 before blocks.10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


def _modules(artifact: AnyArtifact) -> Iterator[Module]:
    for name, matrix in artifact.packed.items():
        yield Module(name, matrix.shape, matrix.bits, matrix.nbytes, matrix.shift, matrix.scale)
    for name, raw in artifact.raw_dense.items():
        values = to_float32(raw)
        bits = 8 * raw.data.size // max(values.size, 1)
        mean, spread = (float(values.mean()), float(values.std())) if values.size else (0.0, 0.0)
        yield Module(name, raw.shape, bits, raw.data.size, mean, spread)


def summary_json(artifact: AnyArtifact, summary: Summary) -> dict[str, Any]:
    """Return manifest and summary as plain values."""
    manifest = artifact.manifest.model_dump(mode="json")
    # The object that holds these has a schema_version of its own.
    version = manifest.pop("schema_version")
    return {
        "folder": str(artifact.folder),
        "artifact_schema_version": version,
        **manifest,
        "modules": [_module_json(module) for module in summary.modules],
        "bytes": summary.nbytes,
        "float32_bytes": summary.float32_nbytes,
        "file_bytes": summary.file_nbytes,
    }


def _module_json(module: Module) -> dict[str, Any]:
    values = asdict(module)
    values["bytes"] = values.pop("nbytes")
    return values


def describe_foreign(path: Path) -> tuple[str, str] | None:
    """Recognise a router, or an adapter that petkit can convert.

    Args:
        path: a file or folder.

    Returns:
        Its kind (`router`, `peft` or `petl-vit`) and a sentence with the command that uses it; None for an
        adapter of petkit's own.

    Raises:
        ArtifactError: neither an artifact nor anything that petkit can convert.
        InputError: there is nothing at this path.
        SafetyError: a pickle.
    """
    if not path.exists():
        raise InputError(f"expected an artifact folder, {path} is missing")
    if path.is_dir():
        if is_router(path):
            return "router", _describe_router(path)
        if (path / MANIFEST).exists() or not (path / "adapter_config.json").exists():
            return None
        return "peft", _describe_peft(path)
    return "petl-vit", _describe_file(path)


def _describe_router(path: Path) -> str:
    router = read_router(path)
    limits = router.router.get("thresholds") or {}
    named = ", ".join(f"{name} {value}" for name, value in limits.items())
    if router.router.get("rule") == "learned":
        named = "a network decides"
    return (
        f"{path} is a router for {router.base.id} (sha256 {router.base.sha256}; {named}); to use it: "
        f"petkit route run MODEL --router {path} --data FILE"
    )


def _describe_peft(path: Path) -> str:
    try:
        config = json.loads(small_file(path, "adapter_config.json", MAX_SMALL))
        details = (
            f"{config['peft_type']}, rank {config.get('r')}, base {config.get('base_model_name_or_path')}"
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path}/adapter_config.json is broken: {error}") from error
    return f"{path} is a PEFT adapter ({details}); to use it: petkit convert {path} --from peft -o OUT"


def _describe_file(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(32)
    settings = path.with_suffix(".yaml")
    if path.suffix == ".bin" and settings.is_file() and not looks_like_pickle(head):
        return f"{path} may be a PETL-ViT checkpoint; to use it: petkit convert {path} --from petl-vit -o OUT"
    if looks_like_pickle(head) or path.suffix in PICKLE_SUFFIXES:
        raise refuse_pickle(path)
    raise ArtifactError(f"expected an artifact folder, {path} is a file of another kind")
