"""Writing an artifact folder: all of it, or nothing under the final name."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petkit.artifacts.dense import to_raw
from petkit.artifacts.files import move_into, renamed_errors, staged_folder, write_folder
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
    refuse_long_names,
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
) -> Path:
    """Write an artifact folder. The same arguments give the same bytes.

    Args:
        folder: final name. It may exist when it is empty, or when `overwrite` is set and petkit wrote it.
        manifest: its `tensors_sha256` is replaced by that of the file written here.
        config: the resolved configuration, for `config.yaml`.
        packed: quantised matrices by module name (`<site>.down`, `<site>.up`, or `head`).
        dense: other tensors by name: F32, F16 or BF16.
        extra_files: further files by relative path, such as `README.md` or `plots/loss.png`.
        overwrite: replace an artifact that is already there.

    Returns:
        The folder.

    Raises:
        ArtifactError: the parts contradict each other.
        InputError: the folder is not empty, is in use by a run, or is in a place that cannot be written to.
        PetkitError: it cannot be written (a full disk, say); nothing is left under its name.
        SafetyError: a name that is no plain name.
    """
    path = Path(folder)
    files = _contents(manifest, config, packed, dense, extra_files)
    check_output(path, overwrite)
    write_folder(path, files)
    return path


@contextmanager
def staged_artifact(folder: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Let an artifact be written, read back, checked and added to before it gets its name.

    Args:
        folder: final name, as in `write_artifact`.
        overwrite: replace an artifact that is already there.

    Yields:
        The folder to write to meanwhile, for `write_artifact` and what is put beside it.

    Raises:
        InputError: as `write_artifact`.
        PetkitError: it cannot be written; nothing is left under its name, nor when the body fails.
    """
    check_output(folder, overwrite)
    with staged_folder(folder) as stage:
        yield stage
        # The work may have taken long, and another may have finished here meanwhile.
        check_output(folder, overwrite)


@contextmanager
def staged_in_run(run: RunDirectory) -> Iterator[Path]:
    """Let the artifact of a run be written and checked before the run's directory becomes an artifact.

    Args:
        run: the open run; its other files stay.

    Yields:
        The folder to write to meanwhile. At the end its files are put beside the run's own, `petkit.json`
        last, so that the directory is an artifact only when it is complete.

    Raises:
        PetkitError: it cannot be written; the directory is then no artifact.
    """
    temporary = run.path / ".artifact.partial"
    # The folder's own name is its last part, for messages that speak of the artifact by name.
    stage = temporary / run.path.resolve().name
    # A process that was killed cannot tidy up.
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with renamed_errors(stage, run.path):
            yield stage
            move_into(stage, run.path, last=MANIFEST)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    refuse_long_names(path)
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
