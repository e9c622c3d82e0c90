"""What a router is made of: the prompts of its modes, the length of its probe, its thresholds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from petkit.configuration import Config, applies_to
from petkit.rollout.config import ServedConfig, none_empty


class PromptConfig(Config):
    """How a question is put in each mode; {question} stands for it, with its choices one a line."""

    direct: str = "{question}\nGive the answer alone, without any explanation."
    """The answer and nothing else."""

    standard: str = "{question}"
    """The question as it is: the probe is the beginning of this answer."""

    cot: str = "{question}\nThink step by step, then end with: The answer is ..."
    """Reasoning first."""

    system: str | None = None
    """A system message before the question, the same in every mode."""

    @field_validator("direct", "standard", "cot")
    @classmethod
    def _has_question(cls, value: str) -> str:
        if value.count("{question}") != 1:
            raise ValueError(f"must hold {{question}} once, got {value!r:.60}")
        return value


class ThresholdConfig(Config):
    """Where the rule's inequalities lie; all are strict."""

    cumulative: float = Field(default=32.0, ge=0)
    """Nats of a whole probe above which it is an overload; 10 for models that reason by themselves."""

    spearman: float = Field(default=0.07, ge=0, le=1)
    """Half the width of the band around 0 in which entropy has no trend."""

    von_neumann: float = Field(default=2.0, ge=0)
    """Roughness below which a falling trajectory converges."""

    overload: Literal["direct", "standard"] = "direct"
    """What an overload is answered with."""


class RouterConfig(Config):
    """A router."""

    probe_tokens: int = Field(default=64, ge=3, le=4096)
    """Tokens whose entropies are looked at."""

    max_new_tokens: int = Field(default=512, ge=1)
    """Tokens of an answer, the probe's included where it is gone on with; at least `probe_tokens`."""

    rule: Literal["thresholds", "learned"] = "thresholds"
    """What decides: inequalities, or the network that `petkit route calibrate --learned` trains."""

    level: Literal["question", "dataset"] = "question"
    """Whether every question gets a mode of its own, or every data set one for all of its questions."""

    dataset_questions: int = Field(default=50, ge=1, json_schema_extra=applies_to(level=("dataset",)))
    """Questions of a data set that are probed to choose its mode; they need no answers."""

    dataset_point: Literal["mean_trajectory", "mean_point"] = Field(
        default="mean_trajectory", json_schema_extra=applies_to(level=("dataset",))
    )
    """What stands for a data set: the descriptors of its mean trajectory, or the mean of its descriptors."""

    chat_template: bool = True
    """False puts prompts as plain text, for models without a chat template."""

    stop: tuple[str, ...] = Field(default=(), max_length=4)
    """Texts that end an answer and are no part of it; for base models, which go on with more questions."""

    prompts: PromptConfig = PromptConfig()
    thresholds: ThresholdConfig = ThresholdConfig()
    served: ServedConfig = ServedConfig()

    @field_validator("stop")
    @classmethod
    def _has_text(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return none_empty(value)

    @model_validator(mode="after")
    def _learned_decides_questions(self) -> RouterConfig:
        if self.rule == "learned" and self.level == "dataset":
            raise ValueError("level must be question with rule learned: the network was trained on questions")
        return self

    @model_validator(mode="after")
    def _holds_its_probe(self) -> RouterConfig:
        # A shorter answer would cut every probe, and thresholds hold for probes of one length alone.
        if self.max_new_tokens < self.probe_tokens:
            raise ValueError(
                f"max_new_tokens must be at least probe_tokens, {self.probe_tokens}, got "
                f"{self.max_new_tokens}: raise max_new_tokens, or lower probe_tokens"
            )
        return self
