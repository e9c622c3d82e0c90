"""From an artifact with 32-bit adapters to one with packed ones: quantise, write, read back, compare."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from petkit.artifacts import (
    Artifact,
    Check,
    Manifest,
    PackedMatrix,
    read_artifact,
    step,
    write_artifact,
)
from petkit.artifacts.reader import TENSORS
from petkit.errors import InputError
from petkit.quantization.config import QuantizationConfig
from petkit.quantization.errors import MatrixError, matrix_error
from petkit.quantization.ledger import Ledger, make_ledger
from petkit.quantization.nearest import nearest
from petkit.quantization.refit import least_squares


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantised adapter in memory.

    Args:
        settings: how it was made.
        manifest: the new `petkit.json`, its lineage one step longer.
        config: the new `config.yaml`.
        packed: quantised matrices by module name.
        dense: tensors that stay as they are, such as the head.
        errors: what each matrix lost, in the order of the file.
    """

    settings: QuantizationConfig
    manifest: Manifest
    config: dict[str, Any]
    packed: dict[str, PackedMatrix]
    dense: dict[str, Tensor]
    errors: tuple[MatrixError, ...]


def adapter_matrices(source: Artifact) -> dict[str, Tensor]:
    """The 32-bit adapter matrices of an artifact.

    Args:
        source: the artifact.

    Returns:
        Module name (`<site>.down`, `<site>.up`) -> float32 (out, in).

    Raises:
        InputError: the adapters are quantised already, or there are none.
    """
    done = sorted(name for name in source.packed if name != "head")
    if done:
        bits = source.packed[done[0]].bits
        raise InputError(
            f"{source.folder} must hold 32-bit adapters, its adapters are {bits}-bit already: "
            "quantise the 32-bit artifact again, codes of codes lose more"
        )
    matrices = {
        name.removesuffix(".weight"): tensor.float()
        for name, tensor in source.dense.items()
        if name.endswith((".down.weight", ".up.weight"))
    }
    if not matrices:
        raise InputError(
            f"{source.folder} must hold 32-bit adapters, it has none: there is nothing to quantise"
        )
    return matrices


def quantize_artifact(
    source: Artifact, settings: QuantizationConfig, second_moments: Mapping[str, Tensor] | None = None
) -> Quantized:
    """Quantise every adapter matrix of an artifact; head and other tensors stay as they are.

    Args:
        source: an artifact with 32-bit adapters.
        settings: bits, method and codebook.
        second_moments: module name -> (in, in) of calibration inputs; used by least_squares, and for the
            error of the outputs.

    Returns:
        The quantised adapter in memory.

    Raises:
        InputError: quantised adapters already, no adapters, or weights that are not finite.

    Source:
        Jie, Wang and Deng (2023), quantisation after training, the paper's baseline.
    """
    matrices = adapter_matrices(source)
    moments = dict(second_moments or {})
    packed: dict[str, PackedMatrix] = dict(source.packed)
    errors = []
    for name, weight in matrices.items():
        try:
            packed[name] = _quantize(weight, settings, moments.get(name))
        except InputError as error:
            raise InputError(f"{source.folder}: {name}: {error}") from error
        errors.append(matrix_error(name, weight, from_numpy(packed[name].dequantize()), moments.get(name)))
    kept = {
        name: tensor for name, tensor in source.dense.items() if name.removesuffix(".weight") not in matrices
    }
    return Quantized(
        settings, _manifest(source, settings), _config(source, settings), packed, kept, tuple(errors)
    )


def write_quantized(
    quantized: Quantized,
    out: str | os.PathLike[str],
    *,
    extra_files: Mapping[str, bytes | str] = {},
    overwrite: bool = False,
) -> tuple[Artifact, list[Check]]:
    """Write a quantised adapter, read it back and compare it with the one in memory.

    Args:
        quantized: what `quantize_artifact` returned.
        out: the new folder.
        extra_files: further files by relative path.
        overwrite: replace an artifact that is there.

    Returns:
        The artifact as read back, and the outcome of the comparison.

    Raises:
        InputError: the folder is not empty or cannot be written.
    """
    folder = write_artifact(
        out,
        manifest=quantized.manifest,
        config=quantized.config,
        packed=quantized.packed,
        dense=quantized.dense,
        extra_files=extra_files,
        overwrite=overwrite,
    )
    reread = read_artifact(folder)
    return reread, [reload_check(quantized, reread)]


def reload_check(quantized: Quantized, reread: Artifact) -> Check:
    """Compare an artifact with what was to be written: every weight that its codes give, and every dense
    tensor.

    Args:
        quantized: what was written.
        reread: what the reader makes of it.

    Returns:
        The check; it holds when all values are equal bit for bit.
    """
    differing = [
        name
        for name, matrix in quantized.packed.items()
        if name not in reread.packed
        or not np.array_equal(matrix.dequantize(), reread.packed[name].dequantize())
    ]
    differing += [
        name
        for name, tensor in quantized.dense.items()
        if name not in reread.dense or not tensor.equal(reread.dense[name])
    ]
    count = len(quantized.packed) + len(quantized.dense)
    detail = f"{count} tensors equal bit for bit after reading back"
    if differing:
        detail = f"{len(differing)} of {count} tensors differ after reading back, first {differing[0]}"
    return Check("reload", not differing, detail)


def artifact_ledger(artifact: Artifact, full_model_bytes: int | None = None) -> Ledger:
    """Count the bytes of an artifact's tensor file.

    Args:
        artifact: the artifact, on disk.
        full_model_bytes: float32 bytes of the whole model with this head; None leaves that ratio out.

    Returns:
        The ledger, its header what the file holds besides tensors.

    Source:
        The file format of petkit (docs/format.md).
    """
    size = (artifact.folder / TENSORS).stat().st_size
    return make_ledger(artifact.packed, artifact.raw_dense, size, full_model_bytes)


def gate_checks(errors: Sequence[MatrixError], max_error: float | None) -> list[Check]:
    """Hold the errors against a limit.

    Args:
        errors: one a matrix.
        max_error: the largest relative error allowed, of the outputs where calibration inputs gave them,
            else of the weights; None sets no limit.

    Returns:
        One check, or none without a limit.
    """
    if max_error is None:
        return []
    worst = max(errors, key=_measured)
    verdict = "at most" if _measured(worst) <= max_error else "above"
    detail = f"largest relative error {_measured(worst):.4f} ({worst.name}) is {verdict} {max_error:g}"
    return [Check("max-error", _measured(worst) <= max_error, detail)]


def _measured(error: MatrixError) -> float:
    return error.relative_error if error.output_error is None else error.output_error


def _quantize(weight: Tensor, settings: QuantizationConfig, second_moment: Tensor | None) -> PackedMatrix:
    if settings.method == "nearest":
        return nearest(weight, settings.bits, settings.codebook)
    return least_squares(weight, settings.bits, settings.codebook, second_moment, settings.rounds)


def _manifest(source: Artifact, settings: QuantizationConfig) -> Manifest:
    inputs = {"adapter": source.manifest.tensors_sha256} if source.manifest.tensors_sha256 else {}
    done = step("quantize", settings.model_dump(mode="json"), inputs)
    adapter = source.manifest.adapter | {"bits": settings.bits, "codebook": settings.codebook}
    lineage = (*source.manifest.lineage, done)
    return source.manifest.model_copy(update={"adapter": adapter, "lineage": lineage, "tensors_sha256": None})


def _config(source: Artifact, settings: QuantizationConfig) -> dict[str, Any]:
    config = source.config
    if "adapter" not in config:
        # What another command than a training run wrote is no recipe, so that a section of our own can
        # stand beside it.
        return {**config, "quantize": settings.model_dump(mode="json")}
    return {**config, "adapter": {**config["adapter"], "bits": settings.bits, "codebook": settings.codebook}}
