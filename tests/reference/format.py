"""A reader of the artifact folder, written from docs/format.md alone. It may not import petkit."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}


class Matrix(NamedTuple):
    """A packed matrix: codes (out, in), and the numbers that scale its levels."""

    codes: NDArray[np.int64]
    bits: int
    codebook: str
    shift: np.float32
    scale: np.float32


class Content(NamedTuple):
    """What a folder holds."""

    manifest: dict[str, Any]
    packed: dict[str, Matrix]
    dense: dict[str, NDArray[np.float32]]


def read(folder: Path) -> Content:
    """Read a well-formed artifact folder; anything else is an assertion error."""
    manifest = json.loads((folder / "petkit.json").read_text("utf-8"))
    raw = (folder / "adapter_packed.safetensors").read_bytes()
    assert manifest["schema_version"] == 1
    assert manifest["tensors_sha256"] == hashlib.sha256(raw).hexdigest()
    tensors, metadata = container(raw)
    assert metadata.pop("format") == "petkit.packed.1"
    packed = {}
    for name, description in metadata.items():
        module = name.removesuffix(".bits")
        bits, codebook, shape = description.split(" ")
        out, columns = map(int, shape.split("x"))
        shift, scale = (number(tensors.pop(f"{module}.{part}")) for part in ("shift", "scale"))
        stream = tensors.pop(name)
        packed[module] = Matrix(unpack(stream[2], int(bits), out, columns), int(bits), codebook, shift, scale)
    return Content(manifest, packed, {name: values(*tensor) for name, tensor in tensors.items()})


def container(raw: bytes) -> tuple[dict[str, tuple[str, list[int], bytes]], dict[str, str]]:
    """Section 3: header and payload."""
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    payload, metadata, reached = raw[8 + length :], header.pop("__metadata__"), 0
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        assert begin == reached
        assert end - begin == SIZES[entry["dtype"]] * int(np.prod(entry["shape"], dtype=int))
        tensors[name], reached = (entry["dtype"], entry["shape"], payload[begin:end]), end
    assert reached == len(payload)
    return tensors, metadata


def unpack(stream: bytes, bits: int, out: int, columns: int) -> NDArray[np.int64]:
    """Section 4: the code of each weight, one by one."""
    assert len(stream) == -(-out * columns * bits // 8)
    whole = int.from_bytes(stream, "little")
    codes = [(whole >> (place * bits)) & (2**bits - 1) for place in range(out * columns)]
    assert whole >> (out * columns * bits) == 0, "padding"
    return np.array(codes, np.int64).reshape(out, columns)


def number(tensor: tuple[str, list[int], bytes]) -> np.float32:
    """A scalar tensor's value."""
    dtype, shape, data = tensor
    assert (dtype, shape) == ("F32", [])
    return np.frombuffer(data, "<f4")[0]


def values(dtype: str, shape: list[int], data: bytes) -> NDArray[np.float32]:
    """A dense tensor's values as float32."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32).reshape(shape)


def levels(bits: int, steps: int = 4000) -> NDArray[np.float32]:
    """The levels of normal_l1 for 1, 2 and 4 bits, where plain iteration converges."""
    normal, count = NormalDist(), 2**bits
    found = [2**0.5 * normal.inv_cdf((place + 0.5) / count) for place in range(count)]
    for _ in range(steps):
        edges = [0.0, *(normal.cdf((a + b) / 2) for a, b in itertools.pairwise(found)), 1.0]
        found = [normal.inv_cdf((a + b) / 2) for a, b in itertools.pairwise(edges)]
    return np.array(found, np.float32)


def weights(matrix: Matrix) -> NDArray[np.float32]:
    """The weights of a packed matrix of 1, 2 or 4 bits, in float32 arithmetic."""
    return matrix.shift + matrix.scale * levels(matrix.bits)[matrix.codes]
