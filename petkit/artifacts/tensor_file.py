"""The safetensors container, read with every check before any allocation, and written to one canonical form.

Source: the safetensors format description (8-byte header length, JSON header, contiguous payload). The bounds
are narrower than the format's own; docs/format.md gives the reasons.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from petkit.artifacts.paths import (
    check_name,
    check_tensor_name,
    looks_like_pickle,
    open_inside,
    refuse_pickle,
)
from petkit.artifacts.strict_json import parse_json
from petkit.errors import ArtifactError, PetkitError

MAX_HEADER = 16 * 2**20
MAX_TENSORS = 65_536
MAX_DIMENSIONS = 8
ITEM_SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


class RawTensor(NamedTuple):
    """A tensor as the file holds it: dtype name, shape and little-endian bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


class TensorFile(NamedTuple):
    """What one file holds: tensors by name, its string metadata, and the bytes themselves."""

    tensors: dict[str, RawTensor]
    metadata: dict[str, str]
    head: bytes
    payload: NDArray[np.uint8]

    def sha256(self) -> str:
        """Return the hexadecimal SHA-256 of the file's bytes."""
        digest = hashlib.sha256(self.head)
        digest.update(self.payload.data)
        return digest.hexdigest()


def read_tensor_file(folder: Path, name: str) -> TensorFile:
    """Read a safetensors file of a folder, distrusting every number in it.

    Args:
        folder: folder that must hold the file, not through a symlink that leaves it.
        name: file name.

    Returns:
        Tensors and metadata; all tensors are slices of one buffer of the payload's size.

    Raises:
        ArtifactError: the file is truncated, too long, or its header is malformed or out of bounds.
        FileNotFoundError: there is no such file.
        SafetyError: the file is a pickle, or leads out of the folder.
    """
    with open_inside(folder, name) as file:
        try:
            return _parse(file, folder / name)
        except PetkitError:
            raise
        except OSError as error:
            raise ArtifactError(f"cannot read {folder / name}: {os.strerror(error.errno or 0)}") from error


class Place(NamedTuple):
    """Where a tensor lies: dtype name, shape, and its first byte and the one behind its last, of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def locate_tensors(folder: Path, name: str) -> dict[str, Place]:
    """Read the header of a safetensors file alone, distrusting every number in it.

    Args:
        folder: folder that must hold the file, not through a symlink that leaves it.
        name: file name.

    Returns:
        Where each tensor lies, in the order of the header.

    Raises:
        ArtifactError: the file is truncated, too long, or its header is malformed or out of bounds.
        FileNotFoundError: there is no such file.
        SafetyError: the file is a pickle, or leads out of the folder.
    """
    with open_inside(folder, name) as file:
        try:
            head = _read_head(file, folder / name)
        except OSError as error:
            raise ArtifactError(f"cannot read {folder / name}: {os.strerror(error.errno or 0)}") from error
    start = len(head.raw)
    return {
        tensor: Place(dtype, shape, start + begin, start + end)
        for tensor, (dtype, shape, begin, end) in head.spans.items()
    }


class _Head(NamedTuple):
    """The checked header of a file."""

    raw: bytes
    metadata: dict[str, str]
    spans: dict[str, tuple[str, tuple[int, ...], int, int]]
    payload: int


def _parse(file: FileIO, path: Path) -> TensorFile:
    raw, metadata, spans, payload = _read_head(file, path)
    buffer = np.empty(payload, dtype=np.uint8)
    if file.readinto(buffer.data) != payload:
        raise ArtifactError(f"{path} became shorter while it was read")
    tensors = {
        name: RawTensor(dtype, shape, buffer[begin:end]) for name, (dtype, shape, begin, end) in spans.items()
    }
    return TensorFile(tensors, metadata, raw, buffer)


def _read_head(file: FileIO, path: Path) -> _Head:
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        # A pickle's first bytes read as an absurd header length, so this is where one is recognised.
        if looks_like_pickle(prefix + file.read(24)):
            raise refuse_pickle(path)
        raise ArtifactError(_length_fault(path, length, size))
    raw = file.read(length)
    header = _header(raw, path)
    metadata = _metadata(header.pop("__metadata__", {}), path)
    if len(header) > MAX_TENSORS:
        raise ArtifactError(f"{path} names {len(header)} tensors, at most {MAX_TENSORS} are read")
    spans = {name: _span(name, entry, path) for name, entry in header.items()}
    payload = size - 8 - length
    _check_coverage(spans, payload, path)
    return _Head(prefix + raw, metadata, spans, payload)


def _length_fault(path: Path, length: int, size: int) -> str:
    if length < 0:
        return f"{path} is truncated: it has {size} bytes, and the header length alone needs 8"
    if length > MAX_HEADER:
        return f"{path} states a header of {length} bytes, at most {MAX_HEADER} are read"
    return f"{path} is truncated: it states a header of {length} bytes and has {size} bytes in all"


def _header(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        header = parse_json(raw)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} has a header that is not valid JSON: {str(error)[:200]}") from error
    # The header must begin with the brace itself, so that no other content can be put before it.
    if raw[:1] != b"{" or not isinstance(header, dict):
        raise ArtifactError(f"{path} has a header that is not a JSON object")
    return header


def _metadata(metadata: Any, path: Path) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ArtifactError(f"{path} has __metadata__ that is not an object of strings")
    return metadata


def _span(name: str, entry: Any, path: Path) -> tuple[str, tuple[int, ...], int, int]:
    check_tensor_name(name, str(path))
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ArtifactError(f"{path}: {name} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    item = ITEM_SIZES.get(dtype) if isinstance(dtype, str) else None
    if item is None:
        raise ArtifactError(
            f"{path}: {name} has dtype {str(dtype)[:40]!r}, known are {', '.join(ITEM_SIZES)}"
        )
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise ArtifactError(
            f"{path}: {name} has shape {str(shape)[:80]}, expected up to {MAX_DIMENSIONS} counts"
        )
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ArtifactError(f"{path}: {name} has data_offsets {str(offsets)[:80]}, expected [begin, end]")
    begin, end = offsets
    expected = math.prod(shape) * item
    if end - begin != expected:
        raise ArtifactError(
            f"{path}: {name} of shape {shape} and {dtype} needs {expected} bytes, got {end - begin}"
        )
    return dtype, tuple(shape), begin, end


def _counts(values: Any) -> bool:
    # `type is int` also keeps out true and false, which Python counts as integers.
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_coverage(
    spans: Mapping[str, tuple[str, tuple[int, ...], int, int]], payload: int, path: Path
) -> None:
    reached = 0
    for name, (_, _, begin, end) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if begin != reached:
            what = "overlaps the tensor before it" if begin < reached else "leaves a hole before it"
            raise ArtifactError(
                f"{path}: {name} begins at byte {begin} of the payload and {what}, which ends at {reached}"
            )
        reached = end
    if reached != payload:
        kind = "truncated" if reached > payload else "longer than its header says"
        raise ArtifactError(
            f"{path} is {kind}: the tensors need {reached} bytes and {payload} follow the header"
        )


def serialize_tensor_file(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> bytes:
    """Return the canonical bytes of a safetensors file: the same tensors and metadata give the same bytes.

    Args:
        tensors: by name. Larger items come first in the payload, so that each is aligned; then by name.
        metadata: string keys and values.

    Returns:
        Header length, JSON header with sorted keys padded with spaces to a multiple of 8, and the payload.
    """
    order = sorted(tensors, key=lambda name: (-ITEM_SIZES[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for name in order:
        check_name(name, "a tensor name")
        tensor = tensors[name]
        end = position + tensor.data.size
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(tensors[name].data.tobytes() for name in order)])
