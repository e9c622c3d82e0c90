"""Small artifacts, and ways to damage them."""

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from petkit.artifacts import Base, Manifest, PackedMatrix, Task, write_artifact
from petkit.artifacts.reader import MANIFEST, TENSORS

HEADER = Callable[[dict[str, Any]], Any]


def random_matrix(shape: tuple[int, int], bits: int, seed: int = 0, kind: str = "normal_l1") -> PackedMatrix:
    codes = np.random.default_rng([seed, *shape]).integers(0, 2**bits, shape)
    return PackedMatrix.from_codes(codes, float(np.float32(-0.01)), float(np.float32(0.03)), bits, kind)


def adapter_matrices(sites: Mapping[str, tuple[int, int, int]], bits: int, seed: int = 0) -> dict[str, Any]:
    """`{site: (in, hidden, out)}` to packed matrices."""
    packed = {}
    for number, (site, (columns, hidden, out)) in enumerate(sites.items()):
        packed[f"{site}.down"] = random_matrix((hidden, columns), bits, seed + 2 * number)
        packed[f"{site}.up"] = random_matrix((out, hidden), bits, seed + 2 * number + 1)
    return packed


def manifest(
    method: str = "adaptformer", bits: int = 1, width: int | None = None, **changes: Any
) -> Manifest:
    adapter = {"method": method, "bits": bits, "scale": 0.5, "codebook": "normal_l1"}
    adapter |= {} if width is None else {"bottleneck": width}
    task = Task(type="image_classification", classes=("cat", "dog"))
    return Manifest(**{"base": Base(id="timm/tiny"), "adapter": adapter, "task": task, **changes})


def head(width: int = 10, classes: int = 2) -> dict[str, Any]:
    values = np.random.default_rng(9).normal(size=(classes, width + 1)).astype(np.float32)
    return {"head.weight": values[:, :width].copy(), "head.bias": values[:, width].copy()}


def write_small(folder: Path, bits: int = 1, **changes: Any) -> Path:
    """An artifact of two sites with widths that do not fill bytes."""
    sites = {f"blocks.{block}.adaptformer": (10, 3, 10) for block in range(2)}
    arguments = {
        "manifest": manifest(bits=bits, width=None if "packed" in changes or bits == 32 else 3),
        "config": {"output": "runs/x", "adapter": {"bits": bits}},
        "packed": {} if bits == 32 else adapter_matrices(sites, bits),
        "dense": head(),
        **changes,
    }
    return write_artifact(folder, **arguments)


def edit_tensors(folder: Path, edit: Callable[[bytes], bytes], restamp: bool = True) -> Path:
    """Change the bytes of the tensor file; `restamp` writes the new hash into the manifest."""
    path = folder / TENSORS
    path.write_bytes(edit(path.read_bytes()))
    if restamp:
        edit_manifest(folder, tensors_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    return folder


def edit_header(folder: Path, edit: HEADER) -> Path:
    """Change the parsed header of the tensor file in place, or return another one."""

    def change(raw: bytes) -> bytes:
        length = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8 : 8 + length])
        replaced = edit(header)
        text = json.dumps(header if replaced is None else replaced).encode()
        return struct.pack("<Q", len(text)) + text + raw[8 + length :]

    return edit_tensors(folder, change)


def edit_manifest(folder: Path, **changes: Any) -> Path:
    path = folder / MANIFEST
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))
    return folder
