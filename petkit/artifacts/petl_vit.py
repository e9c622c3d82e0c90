"""The `.bin` files of PETL-ViT's low-bit adapters: packed codes without names, kept byte for byte.

Layout, for a ViT-B/16 of 12 blocks: for each matrix its codes in row-major order, least significant bits
first, then the mean and the standard deviation as float32. The matrices come in the order of the model's
modules: in each block `down`, `up` of AdaptFormer, or q `down`, q `up`, v `down`, v `up` of LoRA. Last comes
the head: weight and bias in float32, or, for `bihead`, one more matrix of 1 bit. Everything is little-endian;
shapes and the scale are in a YAML file beside it.

Source: Jie, Wang, Deng 2023 (arXiv 2307.16867) and its published checkpoints.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petkit.artifacts.manifest import Base, Manifest, Preprocess, Source, Task
from petkit.artifacts.packed import BITS, PackedMatrix, stream_length
from petkit.artifacts.paths import looks_like_pickle, refuse_pickle
from petkit.artifacts.reader import Artifact, module_shapes
from petkit.errors import ArtifactError, ConfigError, InputError

WIDTH = 768
BLOCKS = 12
CODEBOOK = "petl_vit"
# The original loads Google's ViT-B_16.npz under the name on the left, which timm has since given a tag.
BACKBONES = {"vit_base_patch16_224_in21k": "timm/vit_base_patch16_224.orig_in21k"}
IMAGES = Preprocess(image_size=224, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bicubic")
SITES = {"adaptformer": ("adaptformer",), "lora": ("attn.qkv.lora_q", "attn.qkv.lora_v")}
MAX_CLASSES = 100_000


@dataclass(frozen=True)
class Settings:
    """What the YAML file beside a checkpoint says.

    Args:
        method: `adaptformer` or `lora`.
        binary_head: the head is one 1-bit matrix without bias.
        bit: bits of a weight: 1, 2, 4 or 8.
        dim: width of the bottleneck.
        num_class: rows of the head.
        scale: factor on the adapter's output.
        backbone: name of the frozen model.
        dataset: name of the data set.
    """

    method: str
    binary_head: bool
    bit: int
    dim: int
    num_class: int
    scale: float
    backbone: str = "vit_base_patch16_224_in21k"
    dataset: str = ""

    def matrices(self) -> Iterator[tuple[str, tuple[int, int], int]]:
        """Yield name, shape (out, in) and bits of each matrix in the order of the file."""
        for block in range(BLOCKS):
            for site in SITES[self.method]:
                yield f"blocks.{block}.{site}.down", (self.dim, WIDTH), self.bit
                yield f"blocks.{block}.{site}.up", (WIDTH, self.dim), self.bit
        if self.binary_head:
            yield "head", (self.num_class, WIDTH), 1

    def size(self) -> int:
        """Return the size of the checkpoint in bytes."""
        codes = sum(stream_length(shape, bits) + 8 for _, shape, bits in self.matrices())
        return codes + (0 if self.binary_head else 4 * self.num_class * (WIDTH + 1))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings under the names of the original's YAML, in its alphabetical order."""
        method = f"{self.method}-bihead" if self.binary_head else self.method
        named = {"backbone": self.backbone, "bit": self.bit, "dataset": self.dataset, "dim": self.dim}
        return {**named, "method": method, "num_class": self.num_class, "scale": self.scale}


def parse_settings(content: Mapping[str, Any], where: str) -> Settings:
    """Read the YAML file beside a checkpoint.

    Args:
        content: keys method, bit, dim, num_class, scale; and, optionally, backbone and dataset.
        where: its name, for messages.

    Returns:
        The settings.

    Raises:
        ConfigError: a key is missing, unknown, or holds a value that no such checkpoint has.
    """
    known = {"method", "bit", "dim", "num_class", "scale", "backbone", "dataset"}
    missing, unknown = sorted(known - {"backbone", "dataset"} - set(content)), sorted(set(content) - known)
    if missing or unknown:
        raise ConfigError(
            f"{where} must have the keys {', '.join(sorted(known))}; missing {missing}, unknown {unknown}"
        )
    method, _, head = str(content["method"]).partition("-")
    backbone = str(content.get("backbone", "vit_base_patch16_224_in21k"))
    if method not in SITES or head not in ("", "bihead"):
        raise ConfigError(
            f"{where}: method must be adaptformer or lora, or either with -bihead, got {content['method']!r}"
        )
    if backbone not in BACKBONES:
        raise ConfigError(f"{where}: backbone must be {' or '.join(BACKBONES)}, got {backbone!r}")
    numbers = {key: _whole(content[key], f"{where}: {key}", top) for key, top in _LIMITS.items()}
    if numbers["bit"] not in BITS:
        raise ConfigError(
            f"{where}: bit must be 1, 2, 4 or 8, got {numbers['bit']} (a 32-bit file holds no adapter)"
        )
    scale = content["scale"]
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < float("inf"):
        raise ConfigError(f"{where}: scale must be a number above 0, got {scale!r}")
    dataset = str(content.get("dataset", ""))
    return Settings(
        method, head == "bihead", **numbers, scale=float(scale), backbone=backbone, dataset=dataset
    )


_LIMITS = {"bit": 8, "dim": 4096, "num_class": MAX_CLASSES}


def _whole(value: Any, what: str, top: int) -> int:
    if type(value) is not int or not 1 <= value <= top:
        raise ConfigError(f"{what} must be a whole number from 1 to {top}, got {value!r}")
    return value


def read_checkpoint(
    path: Path, settings: Settings
) -> tuple[dict[str, PackedMatrix], dict[str, NDArray[np.float32]]]:
    """Read a checkpoint bit for bit.

    Args:
        path: the `.bin` file.
        settings: what its YAML says.

    Returns:
        Packed matrices by module name, and `head.weight` (classes, 768) and `head.bias` (classes,) unless the
        head is binary.

    Raises:
        ArtifactError: its length does not fit the settings, or it holds a value that is not finite.
        SafetyError: it is a pickle.
    """
    raw = _read(path, settings)
    packed, position = {}, 0
    for name, shape, bits in settings.matrices():
        length = stream_length(shape, bits)
        shift, scale = struct.unpack_from("<ff", raw, position + length)
        stream = np.frombuffer(raw, np.uint8, length, position).copy()
        try:
            packed[name] = PackedMatrix(shape, bits, CODEBOOK, shift, scale, stream)
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {name}: {error}") from None
        position += length + 8
    if settings.binary_head:
        return packed, {}
    head = np.frombuffer(raw, "<f4", offset=position).astype(np.float32)
    split = settings.num_class * WIDTH
    return packed, {"head.weight": head[:split].reshape(settings.num_class, WIDTH), "head.bias": head[split:]}


def _read(path: Path, settings: Settings) -> bytes:
    if not path.is_file():
        raise InputError(
            f"expected a PETL-ViT checkpoint, {path} is {'no file' if path.exists() else 'missing'}"
        )
    with path.open("rb") as file:
        # One byte more than expected is enough to see that a file is too long.
        raw = file.read(settings.size() + 1)
    fits = len(raw) == settings.size()
    # Codes may begin like a pickle by chance, but then the length fits and the last byte is no full stop.
    if looks_like_pickle(raw[:32], raw[-1:] if fits else b"."):
        raise refuse_pickle(path)
    if not fits:
        found = path.stat().st_size
        what = ", ".join(f"{key} {value}" for key, value in settings.to_dict().items() if key != "dataset")
        raise ArtifactError(f"{path} has {found} bytes, expected {settings.size()} for {what}")
    return raw


def to_manifest(settings: Settings) -> Manifest:
    """Return the manifest of a converted checkpoint, with numbered classes and no hash of the base."""
    base = BACKBONES[settings.backbone]
    classes = tuple(map(str, range(settings.num_class)))
    adapter = {
        "method": settings.method,
        "bits": settings.bit,
        "bottleneck": settings.dim,
        "scale": settings.scale,
        "codebook": CODEBOOK,
        "head": "binary" if settings.binary_head else "fp32",
    }
    return Manifest(
        base=Base(id=base),
        model={"name": base},
        adapter=adapter | ({"targets": ["q", "v"]} if settings.method == "lora" else {}),
        task=Task(type="image_classification", classes=classes, preprocess=IMAGES),
        source=Source(format="petl-vit", settings=settings.to_dict()),
    )


def export_settings(artifact: Artifact) -> Settings:
    """Return the settings under which an artifact can be written as a PETL-ViT checkpoint.

    Args:
        artifact: any artifact.

    Returns:
        Method, bits, bottleneck, classes and scale.

    Raises:
        InputError: the format cannot hold the artifact; the message names what does not fit.
    """
    adapter, packed = artifact.manifest.adapter, artifact.packed
    method = str(adapter.get("method"))
    if method not in SITES:
        raise InputError(f"petl-vit holds adaptformer and lora adapters, this artifact is {method}")
    if not any(name != "head" for name in packed):
        raise InputError(
            "petl-vit holds adapters of 1, 2, 4 or 8 bits, this one has 32: petkit quantize it first"
        )
    if artifact.manifest.scaling:
        raise InputError("petl-vit has one scale for all sites, in this artifact the sites differ")
    head = module_shapes(packed, artifact.raw_dense).get("head")
    if head is None:
        raise InputError("petl-vit needs a classifier, this artifact has none")
    first = packed.get(f"blocks.0.{SITES[method][0]}.down")
    if first is None:
        raise InputError(
            f"petl-vit expects {method} in blocks.0 of a ViT-B/16 with q and v, got {sorted(packed)[:2]}"
        )
    origin = artifact.manifest.source.settings if artifact.manifest.source else {}
    return Settings(
        method=method,
        binary_head="head" in packed,
        bit=first.bits,
        dim=first.shape[0],
        num_class=head[0],
        scale=float(adapter.get("scale", 1.0)),
        dataset=str(origin.get("dataset", "")),
    )


def write_checkpoint(artifact: Artifact, settings: Settings) -> bytes:
    """Return the bytes of the checkpoint; a converted file comes back as it was.

    Args:
        artifact: the artifact.
        settings: as `export_settings` returned them.

    Raises:
        InputError: the format cannot hold a tensor of the artifact; the message names it.
    """
    parts, left = [], set(artifact.packed)
    for name, shape, bits in settings.matrices():
        matrix = artifact.packed.get(name)
        if matrix is None or matrix.shape != shape or matrix.bits != bits:
            found = "missing" if matrix is None else f"{matrix.shape} of {matrix.bits} bits"
            raise InputError(f"petl-vit needs {name} as {shape} of {bits} bits, it is {found}")
        _check_writable(name, matrix)
        parts += [matrix.stream.tobytes(), struct.pack("<ff", matrix.shift, matrix.scale)]
        left.discard(name)
    dense = dict(artifact.raw_dense)
    for name in () if settings.binary_head else ("head.weight", "head.bias"):
        raw = dense.pop(name, None)
        if raw is None or raw.dtype != "F32":
            raise InputError(
                f"petl-vit needs {name} in float32, it is {'missing' if raw is None else raw.dtype}"
            )
        parts.append(raw.data.tobytes())
    if left or dense:
        raise InputError(f"petl-vit has no place for {', '.join(sorted([*left, *dense])[:5])}")
    data = b"".join(parts)
    if len(data) != settings.size():
        raise InputError(
            f"petl-vit needs a head of {settings.num_class} x {WIDTH} and its bias; this one differs"
        )
    return data


def _check_writable(name: str, matrix: PackedMatrix) -> None:
    # The original drops the last codes of a matrix whose codes do not fill whole bytes.
    if matrix.shape[0] * matrix.shape[1] * matrix.bits % 8:
        raise InputError(
            f"petl-vit cannot hold {name}: {matrix.shape} codes of {matrix.bits} bits do not fill bytes"
        )
    # At 8 bits the two codebooks have different levels, so the same codes would mean other weights.
    if matrix.bits == 8 and matrix.kind != CODEBOOK:
        raise InputError(
            f"petl-vit has its own 8-bit levels, {name} uses {matrix.kind}: quantize with codebook petl_vit"
        )
