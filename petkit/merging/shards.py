"""The files of a model folder's weights, and where each tensor lies in them. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from petkit.artifacts.paths import PICKLE_SUFFIXES, check_relative, refuse_pickle
from petkit.artifacts.reader import small_file
from petkit.artifacts.strict_json import parse_json
from petkit.artifacts.tensor_file import Place, locate_tensors
from petkit.errors import ArtifactError, InputError, SafetyError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_INDEX = 64 * 2**20


def located(folder: Path) -> dict[str, tuple[str, Place]]:
    """Where the tensors of a model are.

    Args:
        folder: with model.safetensors, an index of shards, or a single safetensors file of another name.

    Returns:
        File and place by the tensor's name.

    Raises:
        ArtifactError: a file is damaged, a shard is missing, or the index names what is not there.
        InputError: there is no such folder, or it holds no safetensors.
        SafetyError: a pickle, or a path that leads out of the folder.
    """
    if not folder.is_dir():
        raise InputError(f"expected a model folder, {folder} is {'a file' if folder.exists() else 'missing'}")
    return _indexed(folder) if (folder / INDEX).exists() else _single(folder)


def _single(path: Path) -> dict[str, tuple[str, Place]]:
    files = [SINGLE] if (path / SINGLE).exists() else sorted(one.name for one in path.glob("*.safetensors"))
    if len(files) != 1:
        pickles = sorted(one for one in path.iterdir() if one.suffix in PICKLE_SUFFIXES)
        if not files and pickles:
            raise refuse_pickle(pickles[0])
        found = f"{len(files)} safetensors files and no {INDEX}" if files else "no safetensors file"
        raise InputError(f"{path} must hold {SINGLE} or {INDEX} with its shards, it holds {found}")
    return {tensor: (files[0], place) for tensor, place in locate_tensors(path, files[0]).items()}


def _file_of(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a tensor's file must be a text, got {name!r}")
    return check_relative(name)


def _indexed(path: Path) -> dict[str, tuple[str, Place]]:
    try:
        content: Any = parse_json(small_file(path, INDEX, MAX_INDEX))
        weight_map = content["weight_map"]
        named = {str(tensor): _file_of(file) for tensor, file in weight_map.items()}
    except SafetyError as error:
        raise SafetyError(f"{path / INDEX}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path / INDEX} is no index of shards: {str(error)[:200]}") from error
    shards: dict[str, dict[str, Place]] = {}
    for file in dict.fromkeys(named.values()):
        try:
            shards[file] = locate_tensors(path, file)
        except FileNotFoundError:
            lost = sum(other == file for other in named.values())
            raise ArtifactError(
                f"{path / file} is missing, {lost} of the {len(named)} tensors of {INDEX} are in it"
            ) from None
    for tensor, file in named.items():
        if tensor not in shards[file]:
            raise ArtifactError(f"{path / INDEX} says that {tensor} is in {file}, which has no such tensor")
    return {tensor: (file, shards[file][tensor]) for tensor, file in named.items()}
