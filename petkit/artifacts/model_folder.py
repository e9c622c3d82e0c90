"""The folder of a tagger or a translator: its tensors and `petkit.json`, which says their hash."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from petkit.artifacts.dense import to_raw
from petkit.artifacts.files import write_folder
from petkit.artifacts.packed import PackedMatrix
from petkit.artifacts.reader import CONFIG, MANIFEST, pair_faults, small_file, split_tensors
from petkit.artifacts.strict_json import parse_json
from petkit.artifacts.tensor_file import RawTensor, read_tensor_file
from petkit.artifacts.writer import check_output, tensor_bytes
from petkit.configuration import dump_yaml
from petkit.errors import ArtifactError

if TYPE_CHECKING:
    import torch

VOCABULARY = "vocabulary.json"
MAX_VOCABULARY = 256 * 2**20


def write_model_folder(
    folder: str | os.PathLike[str],
    manifest: BaseModel,
    settings: Mapping[str, Any],
    weights: str,
    packed: Mapping[str, PackedMatrix],
    dense: Mapping[str, torch.Tensor],
    files: Mapping[str, bytes],
) -> Path:
    """Write a folder, whole or not at all.

    Args:
        folder: final name.
        manifest: what it is; its `tensors_sha256` is replaced by that of the file written here.
        settings: the resolved recipe, for config.yaml.
        weights: name of the tensor file.
        packed: quantised matrices by module name.
        dense: other tensors by name.
        files: further files by name, such as the vocabulary.

    Returns:
        The folder.

    Raises:
        ArtifactError: the tensors contradict each other.
        InputError: the folder is not empty, or cannot be written.
    """
    path = Path(folder)
    tensors = tensor_bytes(packed, {name: to_raw(tensor) for name, tensor in dense.items()})
    complete = manifest.model_copy(update={"tensors_sha256": hashlib.sha256(tensors).hexdigest()})
    content = complete.model_dump(mode="json")
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    own = {MANIFEST: text.encode(), CONFIG: dump_yaml(settings).encode(), weights: tensors}
    check_output(path)
    write_folder(path, {**files, **own})
    return path


def read_model_tensors(
    folder: Path, weights: str, stated_sha256: str | None, kind: str
) -> tuple[dict[str, PackedMatrix], dict[str, RawTensor]]:
    """Read the tensors of a folder.

    Args:
        folder: the artifact.
        weights: name of the tensor file.
        stated_sha256: of that file, by `petkit.json`.
        kind: what the folder holds, for messages.

    Returns:
        Packed matrices by module name, and the other tensors by name.

    Raises:
        ArtifactError: the file is missing, damaged, or not the one of the manifest.
    """
    try:
        content = read_tensor_file(folder, weights)
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} has no {weights}: the {kind} was not finished, or not copied whole"
        ) from None
    packed, dense = split_tensors(content, str(folder), weights)
    if content.sha256() != stated_sha256:
        raise ArtifactError(
            f"{folder / weights} has sha256 {content.sha256()}, {MANIFEST} says {stated_sha256}: "
            "the file was altered or exchanged"
        )
    faults = pair_faults(packed, dense)
    if faults:
        raise ArtifactError(f"{folder}: {'; '.join(faults[:4])}")
    return packed, dense


def read_vocabulary(folder: Path) -> Any | None:
    """The content of vocabulary.json; None where there is none.

    Raises:
        ArtifactError: it is not valid JSON, or too large.
    """
    try:
        return parse_json(small_file(folder, VOCABULARY, MAX_VOCABULARY))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{folder / VOCABULARY} is not valid JSON: {str(error)[:200]}") from error
