"""`petkit train adapter RECIPE.yaml`: every key of the recipe. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from petkit.configuration import Config
from petkit.data.config import DataConfig
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.training.config import TrainingConfig

_FORMATS = {
    "image_classification": ("sample", "vtab", "image_folder"),
    "text_classification": ("text",),
    "causal_lm": ("chat",),
}


class BinaryAdapterConfig(Config):
    """One run: a frozen model, one data set, adapters, and the training that fits them."""

    output: str = Field(min_length=1)
    """Folder of the finished artifact, made by the run."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Root of the named streams data, init and dropout."""

    task: Literal["image_classification", "text_classification", "causal_lm"] = "image_classification"
    """What the head predicts."""

    model: ModelConfig
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        formats = _FORMATS[self.task]
        if self.data.format not in formats:
            raise ValueError(
                f"data.format must be {' or '.join(formats)} for task {self.task}, got {self.data.format}"
            )
        if self.data.format != "sample" and self.data.path is None:
            raise ValueError(f"data.path is required with data.format {self.data.format}: name the folder")
        if self.task == "causal_lm" and self.adapter.method == "linear_probe":
            raise ValueError(
                "adapter.method linear_probe trains a new head alone, and task causal_lm has none"
            )
        return self
