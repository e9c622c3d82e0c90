"""`petkit.json`: what an artifact is, which base model it belongs to, and how it came to be. Torch-free."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from petkit.artifacts.packed import BITS, CODEBOOKS
from petkit.artifacts.strict_json import parse_json
from petkit.errors import ArtifactError

SCHEMA_VERSION = 1
MAX_MANIFEST = 4 * 2**20
OTHER_KINDS = {
    "router": "router",
    "tagger": "tagger",
    "translator": "translator",
    "merged": "merged model",
    "distilled": "distilled model",
}
# What each of them is for.
TAKEN_BY = {
    "router": "petkit route takes it",
    "tagger": "petkit eval and petkit predict take it",
    "translator": "petkit decode and petkit eval take it",
    "merged model": "transformers, petkit serve and petkit route take it",
    "distilled model": "transformers, petkit eval, petkit serve and petkit route take it",
}

_Deviation = Annotated[float, Field(gt=0)]
Sha256 = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Base(_Part):
    """The frozen model that the adapter was trained on."""

    id: str
    """Name of the model, as `model.name` of a recipe."""

    revision: str | None = None
    """Hub revision, when there is one."""

    sha256: str | None = Sha256
    """`state_dict_sha256` of the frozen weights; null when unknown, and then nothing can be compared."""


class Step(_Part):
    """One command in the artifact's history."""

    command: str
    """The command, such as `train adapter`."""

    version: str
    """Version of petkit that ran it."""

    config_sha256: str | None = Sha256
    """SHA-256 of the resolved configuration's YAML."""

    inputs: dict[str, str] = {}
    """SHA-256 of each input, by name."""

    created: str
    """Time in UTC, ISO 8601."""


class Preprocess(_Part):
    """How an image becomes a tensor: resize to a square, scale to [0, 1], subtract the mean, divide."""

    image_size: int = Field(ge=1, le=4096)
    mean: tuple[float, float, float]
    """Of red, green and blue, in units of [0, 1]."""

    std: tuple[_Deviation, _Deviation, _Deviation]
    """Divides, so that 0 would give NaN for every pixel."""

    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Resampling filter of the resize."""


class Task(_Part):
    """What the head predicts."""

    type: Literal["image_classification", "text_classification", "causal_lm"]
    classes: tuple[str, ...] = ()
    """Class names in the order of the head's rows; empty for causal_lm or when unknown."""

    preprocess: Preprocess | None = None
    """Images only."""

    max_length: int | None = Field(default=None, ge=1)
    """Text only: tokens kept of a sequence."""

    @field_validator("classes")
    @classmethod
    def _differ(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        twice = [name for name, count in Counter(classes).items() if count > 1]
        if twice:
            raise ValueError(f"must be different names, got {twice[0]!r} more than once")
        return classes


class Source(_Part):
    """Facts of the foreign file an artifact was converted from, kept to write it back unchanged."""

    format: Literal["peft", "petl-vit"]
    settings: dict[str, Any] = {}


def _one_of(choices: Sequence[Any]) -> Callable[[Any], bool]:
    # By type too, since for Python 1 equals true.
    return lambda value: any(type(value) is type(one) and value == one for one in choices)


def _is_factor(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _is_width(value: Any) -> bool:
    return type(value) is int and value >= 1


_ADAPTER_FIELDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("bits", _one_of((*BITS, 32)), f"one of {(*BITS, 32)}"),
    ("codebook", _one_of(CODEBOOKS), f"one of {CODEBOOKS}"),
    ("scale", _is_factor, "a number greater than 0"),
    ("bottleneck", _is_width, "a whole number of at least 1"),
)


class Manifest(_Part):
    """The content of `petkit.json`."""

    schema_version: Literal[1] = 1
    kind: Literal["adapter"] = "adapter"
    base: Base
    lineage: tuple[Step, ...] = ()
    model: dict[str, Any] = {}
    """The recipe's `model:` section."""

    adapter: dict[str, Any] = {}
    """The recipe's `adapter:` section. Widths that differ between sites are told by the tensors' shapes."""

    task: Task | None = None
    scaling: dict[str, float] = {}
    """Factor on the output of each site, when the sites differ; otherwise `adapter.scale` holds for all."""

    source: Source | None = None
    tensors_sha256: str | None = Sha256
    """SHA-256 of `adapter_packed.safetensors`, filled in by the writer."""

    @model_validator(mode="after")
    def _adapter_fields(self) -> Manifest:
        # The sections' own models live in a higher layer; on these fields the file format itself relies.
        for key, is_good, expected in _ADAPTER_FIELDS:
            if key in self.adapter and not is_good(self.adapter[key]):
                raise ValueError(f"adapter.{key} must be {expected}, got {str(self.adapter[key])[:40]!r}")
        return self

    def to_json(self) -> str:
        """Return the canonical text: sorted keys, two spaces, a line feed at the end."""
        content = self.model_dump(mode="json")
        return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    def scaling_of(self, site: str) -> float:
        """Return the factor on the output of one site."""
        return float(self.scaling.get(site, self.adapter.get("scale", 1.0)))


def parse_manifest(raw: bytes, path: str) -> Manifest:
    """Return the manifest held by the bytes of `petkit.json`.

    Args:
        raw: the file's content.
        path: its name, for messages.

    Returns:
        The validated manifest.

    Raises:
        ArtifactError: not JSON, of a later schema version, or with a missing, unknown or invalid field.
    """
    try:
        content = parse_json(raw)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(content, Mapping):
        raise ArtifactError(f"{path} must hold a JSON object, got {type(content).__name__}")
    _check_version(content, path)
    kind = OTHER_KINDS.get(str(content.get("kind")))
    if kind is not None:
        taken = TAKEN_BY[kind]
        raise ArtifactError(f"{path} describes a {kind}, but an adapter is needed here; {taken}")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise ArtifactError(f"{path} is broken: {_faults(error)}") from error


def _check_version(content: Mapping[str, Any], path: str) -> None:
    version = content.get("schema_version")
    if type(version) is not int or version < 1:
        raise ArtifactError(f"{path} must have an integer schema_version, got {str(version)[:40]!r}")
    if version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: schema_version {version} is later than {SCHEMA_VERSION}, the last known: upgrade petkit"
        )


def _faults(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False)
    return "; ".join(_fault(fault) for fault in faults[:8])


def _fault(fault: Any) -> str:
    place, message = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        return f"unknown key {place}"
    return f"{place}: {message}" if place else message
