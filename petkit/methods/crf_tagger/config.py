"""`petkit train tagger RECIPE.yaml`: every key of the recipe. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from petkit.configuration import Config, above, applies_to, outside
from petkit.data.conll import Columns
from petkit.data.spans import SPAN_SCHEMES, Scheme
from petkit.models.config import AdapterConfig, Bits, Codebook, ModelConfig
from petkit.training.config import TrainingConfig

BILSTM = "bilstm"

_OWN = (BILSTM,)
_PRETRAINED = (outside(BILSTM),)
_ADAPTED = {"model.encoder": _PRETRAINED, "model.tune": ("adapter",)}
_FILES = ("conll",)


class EncoderConfig(Config):
    """What turns words into features."""

    encoder: str = Field(default=BILSTM, min_length=1)
    """bilstm, trained from nothing; or a transformers encoder: hf/ORG/NAME or the path of a local model
    folder."""

    revision: str | None = Field(default=None, json_schema_extra=applies_to(encoder=_PRETRAINED))
    """Hub revision of the encoder."""

    tune: Literal["adapter", "frozen", "full"] = Field(
        default="adapter", json_schema_extra=applies_to(encoder=_PRETRAINED)
    )
    """What is trained of a transformers encoder: LoRA beside its frozen weights, nothing (the head alone), or
    all of it, which the artifact then holds."""

    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on the features before the head, and on the BiLSTM's inputs, in training only."""

    word_size: int = Field(default=100, ge=1, le=4096, json_schema_extra=applies_to(encoder=_OWN))
    """Width of a word's embedding."""

    min_count: int = Field(default=2, ge=1, json_schema_extra=applies_to(encoder=_OWN))
    """Words that training has fewer times share the embedding of unknown words, which learns from them."""

    character_size: int = Field(default=0, ge=0, le=1024, json_schema_extra=applies_to(encoder=_OWN))
    """Width of a character's embedding; 0 does without characters."""

    character_filters: int = Field(
        default=30, ge=1, le=4096, json_schema_extra=applies_to(encoder=_OWN, character_size=(above(0),))
    )
    """Filters over three characters, whose maxima over a word go beside its embedding."""

    hidden: int = Field(default=100, ge=1, le=4096, json_schema_extra=applies_to(encoder=_OWN))
    """Units of the LSTM in each direction."""

    layers: int = Field(default=1, ge=1, le=8, json_schema_extra=applies_to(encoder=_OWN))
    """Layers of the BiLSTM."""

    def base(self) -> ModelConfig:
        """The encoder as the loader of base models takes it."""
        return ModelConfig(name=self.encoder, revision=self.revision)


class HeadConfig(Config):
    """What chooses tags by the features."""

    kind: Literal["softmax", "crf"] = "crf"
    """softmax chooses the tag of each word by itself; crf the best sequence."""

    constraints: Literal["none", "both", "decode"] = Field(
        default="both", json_schema_extra=applies_to({"kind": ("crf",), "data.scheme": SPAN_SCHEMES})
    )
    """Forbid sequences that break data.scheme: in training and decoding, in decoding alone, or not at all."""


class LoraConfig(Config):
    """LoRA beside the attention of a transformers encoder."""

    bits: Bits = Field(default=1, json_schema_extra=applies_to(_ADAPTED))
    """Bits per weight; 32 keeps float32 weights."""

    bottleneck: int = Field(default=16, ge=1, le=4096, json_schema_extra=applies_to(_ADAPTED))
    """LoRA's rank."""

    scale: float = Field(default=1.0, gt=0, json_schema_extra=applies_to(_ADAPTED))
    """Factor s on the adapter's output."""

    dropout: float = Field(default=0.1, ge=0, lt=1, json_schema_extra=applies_to(_ADAPTED))
    """Dropout inside the bottleneck, in training only."""

    targets: tuple[str, ...] | None = Field(
        default=None, min_length=1, json_schema_extra=applies_to(_ADAPTED)
    )
    """Module name patterns or q, k, v, o, mlp; default q and v. One that matches nothing is an error."""

    codebook: Codebook = Field(
        default="normal_l1", json_schema_extra=applies_to({**_ADAPTED, "bits": (1, 2, 4, 8)})
    )
    """Quantiser levels, as `adapter.codebook` of `petkit train adapter`."""

    gradient: Literal["exact", "identity"] = Field(
        default="exact", json_schema_extra=applies_to({**_ADAPTED, "bits": (1, 2, 4, 8)})
    )
    """Straight-through gradient: exact keeps the scale's own derivative, identity passes the gradient on."""

    def adapter(self) -> AdapterConfig:
        """The section as the inserter of adapters takes it."""
        return AdapterConfig(method="lora", **self.model_dump())


class TaggedDataConfig(Config):
    """Where the tagged sentences are, and how their files are read."""

    format: Literal["sample", "conll"] = "conll"
    """conll: one word a line in columns, a blank line between sentences; sample: a set inside the package."""

    sample: str = Field(default="made-names", json_schema_extra=applies_to(format=("sample",)))
    """Name of the embedded set."""

    train: str | None = Field(default=None, json_schema_extra=applies_to(format=_FILES))
    """File of the sentences to learn from."""

    validation: str | None = Field(default=None, json_schema_extra=applies_to(format=_FILES))
    """File that training.select=validation chooses by; without that it is learned from too."""

    test: str | None = Field(default=None, json_schema_extra=applies_to(format=_FILES))
    """File that is measured once, at the end."""

    word_column: int = Field(default=0, json_schema_extra=applies_to(format=_FILES))
    """Column of the word, from 0; negative numbers count from the last column, -1."""

    tag_column: int = Field(default=-1, json_schema_extra=applies_to(format=_FILES))
    """Column of the tag, likewise."""

    separator: str | None = Field(default=None, min_length=1, json_schema_extra=applies_to(format=_FILES))
    """Text between columns, such as a tab; default: any run of spaces and tabs."""

    comment: str | None = Field(default=None, min_length=1, json_schema_extra=applies_to(format=_FILES))
    """Leave lines out that begin with this text; default: none, since a word may be #."""

    docstart: bool = Field(default=True, json_schema_extra=applies_to(format=_FILES))
    """Leave lines out that begin with -DOCSTART-, between documents."""

    scheme: Scheme = "none"
    """How tags write spans: BIO (IOB2), IOB1, BIOUL, BIOES or BMES; then spans are scored. none: each tag
    stands by itself, such as a part of speech, and the accuracy of the words is the measure."""

    faulty_tags: Literal["refuse", "repair"] = Field(
        default="refuse", json_schema_extra=applies_to(scheme=SPAN_SCHEMES)
    )
    """What to do with tags that break the scheme: stop and name the line, or rewrite them as conlleval reads
    them."""

    train_size: int | None = Field(default=None, ge=1)
    """Use this many training sentences: the first of a seeded order."""

    test_size: int | None = Field(default=None, ge=1)
    """Use this many test sentences, chosen likewise."""

    def columns(self) -> Columns:
        """How the lines of a file divide."""
        if self.format == "sample":
            return Columns()
        return Columns(self.word_column, self.tag_column, self.separator, self.comment, self.docstart)

    @field_validator("separator", "comment")
    @classmethod
    def _within_a_line(cls, value: str | None) -> str | None:
        if value is not None and ("\n" in value or "\r" in value):
            raise ValueError(f"must not hold a line's end, got {value!r}")
        return value


class TaggerConfig(Config):
    """One run: an encoder, a head, tagged sentences, and the training that fits them."""

    output: str = Field(min_length=1)
    """Folder of the finished artifact, made by the run."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Root of the named streams data, init and dropout."""

    model: EncoderConfig = EncoderConfig()
    head: HeadConfig = HeadConfig()
    adapter: LoraConfig = LoraConfig()
    data: TaggedDataConfig = TaggedDataConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _has_data(self) -> Self:
        for name in ("train", "test"):
            if self.data.format == "conll" and getattr(self.data, name) is None:
                raise ValueError(f"data.{name} is required with data.format conll: name the file")
        return self

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        if self.data.format == "conll" and self.data.word_column == self.data.tag_column:
            raise ValueError(
                f"data.tag_column must be another column than data.word_column {self.data.word_column}, got "
                f"{self.data.tag_column}"
            )
        return self

    @property
    def is_pretrained(self) -> bool:
        """Whether the encoder is a transformers model."""
        return self.model.encoder != BILSTM

    @property
    def is_adapted(self) -> bool:
        """Whether LoRA goes into the encoder."""
        return self.is_pretrained and self.model.tune == "adapter"

    @property
    def constrain(self) -> Literal["none", "both", "decode"]:
        """Where the head forbids sequences, by the settings that have an effect."""
        applies = self.head.kind == "crf" and self.data.scheme != "none"
        return self.head.constraints if applies else "none"
