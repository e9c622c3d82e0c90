"""Reading an artifact folder: every number in it is checked before it is used."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petkit.artifacts.dense import all_finite, to_torch
from petkit.artifacts.manifest import MAX_MANIFEST, Manifest, parse_manifest
from petkit.artifacts.packed import PackedMatrix
from petkit.artifacts.paths import PICKLE_SUFFIXES, open_inside, refuse_pickle
from petkit.artifacts.tensor_file import RawTensor, TensorFile, read_tensor_file
from petkit.errors import ArtifactError, InputError, PetkitError

if TYPE_CHECKING:
    import torch

MANIFEST = "petkit.json"
CONFIG = "config.yaml"
TENSORS = "adapter_packed.safetensors"
FORMAT = "petkit.packed.1"
DENSE_DTYPES = ("F32", "F16", "BF16")
MAX_CONFIG = 4 * 2**20

_DESCRIPTION = re.compile(r"([1248]) (normal_l1|petl_vit) ([1-9][0-9]{0,9})x([1-9][0-9]{0,9})")
_FLOAT = struct.Struct("<f")


@dataclass(frozen=True, eq=False)
class Artifact:
    """An artifact in memory. Its configuration and dense tensors are made when they are first asked for.

    Args:
        folder: where it was read from.
        manifest: `petkit.json`.
        packed: quantised matrices by module name, such as `blocks.0.adaptformer.down`.
        raw_dense: the other tensors, as the file holds them.
    """

    folder: Path
    manifest: Manifest
    packed: dict[str, PackedMatrix]
    raw_dense: dict[str, RawTensor]

    @cached_property
    def dense(self) -> dict[str, torch.Tensor]:
        """The other tensors by name: the float32 head, 32-bit adapter weights, extra trained tensors."""
        return {name: to_torch(raw) for name, raw in self.raw_dense.items()}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration that made the artifact."""
        return read_config(self.folder)

    @property
    def tensor_file(self) -> Path:
        """The file of the tensors."""
        return self.folder / TENSORS

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, codes with their shift and scale, without names and headers."""
        return sum(m.nbytes for m in self.packed.values()) + sum(t.data.size for t in self.raw_dense.values())


def read_packed(folder: str | os.PathLike[str]) -> dict[str, PackedMatrix]:
    """Read the quantised matrices of an artifact; the manifest is not looked at.

    Args:
        folder: the artifact.

    Returns:
        Packed matrices by module name; empty when the artifact keeps 32-bit weights only.

    Raises:
        ArtifactError: the file is damaged or inconsistent.
        SafetyError: a pickle, or a path that leaves the folder.
    """
    return split_tensors(_tensor_file(artifact_folder(folder)), str(folder))[0]


def read_artifact(folder: str | os.PathLike[str]) -> Artifact:
    """Read an artifact folder and check that its parts belong together.

    Args:
        folder: the artifact.

    Returns:
        Manifest and tensors; about a millisecond for an adapter of 24 small matrices.

    Raises:
        ArtifactError: a file is missing, damaged, of a later schema version, or does not fit the others.
        SafetyError: a pickle, or a path that leaves the folder.
    """
    path = artifact_folder(folder)
    manifest = read_manifest(path)
    content = _tensor_file(path)
    packed, dense = split_tensors(content, str(path))
    digest = content.sha256()
    if manifest.tensors_sha256 != digest:
        raise ArtifactError(
            f"{path / TENSORS} has sha256 {digest}, {MANIFEST} says {manifest.tensors_sha256}: "
            "the file was altered or exchanged"
        )
    for fault in (*pair_faults(packed, dense), *manifest_faults(manifest, packed, dense)):
        raise ArtifactError(f"{path}: {fault}")
    return Artifact(path, manifest, packed, dense)


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read and validate `petkit.json`.

    Raises:
        ArtifactError: it is missing, broken, or of a later schema version.
    """
    path = artifact_folder(folder)
    return parse_manifest(_own_file(path, MANIFEST, MAX_MANIFEST), str(path / MANIFEST))


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read `config.yaml`.

    Raises:
        ArtifactError: it is missing or too large.
        ConfigError: it is not YAML of plain values.
    """
    from petkit.configuration import load_yaml

    path = artifact_folder(folder)
    _own_file(path, CONFIG, MAX_CONFIG)
    return load_yaml(path / CONFIG).data


def split_tensors(
    content: TensorFile, where: str, file: str = TENSORS
) -> tuple[dict[str, PackedMatrix], dict[str, RawTensor]]:
    """Sort the tensors of a file into packed matrices and dense tensors.

    Args:
        content: tensors and metadata of `adapter_packed.safetensors`.
        where: the artifact, for messages.
        file: name of the file, likewise.

    Returns:
        Packed matrices by module name, and all remaining tensors by tensor name.

    Raises:
        ArtifactError: a matrix lacks a part, contradicts its description or is out of range; a dense tensor
            has a dtype other than F32, F16, BF16 or holds NaN or infinity.
    """
    descriptions = dict(content.metadata)
    if descriptions.pop("format", None) != FORMAT:
        found = content.metadata.get("format")
        raise ArtifactError(
            f"{where}: {file} must have format {FORMAT!r} in its metadata, got {str(found)[:40]!r}"
        )
    remaining = dict(content.tensors)
    packed: dict[str, PackedMatrix] = {}
    for name, description in descriptions.items():
        if not name.endswith(".bits"):
            raise ArtifactError(
                f"{where}: metadata key {name[:140]!r} is neither `format` nor the name of a .bits tensor"
            )
        module = name[: -len(".bits")]
        try:
            packed[module] = _matrix(module, description, remaining)
        except ArtifactError as error:
            raise ArtifactError(f"{where}: {module}: {error}") from None
    _check_dense(remaining, where)
    return packed, remaining


def _matrix(module: str, description: str, remaining: dict[str, RawTensor]) -> PackedMatrix:
    match = _DESCRIPTION.fullmatch(description)
    if not match:
        raise ArtifactError(f"metadata must read like '1 normal_l1 32x768', got {description[:80]!r}")
    stream = remaining.pop(f"{module}.bits", None)
    if stream is None or stream.dtype != "U8" or len(stream.shape) != 1:
        raise ArtifactError("the metadata describes it, but there is no one-dimensional U8 tensor .bits")
    bits, kind, rows, columns = match.groups()
    shape = (int(rows), int(columns))
    shift, scale = (_scalar(f"{module}.{part}", remaining) for part in ("shift", "scale"))
    return PackedMatrix(shape, int(bits), kind, shift, scale, stream.data)


def _scalar(name: str, remaining: dict[str, RawTensor]) -> float:
    raw = remaining.pop(name, None)
    if raw is None or raw.dtype != "F32" or raw.shape != ():
        raise ArtifactError(
            f"{name} must be an F32 scalar, got {'nothing' if raw is None else (raw.dtype, raw.shape)}"
        )
    value: float = _FLOAT.unpack(raw.data.data)[0]
    return value


def _check_dense(dense: dict[str, RawTensor], where: str) -> None:
    for name, raw in dense.items():
        if name.endswith(".bits"):
            raise ArtifactError(f"{where}: {name} has no description in the metadata")
        if raw.dtype not in DENSE_DTYPES:
            raise ArtifactError(
                f"{where}: {name} has dtype {raw.dtype}, expected one of {', '.join(DENSE_DTYPES)}"
            )
        if not all_finite(raw):
            raise ArtifactError(f"{where}: {name} holds NaN or infinity")


def module_shapes(packed: dict[str, PackedMatrix], dense: dict[str, RawTensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every `down`, `up` and head matrix by module name, whatever its bits."""
    shapes: dict[str, tuple[int, ...]] = {name: matrix.shape for name, matrix in packed.items()}
    for name, raw in dense.items():
        module = name.removesuffix(".weight")
        if module != name and (module == "head" or module.endswith((".down", ".up"))):
            shapes[module] = raw.shape
    return shapes


def pair_faults(packed: dict[str, PackedMatrix], dense: dict[str, RawTensor]) -> list[str]:
    """Return what is wrong with the pairs of down (h, in) and up (out, h) matrices of the sites."""
    shapes = module_shapes(packed, dense)
    faults = [f"{name} is both packed and dense" for name in packed if f"{name}.weight" in dense]
    faults += [
        f"{name} must be a matrix, got shape {shape}" for name, shape in shapes.items() if len(shape) != 2
    ]
    for site in sorted({name.rpartition(".")[0] for name in shapes if name.endswith((".down", ".up"))}):
        down, up = shapes.get(f"{site}.down"), shapes.get(f"{site}.up")
        if down is None or up is None:
            faults.append(f"{site} needs both down and up, it has only {'up' if down is None else 'down'}")
        elif len(down) == len(up) == 2 and down[0] != up[1]:
            faults.append(
                f"{site}: down {down} and up {up} must share the bottleneck, down's rows and up's columns"
            )
    return faults


def manifest_faults(
    manifest: Manifest, packed: dict[str, PackedMatrix], dense: dict[str, RawTensor]
) -> list[str]:
    """Return where `petkit.json` and the tensors contradict each other."""
    faults: list[str] = []
    adapter, shapes = manifest.adapter, module_shapes(packed, dense)
    for name, matrix in packed.items():
        bits = 1 if name == "head" else adapter.get("bits", matrix.bits)
        if matrix.bits != bits:
            faults.append(f"{name} has {matrix.bits} bits, {MANIFEST} says {bits}")
        if matrix.kind != adapter.get("codebook", matrix.kind):
            faults.append(f"{name} has codebook {matrix.kind}, {MANIFEST} says {adapter['codebook']}")
    if adapter.get("bits", 1) < 32:
        faults += [
            f"{n} is dense, {MANIFEST} says {adapter.get('bits')} bits"
            for n in shapes
            if n not in packed and n != "head"
        ]
    widths = [shape[0] for name, shape in shapes.items() if name.endswith(".down")]
    # Sites may be narrower than this: PEFT gives each a rank of its own.
    if widths and adapter.get("bottleneck", max(widths)) != max(widths):
        faults.append(
            f"the widest site has {max(widths)} units, {MANIFEST} says bottleneck {adapter['bottleneck']}"
        )
    classes = manifest.task.classes if manifest.task else ()
    if classes and "head" in shapes and shapes["head"][0] != len(classes):
        faults.append(f"the head has {shapes['head'][0]} rows, {MANIFEST} names {len(classes)} classes")
    own = manifest.model.get("pooling") == "own" and "head" not in shapes
    saved = _saved_layers(dense) if own else []
    if classes and saved and not any(raw.shape[:1] == (len(classes),) for raw in saved):
        faults.append(f"{MANIFEST} names {len(classes)} classes, no saved layer has as many rows")
    faults += [
        f"scaling names {site}, which has no weights"
        for site in manifest.scaling
        if f"{site}.down" not in shapes
    ]
    return faults


def _saved_layers(dense: dict[str, RawTensor]) -> list[RawTensor]:
    """Layers that stand in for a head: those of a transformers classifier, which PEFT saves whole."""
    apart = (".down.weight", ".up.weight")
    return [raw for name, raw in dense.items() if not name.endswith(apart)]


def artifact_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the folder as a path, or say what is there instead."""
    path = Path(folder)
    if path.is_dir():
        return path
    if path.suffix in PICKLE_SUFFIXES and path.is_file():
        raise refuse_pickle(path)
    raise InputError(f"expected an artifact folder, {path} is {'a file' if path.exists() else 'missing'}")


def _tensor_file(folder: Path) -> TensorFile:
    try:
        return read_tensor_file(folder, TENSORS)
    except FileNotFoundError:
        raise _no_artifact(folder, TENSORS) from None


def _own_file(folder: Path, name: str, limit: int) -> bytes:
    try:
        return small_file(folder, name, limit)
    except FileNotFoundError:
        raise _no_artifact(folder, name) from None


def small_file(folder: Path, name: str, limit: int) -> bytes:
    """Return the bytes of a file inside the folder.

    Raises:
        FileNotFoundError: there is no such file.
        ArtifactError: it has more than `limit` bytes.
        SafetyError: it leads out of the folder.
    """
    with open_inside(folder, name) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ArtifactError(f"{folder / name} has {size} bytes, at most {limit} are read")
        return file.read(limit)


def _no_artifact(folder: Path, name: str) -> PetkitError:
    """Say what a folder without an artifact's file holds instead."""
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if (folder / "adapter_model.safetensors").exists():
        return ArtifactError(f"{folder} is a PEFT adapter: petkit convert {folder} --from peft -o OUT")
    if pickles:
        return refuse_pickle(pickles[0])
    return ArtifactError(f"{folder} has no {name}: it is not a petkit artifact, or it was not finished")
