"""Writing an artifact folder: all of it, or nothing under the final name."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petkit.artifacts.dense import to_raw
from petkit.artifacts.files import atomic_write, write_folder
from petkit.artifacts.manifest import Manifest
from petkit.artifacts.packed import PackedMatrix
from petkit.artifacts.paths import check_relative
from petkit.artifacts.reader import (
    CONFIG,
    FORMAT,
    MANIFEST,
    TENSORS,
    manifest_faults,
    pair_faults,
    split_tensors,
)
from petkit.artifacts.run_directory import (
    RunDirectory,
    refuse_foreign,
    refuse_locked,
    refuse_unwritable,
)
from petkit.artifacts.tensor_file import RawTensor, TensorFile, serialize_tensor_file
from petkit.errors import ArtifactError, InputError

if TYPE_CHECKING:
    import torch


def write_artifact(
    folder: str | os.PathLike[str],
    *,
    manifest: Manifest,
    config: Mapping[str, Any],
    packed: Mapping[str, PackedMatrix],
    dense: Mapping[str, torch.Tensor | np.ndarray[Any, Any]],
    extra_files: Mapping[str, bytes | str] = {},
    overwrite: bool = False,
    run: RunDirectory | None = None,
) -> Path:
    """Write an artifact folder. The same arguments give the same bytes.

    Args:
        folder: final name. It may exist when it is empty, when `overwrite` is set and petkit wrote it, or it
            is the directory of `run`.
        manifest: its `tensors_sha256` is replaced by that of the file written here.
        config: the resolved configuration, for `config.yaml`.
        packed: quantised matrices by module name (`<site>.down`, `<site>.up`, or `head`).
        dense: other tensors by name: F32, F16 or BF16.
        extra_files: further files by relative path, such as `README.md` or `plots/loss.png`.
        overwrite: replace an artifact that is already there.
        run: the open run whose directory `folder` is. Its files stay; the artifact's are put beside them one
            by one, `petkit.json` last, so that the folder is an artifact only when it is complete.

    Returns:
        The folder.

    Raises:
        ArtifactError: the parts contradict each other.
        InputError: the folder is not empty, is in use by a run, or cannot be written (a full disk, say).
        SafetyError: a name that is no plain name.
    """
    path = Path(folder)
    files = _contents(manifest, config, packed, dense, extra_files)
    if run is not None:
        _write_into_run(run, path, files)
        return path
    check_output(path, overwrite)
    write_folder(path, files)
    return path


def check_output(folder: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Refuse what `write_artifact` would refuse as its folder; nothing is changed.

    Args:
        folder: final name.
        overwrite: an artifact that is already there would be replaced.

    Raises:
        InputError: the folder is not empty, is in use by a run, is a file, cannot be made, or holds what
            petkit did not write.
    """
    path = Path(folder)
    refuse_locked(path)
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise InputError(
                f"output folder {path} is not empty: choose another, or --overwrite to replace it"
            )
        refuse_foreign(path)
    elif path.exists() and not path.is_dir():
        raise InputError(f"output {path} must be a folder, it is a file")
    refuse_unwritable(path)


def _write_into_run(run: RunDirectory, path: Path, files: Mapping[str, bytes]) -> None:
    if path.resolve() != run.path.resolve():
        raise InputError(
            f"the run owns {run.path}, the artifact was to go to {path}: they must be the same folder"
        )
    with suppress(FileNotFoundError):
        (path / MANIFEST).unlink()
    for name in sorted(files, key=lambda name: name == MANIFEST):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path / name, files[name])


def _contents(
    manifest: Manifest,
    config: Mapping[str, Any],
    packed: Mapping[str, PackedMatrix],
    dense: Mapping[str, Any],
    extra_files: Mapping[str, bytes | str],
) -> dict[str, bytes]:
    from petkit.configuration import dump_yaml

    tensors = tensor_bytes(packed, {name: to_raw(tensor) for name, tensor in dense.items()}, manifest)
    complete = manifest.model_copy(update={"tensors_sha256": hashlib.sha256(tensors).hexdigest()})
    files = {check_relative(name): _as_bytes(content) for name, content in extra_files.items()}
    own = {TENSORS: tensors, CONFIG: dump_yaml(config).encode(), MANIFEST: complete.to_json().encode()}
    for name in own:
        if name in files:
            raise ArtifactError(f"extra_files must not hold {name}, the artifact's own file")
    return files | own


def tensor_bytes(
    packed: Mapping[str, PackedMatrix], dense: Mapping[str, RawTensor], manifest: Manifest | None = None
) -> bytes:
    """Return the canonical bytes of `adapter_packed.safetensors`.

    Args:
        packed: quantised matrices by module name.
        dense: other tensors by name.
        manifest: checked against the tensors when it is given.

    Raises:
        ArtifactError: the tensors contradict each other or the manifest: the reader would refuse them.
    """
    metadata = {"format": FORMAT}
    tensors = dict(dense)
    for module, matrix in packed.items():
        metadata[f"{module}.bits"] = f"{matrix.bits} {matrix.kind} {matrix.shape[0]}x{matrix.shape[1]}"
        tensors[f"{module}.bits"] = RawTensor("U8", (matrix.stream.size,), matrix.stream)
        for part, value in (("shift", matrix.shift), ("scale", matrix.scale)):
            data = np.frombuffer(struct.pack("<f", value), dtype=np.uint8)
            tensors[f"{module}.{part}"] = RawTensor("F32", (), data)
    read_packed, read_dense = split_tensors(
        TensorFile(tensors, metadata, b"", np.empty(0, np.uint8)), "new artifact"
    )
    faults = pair_faults(read_packed, read_dense)
    faults += manifest_faults(manifest, read_packed, read_dense) if manifest else []
    if faults:
        raise ArtifactError(f"refused to write an artifact that cannot be read back: {'; '.join(faults[:4])}")
    return serialize_tensor_file(tensors, metadata)


def _as_bytes(content: bytes | str) -> bytes:
    return content.encode("utf-8") if isinstance(content, str) else bytes(content)
