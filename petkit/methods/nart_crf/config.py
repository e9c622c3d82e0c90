"""`petkit train nat RECIPE.yaml`: every key of the recipe. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from petkit.configuration import Config, above, applies_to
from petkit.training.config import TrainingConfig

Kind = Literal["autoregressive", "nart", "nart-crf", "nart-dcrf"]

TEACHER = "autoregressive"
VOCABULARY_SIZE = 8000
_AUTOREGRESSIVE = (TEACHER,)
STUDENTS = ("nart", "nart-crf", "nart-dcrf")
CRFS = ("nart-crf", "nart-dcrf")
_OF_STUDENTS = {"model.kind": STUDENTS}


class ShapeConfig(Config):
    """What is trained, and its sizes."""

    kind: Kind = "nart-crf"
    """nart chooses each token by itself, nart-crf the best sequence by a CRF over the vocabulary, nart-dcrf
    likewise with transitions out of the hidden states; autoregressive is the teacher, one token after the
    other."""

    hidden: int = Field(default=256, ge=8, le=4096)
    """Width of the states and of the embeddings."""

    feed_forward: int = Field(default=1024, ge=8, le=16384)
    """Width inside the feed-forward layers."""

    encoder_layers: int = Field(default=5, ge=1, le=48)
    """Layers that read the source."""

    decoder_layers: int = Field(default=5, ge=1, le=48)
    """Layers that write the target."""

    heads: int = Field(default=4, ge=1, le=64)
    """Heads of each attention; they divide model.hidden."""

    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of embeddings, attention and layers, in training only."""

    max_positions: int = Field(default=256, ge=4, le=4096)
    """The longest sentence in subwords, its end included."""

    positional_attention: bool = Field(default=False, json_schema_extra=applies_to(kind=STUDENTS))
    """Add to each layer that writes an attention whose queries and keys are positions."""

    decoder_input: Literal["unknown", "copy"] = Field(
        default="unknown", json_schema_extra=applies_to(kind=STUDENTS)
    )
    """What the layers that write begin with: the same token everywhere, or the source's tokens, spread
    evenly."""


class VocabularyConfig(Config):
    """The subwords that source and target share."""

    size: int | None = Field(default=None, ge=260, le=250_000)
    """Entries; default 8000. With a teacher or a start the vocabulary is theirs, and must be of this size."""


class CrfConfig(Config):
    """The CRF over the vocabulary."""

    rank: int = Field(default=32, ge=1, le=1024, json_schema_extra=applies_to({"model.kind": CRFS}))
    """Length of the factors of a transition, d_t of the paper."""

    beam: int = Field(default=64, ge=1, le=65536, json_schema_extra=applies_to({"model.kind": CRFS}))
    """Candidates at each position, k of the paper; more than the vocabulary are all of it."""


class LengthsConfig(Config):
    """How long a translation is to be."""

    kind: Literal["predictor", "offset"] = Field(
        default="predictor", json_schema_extra=applies_to(_OF_STUDENTS)
    )
    """predictor: a classifier on the source's states chooses the difference; offset: it is the same for every
    sentence."""

    offset: int | None = Field(
        default=None, ge=-128, le=127, json_schema_extra=applies_to({**_OF_STUDENTS, "kind": ("offset",)})
    )
    """That difference in subwords; default: the mean of the training pairs, rounded."""


class LossConfig(Config):
    """The terms of the loss."""

    nar: float = Field(default=0.5, ge=0, json_schema_extra=applies_to({"model.kind": CRFS}))
    """Factor of the tokens' own cross-entropy beside the CRF's, lambda of the paper."""

    length: float = Field(
        default=0.1, ge=0, json_schema_extra=applies_to({**_OF_STUDENTS, "lengths.kind": ("predictor",)})
    )
    """Factor of the length predictor's cross-entropy."""

    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of each token's target that is spread over the vocabulary."""


class TeacherConfig(Config):
    """The autoregressive model whose translations a student learns from."""

    model: str | None = Field(default=None, min_length=1, json_schema_extra=applies_to(_OF_STUDENTS))
    """Folder of the teacher, which `petkit train nat RECIPE --teacher` writes; null learns from the
    data's own targets."""

    distill: bool = Field(default=True, json_schema_extra=applies_to(_OF_STUDENTS))
    """Learn from the teacher's translations of the training sources; false uses the teacher's vocabulary
    alone."""

    beam: int = Field(
        default=4, ge=1, le=64, json_schema_extra=applies_to({**_OF_STUDENTS, "distill": (True,)})
    )
    """Beams of the teacher's search."""

    distilled: str | None = Field(
        default=None, min_length=1, json_schema_extra=applies_to({**_OF_STUDENTS, "distill": (True,)})
    )
    """File that keeps the teacher's translations, for later runs and for other students; default: the
    teacher's folder with .distilled.jsonl behind its name."""


class DecodeConfig(Config):
    """How translations are found, by the run's own test and by `petkit decode` and `petkit eval` later."""

    beam: int = Field(default=4, ge=1, le=64, json_schema_extra=applies_to({"model.kind": _AUTOREGRESSIVE}))
    """Beams of an autoregressive search; 1 is greedy."""

    candidates: int = Field(default=1, ge=1, le=64, json_schema_extra=applies_to(_OF_STUDENTS))
    """Lengths that are tried for each sentence, around the expected one; the best translation is kept."""

    rescore: str | None = Field(
        default=None, min_length=1, json_schema_extra=applies_to({**_OF_STUDENTS, "candidates": (above(1),)})
    )
    """Folder of an autoregressive model that chooses among the candidates; null chooses by the model's own
    log-probability a token."""

    deduplicate: bool = Field(default=True, json_schema_extra=applies_to(_OF_STUDENTS))
    """Leave out a token that repeats the one before it."""


class PairDataConfig(Config):
    """Where sentences and their translations are."""

    format: Literal["sample", "jsonl", "lines"] = "jsonl"
    """jsonl: rows of source and target; lines: two text files of as many lines; sample: a set inside the
    package."""

    sample: str = Field(default="made-phrases", json_schema_extra=applies_to(format=("sample",)))
    """Name of the embedded set."""

    train: str | None = Field(default=None, json_schema_extra=applies_to(format=("jsonl", "lines")))
    """File of the pairs to learn from; with data.format lines what both names begin with, as data/train of
    data/train.en and data/train.de."""

    validation: str | None = Field(default=None, json_schema_extra=applies_to(format=("jsonl", "lines")))
    """File that training.select=validation chooses by; without that it is learned from too."""

    test: str | None = Field(default=None, json_schema_extra=applies_to(format=("jsonl", "lines")))
    """File that is measured once, at the end."""

    languages: tuple[str, str] = Field(default=("en", "de"), json_schema_extra=applies_to(format=("lines",)))
    """Endings of the source's and the target's file."""

    max_length: int = Field(default=64, ge=1, le=4095)
    """Training pairs of which one side has more subwords are left out, and counted in the log."""

    train_size: int | None = Field(default=None, ge=1)
    """Use this many training pairs: the first of a seeded order."""

    test_size: int | None = Field(default=None, ge=1)
    """Use this many test pairs, chosen likewise."""

    skip_bad: bool = False
    """Leave faulty rows out, each named in the log, instead of refusing the file."""


class TranslatorConfig(Config):
    """One run: a model, parallel sentences, perhaps a teacher and a start, and the training that fits it."""

    output: str = Field(min_length=1)
    """Folder of the finished artifact, made by the run."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Root of the named streams data, init and dropout."""

    start: str | None = Field(default=None, min_length=1)
    """Folder of a trained model of the same sizes that the weights begin as: a nart for a nart-crf. What it
    lacks is drawn at random."""

    model: ShapeConfig = ShapeConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    crf: CrfConfig = CrfConfig()
    lengths: LengthsConfig = LengthsConfig()
    loss: LossConfig = LossConfig()
    teacher: TeacherConfig = TeacherConfig()
    decode: DecodeConfig = DecodeConfig()
    data: PairDataConfig = PairDataConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _has_data(self) -> Self:
        for name in ("train", "test"):
            if self.data.format != "sample" and getattr(self.data, name) is None:
                raise ValueError(
                    f"data.{name} is required with data.format {self.data.format}: name the file"
                )
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        hidden, heads = self.model.hidden, self.model.heads
        if hidden % heads:
            raise ValueError(f"model.heads must divide model.hidden {hidden}, got {heads}")
        return self

    @model_validator(mode="after")
    def _fits_positions(self) -> Self:
        if self.data.max_length >= self.model.max_positions:
            raise ValueError(
                f"data.max_length must be below model.max_positions {self.model.max_positions}, since a "
                f"sentence has an end, got {self.data.max_length}"
            )
        return self

    @property
    def is_teacher(self) -> bool:
        """Whether the model writes one token after the other."""
        return self.model.kind == TEACHER

    @property
    def distills(self) -> bool:
        """Whether the targets are a teacher's translations."""
        return not self.is_teacher and self.teacher.model is not None and self.teacher.distill

    @property
    def distilled_file(self) -> str:
        """The file of the teacher's translations."""
        return self.teacher.distilled or f"{str(self.teacher.model).rstrip('/')}.distilled.jsonl"
