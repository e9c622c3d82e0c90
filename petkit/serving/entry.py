"""One adapter of a bank: what is read from its folder, what is refused, and the head that is kept."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from petkit.artifacts import Artifact, PackedMatrix, Task
from petkit.errors import InputError
from petkit.methods.binary_adapter.recorded import read_checked
from petkit.models.config import AdapterConfig
from petkit.models.inserts import Site
from petkit.models.loaded import LoadedModel
from petkit.models.loading import check_filled
from petkit.ops import lowbit_linear
from petkit.serving.own_layers import OwnHead, Shapes, make_own_head, own_shapes


@dataclass(frozen=True, eq=False, slots=True)
class DenseHead:
    """A float32 classifier: weight (classes, features), bias (classes,)."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, features: Tensor) -> Tensor:
        """Map features (samples, features) to logits (samples, classes)."""
        return functional.linear(features, self.weight, self.bias)

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


@dataclass(frozen=True, eq=False, slots=True)
class BinaryHead:
    """A 1-bit classifier, computed from its packed bits."""

    packed: Tensor
    shift: Tensor
    scale: Tensor
    bits: int
    kind: str

    def __call__(self, features: Tensor) -> Tensor:
        """Map features (samples, features) to logits (samples, classes)."""
        return lowbit_linear(features, self.packed, self.shift, self.scale, self.bits, self.kind)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, shift and scale."""
        return self.packed.nbytes + self.shift.nbytes + self.scale.nbytes


@dataclass(frozen=True, eq=False, slots=True)
class Entry:
    """An adapter of the bank.

    Args:
        name: its name in requests.
        slot: its place in every site's bank.
        head: its classifier.
        task: what its classes are and how its inputs are prepared.
    """

    name: str
    slot: int
    head: DenseHead | BinaryHead | OwnHead
    task: Task


@dataclass(frozen=True)
class Shape:
    """What all adapters of a bank have in common.

    Args:
        base: the frozen model.
        config: method, bits, bottleneck, codebook.
        task: what the heads predict.
        pooling: the recipe's model.pooling; None is the base's own.
        sites: places of the adapters, in the model's order.
        source: what told all this, for messages.
        own: shapes of the last layers that every adapter brings, as `own_shapes` gives them; none where
            the adapters have a linear head.
        classes: rows of the classifier that the base was loaded with.
    """

    base: LoadedModel
    config: AdapterConfig
    task: str
    pooling: str | None
    sites: tuple[Site, ...]
    source: str = "the bank"
    own: Shapes = field(default_factory=dict)
    classes: int = 1

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Shape (out, in) of every adapter matrix by module name."""
        hidden = self.config.bottleneck
        shapes = {}
        for site in self.sites:
            shapes[f"{site.name}.down"] = (hidden, site.in_features)
            shapes[f"{site.name}.up"] = (site.out_features, hidden)
        return shapes


def read_for(shape: Shape, name: str, folder: str | os.PathLike[str]) -> Artifact:
    """Read an adapter and refuse it by name when it does not belong into the bank.

    Args:
        shape: what the bank holds.
        name: the adapter's name, for messages.
        folder: its artifact.

    Returns:
        The artifact.

    Raises:
        ArtifactError: the artifact is damaged.
        InputError: another base, task, image size, method, codebook, bit width or shape, or 32-bit weights.
    """
    artifact = read_checked(Path(folder))
    fault = _base_fault(shape, artifact) or _adapter_fault(shape, artifact) or _head_fault(shape, artifact)
    if fault:
        raise InputError(f"adapter {name}: {fault}")
    check_filled(artifact.raw_dense, artifact.folder, shape.base)
    return artifact


def _base_fault(shape: Shape, artifact: Artifact) -> str | None:
    manifest, base = artifact.manifest, shape.base
    if manifest.base.sha256 is None:
        return "base.sha256 must be recorded, got none: convert it again with `petkit convert --base MODEL`"
    if manifest.base.sha256 != base.base_sha256:
        return (
            f"base.sha256 must be {base.base_sha256} of {base.base_id}, got {manifest.base.sha256} of "
            f"{manifest.base.id}: it was trained on another model"
        )
    if manifest.task is None or manifest.task.type != shape.task:
        return _other(shape, "task", shape.task, manifest.task.type if manifest.task else None)
    size = None if base.preprocess is None else base.preprocess["image_size"]
    own = manifest.task.preprocess.image_size if manifest.task.preprocess else size
    if own != size:
        return _other(shape, "image_size", size, own)
    pooling = manifest.model.get("pooling")
    if pooling != shape.pooling:
        return _other(shape, "model.pooling", shape.pooling, pooling)
    return None


def _other(shape: Shape, key: str, wanted: object, got: object) -> str:
    return f"{key} must be {wanted} as in {shape.source}, got {got}"


def _adapter_fault(shape: Shape, artifact: Artifact) -> str | None:
    adapter, wanted = artifact.manifest.adapter, shape.config
    if adapter.get("bits", wanted.bits) == 32 and wanted.method != "linear_probe":
        hint = f"run `petkit quantize {artifact.folder} --bits 1 -o OUT` first"
        return f"adapters must be packed, got 32 bits: {hint}"
    for key in ("method", "bits", "codebook", "bottleneck"):
        own, common = adapter.get(key, getattr(wanted, key)), getattr(wanted, key)
        if own != common and not (wanted.method == "linear_probe" and key != "method"):
            return _other(shape, f"adapter.{key}", common, own)
    given = {name: matrix.shape for name, matrix in artifact.packed.items() if name != "head"}
    return _rank_fault(given) or _shape_fault(shape, given)


def _rank_fault(given: Mapping[str, tuple[int, int]]) -> str | None:
    ranks = sorted({rows for name, (rows, _) in given.items() if name.endswith(".down")})
    if len(ranks) < 2:
        return None
    return (
        f"its places have different ranks ({', '.join(map(str, ranks))}), and a bank holds one: use it alone"
    )


def _shape_fault(shape: Shape, given: Mapping[str, tuple[int, int]]) -> str | None:
    wanted = shape.matrices()
    for name in [*wanted, *given]:
        if name not in given:
            return f"{name} must be there as in {shape.source}, got none"
        if name not in wanted:
            return f"{name} must not be there: {shape.source} has no adapter in this place"
        if wanted[name] != given[name]:
            return _other(shape, f"the shape of {name}", wanted[name], given[name])
    return None


def _head_fault(shape: Shape, artifact: Artifact) -> str | None:
    given = own_shapes(artifact)
    for name in sorted({*shape.own, *given}):
        if name not in given:
            return f"{name} must be there as in {shape.source}, got none"
        if name not in shape.own:
            return f"{name} must not be there: {shape.source} brings no such layer"
        if shape.own[name] != given[name]:
            return _other(shape, f"the shape of {name}", _shown(shape.own[name]), _shown(given[name]))
    if given and not any(-1 in sizes for sizes in given.values()):
        return "task.classes must name the classes, got none: convert it again"
    if given or "head" in artifact.packed or "head.weight" in artifact.raw_dense:
        return None
    if shape.pooling != "own":
        return "head.weight must be there, got no head"
    # The base's own classifier, which has as many classes for all.
    count = len(artifact.manifest.task.classes) if artifact.manifest.task else 0
    return None if count == shape.classes else _other(shape, "the number of classes", shape.classes, count)


def _shown(sizes: tuple[int, ...]) -> str:
    return f"({', '.join('classes' if size < 0 else str(size) for size in sizes)})"


def make_head(artifact: Artifact, device: torch.device) -> DenseHead | BinaryHead | OwnHead:
    """The classifier of an artifact.

    Args:
        artifact: with `head` packed, with `head.weight` and perhaps `head.bias` dense, or with the last
            layers of a transformers classifier.
        device: where to.

    Returns:
        The head.

    Raises:
        KeyError: the artifact has no head; `read_for` refuses those.
    """
    matrix: PackedMatrix | None = artifact.packed.get("head")
    if matrix is not None:
        shift, scale = torch.tensor([matrix.shift, matrix.scale], dtype=torch.float32, device=device)
        return BinaryHead(matrix.rows().to(device), shift, scale, matrix.bits, matrix.kind)
    if "head.weight" not in artifact.raw_dense:
        return make_own_head(artifact, device)
    bias = artifact.dense.get("head.bias")
    return DenseHead(
        artifact.dense["head.weight"].to(device, torch.float32),
        None if bias is None else bias.to(device, torch.float32),
    )
