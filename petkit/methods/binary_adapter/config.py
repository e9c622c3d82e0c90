"""`petkit train adapter RECIPE.yaml`: every key of the recipe. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from petkit.configuration import Config
from petkit.data.config import DataConfig
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.training.config import TrainingConfig


class BinaryAdapterConfig(Config):
    """One run: a frozen model, one data set, adapters, and the training that fits them."""

    output: str
    """Folder of the finished artifact, made by the run."""

    seed: int = Field(default=0, ge=0)
    """Root of the named streams data, init and dropout."""

    task: Literal["image_classification", "text_classification", "causal_lm"] = "image_classification"
    """What the head predicts."""

    model: ModelConfig
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
