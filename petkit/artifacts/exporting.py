"""`petkit export` without its command line: write an artifact in a foreign format and read it back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from petkit.artifacts import peft_export, peft_lora, petl_vit
from petkit.artifacts.checks import Check
from petkit.artifacts.dense import to_float32
from petkit.artifacts.files import atomic_write_all, write_folder
from petkit.artifacts.paths import check_name
from petkit.artifacts.peft_config import parse_config, scaling_of
from petkit.artifacts.reader import Artifact
from petkit.artifacts.run_directory import refuse_long_names
from petkit.errors import InputError

# The products are made in float64 from the same float32 factors; only the order of the sum can differ.
TOLERANCE = 1e-12


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        paths: the files.
        notes: what the user should know of the result.
        checks: comparison of the files, read back, with the artifact.
    """

    paths: tuple[Path, ...]
    notes: tuple[str, ...]
    checks: tuple[Check, ...]


def export_peft(artifact: Artifact, out: str | os.PathLike[str], overwrite: bool = False) -> Exported:
    """Write a LoRA artifact as a PEFT folder.

    Args:
        artifact: with lora adapters.
        out: the folder.
        overwrite: replace a PEFT folder that is there.

    Returns:
        Files, notes and checks.

    Raises:
        InputError: PEFT cannot express the artifact, or the folder cannot be written.
    """
    folder = Path(out)
    refuse_long_names(folder)
    export = peft_export.export_adapter(artifact)
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise InputError(f"output folder {folder} is not empty: choose another, or --overwrite")
        if not (folder / peft_lora.CONFIG_FILE).exists():
            raise InputError(
                f"--overwrite replaces a PEFT folder, and {folder} has no {peft_lora.CONFIG_FILE}"
            )
    elif folder.exists() and not folder.is_dir():
        raise InputError(f"output {folder} must be a folder, it is a file")
    files = export.files()
    write_folder(folder, files)
    return Exported(
        tuple(folder / name for name in files), export.notes, (_same_changes(artifact, folder, export.paths),)
    )


def _same_changes(artifact: Artifact, folder: Path, paths: Mapping[str, str]) -> Check:
    """Compare what each adapter adds to its linear layer, scaling * up @ down, in the files and in memory."""
    raw = (folder / peft_lora.CONFIG_FILE).read_bytes()
    config, tensors = parse_config(raw, peft_lora.CONFIG_FILE), peft_lora.read_tensors(folder)
    worst, layers = 0.0, 0
    for path, expected in _changes(artifact):
        name = f"{peft_lora.PREFIX}{paths[path]}.lora"
        down, up = (to_float32(tensors[f"{name}_{part}.weight"]).astype(np.float64) for part in "AB")
        found = scaling_of(config, paths[path]) * (up @ down)
        worst = max(worst, float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30)))
        layers += 1
    detail = f"{layers} layers change the model by the same matrices, largest relative difference {worst:.1e}"
    return Check("reload", layers > 0 and worst <= TOLERANCE, detail)


def _changes(artifact: Artifact) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield the change of each linear layer's weight, q, k and v of a fused one together."""
    weights = {name: matrix.dequantize() for name, matrix in artifact.packed.items()}
    weights |= {name.removesuffix(".weight"): to_float32(raw) for name, raw in artifact.raw_dense.items()}
    fused: dict[str, NDArray[np.float64]] = {}
    for site in [name.removesuffix(".down") for name in weights if name.endswith(".down")]:
        up, down = (weights[f"{site}.{part}"].astype(np.float64) for part in ("up", "down"))
        change = artifact.manifest.scaling_of(site) * (up @ down)
        path, _, kind = site.rpartition(".")
        if kind == "lora":
            yield path, change
        else:
            whole = fused.setdefault(path, np.zeros((3 * len(change), change.shape[1])))
            row = "qkv".index(kind[-1]) * len(change)
            whole[row : row + len(change)] = change
    yield from fused.items()


def export_petl_vit(artifact: Artifact, out: str | os.PathLike[str], overwrite: bool = False) -> Exported:
    """Write an artifact as a PETL-ViT checkpoint and the YAML file beside it.

    Args:
        artifact: adaptformer or lora of fewer than 32 bits in a ViT-B/16.
        out: a path that ends with .bin, or a folder, which gets the original's file names.
        overwrite: replace files that are there.

    Returns:
        Files, notes and checks.

    Raises:
        InputError: the format cannot hold the artifact, or the files cannot be written.
    """
    from petkit.configuration import dump_yaml

    path = Path(out)
    refuse_long_names(path)
    settings = petl_vit.export_settings(artifact)
    data = petl_vit.write_checkpoint(artifact, settings)
    if path.suffix != ".bin":
        path = path / _file_name(settings)
    yaml = path.with_suffix(".yaml")
    for file in (path, yaml):
        if file.exists() and not overwrite:
            raise InputError(f"output {file} exists: choose another, or --overwrite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {path.parent}: {error.strerror}") from error
    atomic_write_all({path: data, yaml: dump_yaml(settings.to_dict()).encode()})
    packed, _ = petl_vit.read_checkpoint(path, settings)
    same = all(
        np.array_equal(matrix.stream, artifact.packed[name].stream)
        and (matrix.shift, matrix.scale) == (artifact.packed[name].shift, artifact.packed[name].scale)
        for name, matrix in packed.items()
    )
    notes = ("the format names no model weights: use it with the base that the adapter was trained on",)
    return Exported(
        (path, yaml), notes, (Check("reload", same, f"{len(packed)} matrices equal, bit for bit"),)
    )


def _file_name(settings: petl_vit.Settings) -> str:
    method = settings.to_dict()["method"]
    parts = [method, settings.dataset, f"bit{settings.bit}", f"dim{settings.dim}"]
    return check_name("-".join(part for part in parts if part) + ".bin", "the data set's name in a file name")
