"""`petkit convert` without its command line: read a foreign adapter, write it, see that nothing was lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from petkit.artifacts import peft_export, peft_lora, petl_vit
from petkit.artifacts.checks import Check, write_checks
from petkit.artifacts.manifest import Manifest
from petkit.artifacts.packed import PackedMatrix
from petkit.artifacts.paths import looks_like_pickle, refuse_pickle
from petkit.artifacts.pickled import read_pickled_tensors
from petkit.artifacts.provenance import file_sha256, step
from petkit.artifacts.reader import Artifact, read_artifact
from petkit.artifacts.tensor_file import RawTensor
from petkit.artifacts.writer import staged_artifact, write_artifact
from petkit.errors import InputError

PICKLED = "adapter_model.bin"


@dataclass(frozen=True)
class Imported:
    """A foreign adapter, ready to be written as an artifact.

    Args:
        manifest: without lineage and hash.
        packed: quantised matrices by module name.
        dense: other tensors by name.
        inputs: SHA-256 of the files it was read from, by name.
        same: tells whether an artifact, written back in the foreign format, is what was read.
    """

    manifest: Manifest
    packed: dict[str, PackedMatrix]
    dense: dict[str, np.ndarray[Any, Any]]
    inputs: dict[str, str]
    same: Callable[[Artifact], bool] = field(repr=False)


def import_petl_vit(path: Path, config: Path | None = None) -> Imported:
    """Read a PETL-ViT checkpoint.

    Args:
        path: the `.bin` file.
        config: its YAML file; default: the one of the same name beside it.

    Returns:
        The adapter, in the bits it has.

    Raises:
        ArtifactError: the length does not fit the YAML, or a value is not finite.
        ConfigError: the YAML is broken or does not describe such a checkpoint.
        InputError: a file is missing.
        SafetyError: the file is a pickle.
    """
    from petkit.configuration import load_yaml

    yaml = config or path.with_suffix(".yaml")
    if not path.is_file():
        raise InputError(
            f"expected a PETL-ViT checkpoint, {path} is {'no file' if path.exists() else 'missing'}"
        )
    if not yaml.is_file():
        with path.open("rb") as file:
            if looks_like_pickle(file.read(32)):
                raise refuse_pickle(path)
        raise InputError(
            f"{path} needs the YAML file that was trained with it, {yaml} is missing: --config FILE"
        )
    settings = petl_vit.parse_settings(load_yaml(yaml).data, str(yaml))
    packed, dense = petl_vit.read_checkpoint(path, settings)
    original = path.read_bytes()
    return Imported(
        petl_vit.to_manifest(settings),
        packed,
        dict(dense),
        {path.name: file_sha256(path), yaml.name: file_sha256(yaml)},
        lambda artifact: petl_vit.write_checkpoint(artifact, petl_vit.export_settings(artifact)) == original,
    )


def import_peft(path: Path, allow_pickle: bool = False, task: str | None = None) -> Imported:
    """Read a PEFT LoRA folder.

    Args:
        path: the folder, or a file in it.
        allow_pickle: read `adapter_model.bin`, if there is no safetensors file, in a child process.
        task: what the model is for, where the folder does not say it.

    Returns:
        The adapter with 32-bit weights.

    Raises:
        ArtifactError: the files are damaged or contradict each other.
        InputError: no such folder, or a PEFT feature that petkit cannot keep; the message names it.
        SafetyError: a pickle without `allow_pickle`, or a path that leaves the folder.
    """
    folder = path.parent if path.is_file() else path
    if not folder.is_dir():
        raise InputError(f"expected a PEFT folder, {path} is missing")
    name, tensors = _peft_tensors(folder, allow_pickle)
    adapter = peft_lora.read_adapter(folder, tensors, task)
    files = [folder / peft_lora.CONFIG_FILE, folder / name]

    def same(artifact: Artifact) -> bool:
        return _equal(peft_export.export_adapter(artifact).tensors, tensors)

    return Imported(adapter.manifest, {}, dict(adapter.dense), {f.name: file_sha256(f) for f in files}, same)


def _peft_tensors(folder: Path, allow_pickle: bool) -> tuple[str, dict[str, RawTensor]]:
    if (folder / peft_lora.TENSOR_FILE).exists() or not (folder / PICKLED).exists():
        return peft_lora.TENSOR_FILE, peft_lora.read_tensors(folder)
    if not allow_pickle:
        raise refuse_pickle(folder / PICKLED)
    return PICKLED, read_pickled_tensors(folder / PICKLED)


def _equal(written: Mapping[str, RawTensor], read: Mapping[str, RawTensor]) -> bool:
    """Compare tensors by value: mixed dtypes come back as float32, which holds the others exactly."""
    from petkit.artifacts.dense import to_float32

    return written.keys() == read.keys() and all(
        np.array_equal(to_float32(written[name]), to_float32(read[name])) for name in read
    )


def with_base(
    imported: Imported, model: Mapping[str, Any] | None, sha256: str | None, classes: Sequence[str] = ()
) -> Imported:
    """Return the adapter with what is known of its base model.

    Args:
        imported: the adapter.
        model: a `model:` section that finds the base; None keeps the one of the foreign file.
        sha256: hash of the base's weights.
        classes: names of the classes, which a foreign file does not tell; none keep their numbers.

    Returns:
        A copy.
    """
    manifest, update = imported.manifest, {"sha256": sha256}
    if model is not None and model["name"] != manifest.base.id:
        update |= {"id": model["name"], "revision": None}
    base = manifest.base.model_copy(update=update)
    section = {key: value for key, value in (model or manifest.model).items() if value is not None}
    task = manifest.task
    if task is not None and classes:
        task = task.model_copy(update={"classes": tuple(classes)})
    update_all = {"base": base, "model": section, "task": task}
    return replace(imported, manifest=manifest.model_copy(update=update_all))


def write_imported(
    imported: Imported, out: str | os.PathLike[str], overwrite: bool = False
) -> tuple[Artifact, list[Check]]:
    """Write the artifact, reload it, write it back in memory, and compare with what was read.

    Args:
        imported: the adapter.
        out: the artifact's folder.
        overwrite: replace an artifact that is there.

    Returns:
        The artifact as read back, and the check, which is in its `checks.json` too.

    Raises:
        InputError: the folder is not empty.
        PetkitError: it cannot be written; nothing is left under its name.
    """
    source = imported.manifest.source
    config = {"convert": {"from": source.format if source else "", "inputs": imported.inputs}}
    manifest = imported.manifest.model_copy(update={"lineage": (step("convert", config, imported.inputs),)})
    with staged_artifact(out, overwrite) as stage:
        write_artifact(stage, manifest=manifest, config=config, packed=imported.packed, dense=imported.dense)
        artifact = replace(read_artifact(stage), folder=Path(out))
        same = imported.same(artifact)
        detail = (
            "written back, it is what was read" if same else "written back, it differs from what was read"
        )
        checks = [Check("round trip", same, detail)]
        write_checks(stage, checks)
    return artifact, checks
