"""`petkit distill RECIPE.yaml`: every key of the recipe. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from petkit.configuration import Config, applies_to, outside
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.rollout.config import SamplingConfig, TokenServerConfig
from petkit.training.config import TrainingConfig

Objective = Literal["opd", "gkd", "fkl", "eopd", "reopold", "tropd"]

# Tokens of the teacher that an objective looks at, where the recipe leaves it open.
TOP_K = {"tropd": 64, "fkl": 64, "eopd": 16}
_FORWARD = ({"kind": ("fkl", "eopd")}, {"kind": ("tropd",), "outlier": ("fkl",)})


class ObjectiveConfig(Config):
    """What the tokens of the student's responses learn from."""

    kind: Objective = "tropd"
    """opd: each token's log-ratio of teacher and student as its reward; gkd: the Jensen-Shannon divergence
    over all tokens, which needs a local teacher; fkl: the forward KL on the teacher's likeliest tokens; eopd:
    opd, and fkl where the teacher is uncertain; reopold: opd with a floor, on few tokens; tropd: opd within a
    trust region, and something else outside."""

    trust: Literal["bernoulli", "expected", "hard"] = Field(
        default="bernoulli", json_schema_extra=applies_to(kind=("tropd",))
    )
    """How a token is inside: bernoulli draws it with the probability min(teacher / student, 1), expected
    weighs it so, hard takes those whose log-ratio reaches `threshold`."""

    threshold: float = Field(default=0.0, json_schema_extra=applies_to(kind=("tropd",), trust=("hard",)))
    """Least log-ratio of a token inside, in nats."""

    outlier: Literal["fkl", "mask", "clip", "rkl"] = Field(
        default="fkl", json_schema_extra=applies_to(kind=("tropd",))
    )
    """What tokens outside learn from: fkl the teacher's likeliest tokens, mask nothing, clip their log-ratio
    but no less than `floor`, rkl their log-ratio, which is opd."""

    floor: float = Field(
        default=-1.386,
        lt=0,
        json_schema_extra=applies_to({"kind": ("reopold",)}, {"kind": ("tropd",), "outlier": ("clip",)}),
    )
    """Least log-ratio that counts, in nats."""

    top_k: int | None = Field(default=None, ge=1, le=4096, json_schema_extra=applies_to(*_FORWARD))
    """The teacher's likeliest tokens that are looked at; by default 64, of eopd 16."""

    tail: Literal["none", "renormalize", "bucket"] = Field(
        default="none", json_schema_extra=applies_to(*_FORWARD)
    )
    """What becomes of all other tokens: none leaves them out, renormalize makes both sides distributions over
    the likeliest tokens, bucket counts the others as one."""

    jsd_beta: float = Field(default=0.5, ge=0, le=1, json_schema_extra=applies_to(kind=("gkd",)))
    """0 is the forward, 1 the reverse KL."""

    entropy_threshold: float = Field(default=0.8, ge=0, json_schema_extra=applies_to(kind=("eopd",)))
    """The teacher's entropy above which it counts as uncertain, in nats."""

    keep_entropy: float = Field(default=0.5, gt=0, le=1, json_schema_extra=applies_to(kind=("reopold",)))
    """Part of the tokens that count behind the exploration: those with the student's highest entropies."""

    exploration: float = Field(default=0.5, ge=0, le=1, json_schema_extra=applies_to(kind=("reopold",)))
    """First part of the training, in which tokens at the floor learn nothing."""

    prefix_weight: float = Field(
        default=0.001,
        ge=0,
        json_schema_extra=applies_to(
            {"guidance.responses": ("live",), "kind": ("opd", "eopd", "reopold", "tropd")},
        ),
    )
    """Weight of the tokens that the teacher wrote, see `guidance`."""

    @property
    def teacher_tokens(self) -> int:
        """How many of the teacher's likeliest tokens the objective needs."""
        needed = self.kind in ("fkl", "eopd") or (self.kind == "tropd" and self.outlier == "fkl")
        return (self.top_k or TOP_K[self.kind]) if needed else 0


class GuidanceConfig(Config):
    """Responses that the teacher begins and the student goes on with."""

    responses: Literal["none", "live"] = "none"
    """live: the teacher writes a response to every prompt, whose beginning is given."""

    steps: int | None = Field(default=None, ge=1, json_schema_extra=applies_to(responses=("live",)))
    """Optimiser steps after which nothing is given any more; by default all of the training. The longest
    beginning falls from sampling.max_new_tokens to 0 along half a cosine; each prompt draws its own length
    between 0 and it."""


class TeacherConfig(Config):
    """Who is learnt from."""

    model: str | None = None
    """A model as in `student.model.name`, or the address of a served one (http://HOST:PORT/v1#NAME)."""

    domains: dict[str, str] = Field(default_factory=dict)
    """Instead of one teacher: a teacher for each `dataset` of the prompts."""

    cache: str | None = None
    """Instead of a model: a folder that `petkit distill cache` made of the same prompts. Its responses are
    learnt from, without any sampling."""

    tokenizer: str | None = None
    """Of served teachers: the folder or hub name (hf/ORG/NAME) of the model that the server holds, whose
    vocabulary is compared with the student's."""

    served: TokenServerConfig = TokenServerConfig()
    """Of served teachers."""


class RolloutConfig(Config):
    """Who writes the student's responses, where that is not the student here."""

    model: str | None = None
    """Address of a server that holds the student, too (http://HOST:PORT/v1#NAME). vLLM gets adapters, under
    NAME; SGLang gets whole students."""

    refresh_steps: int = Field(default=1, ge=1, json_schema_extra=applies_to(stale=(False,)))
    """Optimiser steps after which the server gets the student's weights; it also does before the first."""

    folder: str | None = Field(default=None, json_schema_extra=applies_to(stale=(False,)))
    """Folder for these weights, which the server must see under the same path; by default OUTPUT.served."""

    stale: bool = False
    """Let the server keep the weights that it has. It then draws from another policy than the student's, more
    so with every step: see server_drift in metrics.jsonl."""

    importance_cap: float = Field(
        default=2.0,
        ge=1,
        json_schema_extra=applies_to({"objective.kind": ("opd", "eopd", "reopold", "tropd")}),
    )
    """Tokens count by the ratio of the student's probability to the server's, up to so much."""

    served: TokenServerConfig = TokenServerConfig()
    """Of the server."""


class StudentConfig(Config):
    """Who learns."""

    model: ModelConfig

    tuning: Literal["adapter", "full"] = "adapter"
    """adapter: the model is frozen and gets the adapters of `adapter`; full: all of its weights learn."""


class PromptsConfig(Config):
    """What is asked."""

    train: str
    """JSONL file of prompts: {question, answer, choices, dataset, id}, as `petkit route` reads them. Answers
    are for the reward alone."""

    validation: str | None = None
    """JSONL file of prompts with answers, answered greedily to measure the reward."""

    train_size: int | None = Field(default=None, ge=1)
    """Use the first so many prompts."""

    validation_size: int | None = Field(default=None, ge=1)
    """Likewise of the validation."""

    chat_template: bool = True
    """Put prompts by the student's chat template where it has one; false: as plain text."""

    system: str | None = Field(default=None, json_schema_extra=applies_to(chat_template=(True,)))
    """A system message before each prompt."""

    suffix: str = ""
    """Text behind each question, such as how to answer."""

    skip_bad: bool = False
    """Leave faulty lines out, each named in the log, instead of stopping there."""


class RewardConfig(Config):
    """How responses are judged. The reward measures and selects; no objective learns from it."""

    function: str | None = None
    """FILE.py:NAME, a function of your own, called with question, choices, answer, dataset and response by
    name; it returns a number from 0 to 1. It runs in a child process, after --allow-code-exec alone. null:
    responses are compared with the questions' answers."""

    timeout: float = Field(default=10.0, gt=0, json_schema_extra=applies_to(function=(outside(),)))
    """Seconds that a call may take. Importing the file may take 120 s, whatever this says."""


class DistillAdapterConfig(AdapterConfig):
    """Where adapters go in a frozen student, how wide they are and how many bits hold a weight."""

    method: Literal["adaptformer", "lora", "houlsby", "linear_probe"] = "lora"
    """lora: beside linear layers; adaptformer: parallel to the MLP; houlsby: after attention and MLP.
    linear_probe trains a new head alone, which a language model does not get, and is refused."""

    dropout: float = Field(
        default=0.0, ge=0, lt=1, json_schema_extra=applies_to(method=("adaptformer", "lora", "houlsby"))
    )
    """Dropout inside the bottleneck, in training only. Responses are drawn without it."""


class DistillTrainingConfig(TrainingConfig):
    """Optimiser, schedule, precision, limits and selection."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the prompts."""

    batch_size: int = Field(default=16, ge=1)
    """Prompts per optimiser step and process; divided into `gradient_accumulation` micro-batches."""

    learning_rate: float = Field(default=5e-6, gt=0)
    """Peak learning rate of AdamW."""

    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay, on the latent weights."""

    warmup_epochs: float = Field(default=0.0, ge=0)
    """Linear warm-up, in epochs."""

    evaluate_every_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps between evaluations on data.validation, for the record; with select validation they
    choose, too."""

    min_learning_rate: float = Field(default=0.0, ge=0)
    """Learning rate at the end of the cosine."""

    select: Literal["validation", "last"] = "last"
    """last: keep the last step; validation: keep the step whose greedy answers to the prompts of
    `data.validation` are right most often. Both learn from the prompts of `data.train` alone."""

    sharding: Literal["none", "fsdp2"] = "none"
    """fsdp2: several processes share the weights of a student with `tuning: full` out, with their gradients
    and AdamW's moments; each holds all weights while responses are drawn. none: each holds all of that."""


class DistillConfig(Config):
    """One run: a student, a teacher, prompts, and the training."""

    kind: Literal["text"] = "text"
    """text: language models; with `kind: vision` the recipe is one for image classifiers."""

    output: str = Field(min_length=1)
    """Folder of the finished artifact, made by the run."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Root of the named streams data, init, dropout, sampling, guidance and trust."""

    student: StudentConfig
    adapter: DistillAdapterConfig = Field(
        default=DistillAdapterConfig(), json_schema_extra=applies_to({"student.tuning": ("adapter",)})
    )
    teacher: TeacherConfig = TeacherConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    data: PromptsConfig
    sampling: SamplingConfig = SamplingConfig()
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()

    samples: int = Field(default=4, ge=1, le=1024)
    """Responses to each prompt of a step."""

    training: DistillTrainingConfig = DistillTrainingConfig()

    @model_validator(mode="after")
    def _one_teacher(self) -> Self:
        own = self.teacher
        given = [name for name in ("model", "domains", "cache") if getattr(own, name)]
        if len(given) != 1:
            raise ValueError(
                f"teacher needs one of model, domains and cache, got {' and '.join(given) or 'none'}"
            )
        if self.objective.kind == "gkd" and any(name.startswith("http") for name in self.teachers):
            raise ValueError(
                "objective.kind gkd needs the teacher's whole distribution and so a local teacher, got a "
                "served one: use tropd or fkl"
            )
        if own.cache and self.objective.kind == "gkd":
            raise ValueError(
                "objective.kind gkd needs the teacher's whole distribution, of which a cache holds the "
                "likeliest tokens: use fkl"
            )
        if own.cache and self.guidance.responses != "none":
            raise ValueError("guidance.responses live needs a teacher that writes, and a cache does not")
        self._check_sharding()
        self._check_rollout()
        served = any(name.startswith("http") for name in self.teachers)
        for name in () if served else ("tokenizer", "served"):
            if getattr(own, name) != TeacherConfig.model_fields[name].default:
                raise ValueError(f"teacher.{name} has an effect with a served teacher only: remove it")
        for name in ("image_size", "pooling", "drop_path_rate"):
            if getattr(self.student.model, name) != ModelConfig.model_fields[name].default:
                raise ValueError(f"student.model.{name} has no effect on a language model: remove it")
        if served and self.sampling.temperature != 1:
            raise ValueError(
                "sampling.temperature must be 1 with a served teacher, whose log-probabilities are those of "
                f"temperature 1, got {self.sampling.temperature:g}"
            )
        return self

    def _check_sharding(self) -> None:
        if self.training.sharding == "none":
            return
        if self.student.tuning == "adapter":
            raise ValueError(
                f"training.sharding {self.training.sharding} shares out weights that learn, and adapters are "
                "too small for that: set student.tuning full, or leave it out"
            )
        if not self.training.drop_last:
            raise ValueError(
                f"training.drop_last must be true with training.sharding {self.training.sharding}, got "
                "false: with a short last batch processes would wait for passes that others do not make"
            )

    def _check_rollout(self) -> None:
        own, defaults = self.rollout, RolloutConfig()
        if own.model is None:
            for name in RolloutConfig.model_fields:
                if getattr(own, name) != getattr(defaults, name):
                    raise ValueError(f"rollout.{name} has an effect with rollout.model only: remove it")
            return
        if not own.model.startswith("http"):
            raise ValueError(
                f"rollout.model must be the address of a server, http://HOST:PORT/v1#NAME, got {own.model!r}"
            )
        if self.teacher.cache:
            raise ValueError(
                "rollout.model has no effect with teacher.cache, which has the responses: remove it"
            )
        if self.sampling.temperature != 1:
            raise ValueError(
                "sampling.temperature must be 1 with rollout.model, for servers tell log-probabilities of "
                f"temperature 1, got {self.sampling.temperature:g}"
            )
        if not (own.stale or self.refreshable):
            raise ValueError(
                f"rollout.served.server {own.served.server} cannot be given {self._learns} while it serves: "
                "vllm takes adapters of adapter.method lora, sglang students of tuning full. With "
                "rollout.stale true it keeps its weights, and draws from another policy than the student's"
            )

    @property
    def _learns(self) -> str:
        return "a whole student" if self.student.tuning == "full" else f"{self.adapter.method} adapters"

    @property
    def refreshable(self) -> bool:
        """Whether the program that serves the student can replace what learns."""
        if self.student.tuning == "full":
            return self.rollout.served.server == "sglang"
        return self.rollout.served.server == "vllm" and self.adapter.method == "lora"

    @property
    def teachers(self) -> tuple[str, ...]:
        """Models of the teachers."""
        own = self.teacher
        return (own.model,) if own.model else tuple(own.domains.values())
