"""`petkit distill`: from a recipe to an artifact. Start reading at `run`."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petkit.artifacts import Check, atomic_write, staged_in_run, write_checks, write_json
from petkit.data.tokens import padding_token
from petkit.errors import ConfigError, InputError, under_key
from petkit.methods.tropd.card import distilled_card
from petkit.methods.tropd.config import DistillConfig
from petkit.methods.tropd.evaluation import RewardEvaluation, evaluate_student
from petkit.methods.tropd.judging import check_reward, judge_of, reward_facts, try_out
from petkit.methods.tropd.prompts import Prompt, PromptSet, load_prompts
from petkit.methods.tropd.served_student import ServedStudent
from petkit.methods.tropd.step import DRIFTS, MEASURES, DistillationStep, Writer
from petkit.methods.tropd.teachers import Teachers, known_tokens, load_teachers, vocabulary_size
from petkit.methods.tropd.writing import check_served, load_student, sizes_of, write_served, write_student
from petkit.models.inserts import Site, insert
from petkit.models.loaded import LoadedModel
from petkit.models.loading import load_model
from petkit.rollout.sampler import end_tokens
from petkit.rollout.sampling import context_length
from petkit.rollout.scoring import Head, without_dropout
from petkit.rollout.stops import Stops
from petkit.training.checkpoint import check_drift, lasting_settings
from petkit.training.context import RunContext
from petkit.training.fit import Fitted, fit
from petkit.training.optim import trainable_parameters
from petkit.training.outcome import compare_logits
from petkit.training.run import (
    claim_folder,
    history_file,
    planned_steps,
    raise_failed,
    run_facts,
)
from petkit.training.seeds import stream
from petkit.training.sharding import Placement, Sharded

log = logging.getLogger(__name__)

CHECKED_PROMPTS = 8


def run(config: DistillConfig, context: RunContext) -> dict[str, Any] | None:
    """Train a student on its own responses, write its artifact, load that again and measure it.

    Args:
        config: the validated recipe.
        context: folder, device, processes.

    Returns:
        The content of result.json; None on processes other than the first.

    Raises:
        GateError: the reloaded artifact does not behave like the trained student.
        PetkitError: whatever else stops the run, by kind.

    Source:
        Trust region on-policy distillation, arXiv:2606.01249; the baselines are named in objectives.py.
    """
    ready = prepare(config, context)
    try_out(ready.step.judge)
    served = ready.step.served
    with claim_folder(context) as directory:
        # Before a checkpoint is loaded, so that a run that goes on has it too.
        before = ready.evaluate() if context.world.is_main else None
        if config.training.sharding == "fsdp2":
            ready = ready.placed(Sharded(ready.model, context.world))
        fitted = fit(
            ready.model,
            ready.step,
            ready.train,
            config.training,
            context,
            seed=config.seed,
            identity=_identity(config, ready, context),
            validate=ready.validate if _evaluates(config) else None,
            begin=ready.step.begin,
            measures=(*MEASURES, *DRIFTS),
            tokens=True,
        )
        ready = ready.finished()
        if directory is None:
            return None
        with staged_in_run(directory) as folder:
            lineage = write_student(folder, config, ready, history_file(config.training, fitted))
            reloaded = load_student(folder, config, context.device)
            check = _same_behaviour(ready, reloaded)
            write_checks(folder, [check])
            log.info("measuring the reloaded artifact")
            after = ready.evaluate(reloaded)
            result = _summary(config, ready, context, fitted, (before, after), check)
            atomic_write(folder / "README.md", distilled_card(lineage, config, ready, result).encode())
            write_json(folder / "result.json", result)
    raise_failed([check], context)
    if served is not None:
        served.finished()
    return result


def plan(config: DistillConfig, context: RunContext) -> dict[str, Any]:
    """Do everything that a run does before its first response, and say what would follow.

    Args:
        config: the validated recipe.
        context: folder, device, processes.

    Returns:
        JSON-ready values: models, prompts, adapters, sizes, steps.

    Raises:
        PetkitError: what would stop the run, too.
    """
    ready = prepare(config, context)
    try_out(ready.step.judge)
    steps = planned_steps(config.training, len(ready.train), config.seed, context.world.size)
    responses = steps["total"] * config.training.batch_size * context.world.size * config.samples
    cached = ready.teachers.cached
    longest = config.sampling.max_new_tokens if cached is None else cached.longest
    return {
        "status": "plan",
        "output": str(context.folder),
        "device": str(context.device),
        "processes": context.world.size,
        "student": {"id": ready.loaded.base_id, "sha256": ready.loaded.base_sha256},
        "teachers": ready.teachers.facts(),
        "objective": config.objective.kind,
        "reward_function": reward_facts(ready.step.judge),
        "prompts": {
            "train": len(ready.train),
            "validation": None if ready.validation is None else len(ready.validation),
        },
        "adapters": [site.name for site in ready.sites],
        "trainable_parameters": sum(p.numel() for p in trainable_parameters(ready.model).values()),
        "bytes": sizes_of(config, ready),
        "steps": steps,
        "responses": responses,
        "most_tokens": responses * longest,
    }


@dataclass(frozen=True)
class Ready:
    """A student with adapters, its teachers and its prompts, before the first step."""

    loaded: LoadedModel
    teachers: Teachers
    train: PromptSet
    validation: PromptSet | None
    sites: list[Site]
    step: DistillationStep
    full_model_bytes: int

    @property
    def model(self) -> nn.Module:
        """The frozen student with trainable adapters."""
        return self.loaded.model

    def placed(self, placement: Placement) -> Ready:
        """The same with the student's weights put elsewhere."""
        return replace(self, step=self.step.placed(placement))

    def finished(self) -> Ready:
        """The same with all of the student's weights, to stay; every process takes part."""
        model = self.step.placement.finished(self.model)
        if model is self.model:
            return self
        return replace(self, loaded=replace(self.loaded, model=model), step=self.step.of(model))

    def evaluate(self, model: nn.Module | None = None) -> RewardEvaluation | None:
        """Measure the student, or another model in its place; None where there are no prompts for that."""
        if self.validation is None:
            return None
        return evaluate_student(self.step if model is None else self.step.of(model), self.validation)

    def validate(self) -> RewardEvaluation:
        """Measure the student while it trains."""
        with self.step.placement.whole(self.model) as whole:
            found = self.evaluate(None if whole is self.model else whole)
        assert found is not None
        return found


def prepare(config: DistillConfig, context: RunContext) -> Ready:
    """Load student, teachers and prompts, insert adapters, and check that all of it goes together.

    Args:
        config: the validated recipe.
        context: device and processes.

    Returns:
        All of it; the models are on the device.

    Raises:
        PetkitError: models or prompts cannot be used, by kind.
    """
    if _evaluates(config) and config.data.validation is None:
        key = "select validation" if config.training.select == "validation" else "evaluate_every_steps"
        raise ConfigError(f"training.{key} needs prompts with answers: set data.validation")
    if config.training.sharding != "none" and context.world.size == 1:
        raise ConfigError(
            f"training.sharding {config.training.sharding} needs two processes or more, got 1: start them "
            "with `torchrun --nproc-per-node N -m petkit distill`, or leave it out"
        )
    full = config.student.tuning == "full"
    if config.adapter.method == "linear_probe" and not full:
        raise ConfigError(
            "adapter.method linear_probe trains a new head alone, and a language model has none"
        )
    with under_key("model.name", "student.model.name"):
        loaded = load_model(config.student.model, "causal_lm")
    model = loaded.model
    without_dropout(model)
    full_model_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    teachers = load_teachers(config, loaded, padding_token(loaded.tokenizer), context.device)
    train, validation = _prompts(config, loaded, teachers)
    if teachers.cached is not None:
        teachers.cached.check(config, train, loaded.tokenizer)
    sites = [] if full else insert(model, config.adapter, stream(config.seed, "init", "adapters"))
    model.to(context.device)
    steps = planned_steps(config.training, len(train), config.seed, context.world.size)
    vocab = vocabulary_size(model, *(one.model for one in teachers.heads))
    if not teachers.are_here:
        # What a server's model fills its table up with is not known.
        vocab = min(vocab, known_tokens(loaded.tokenizer))
    if config.objective.teacher_tokens > vocab:
        raise ConfigError(
            f"objective.top_k must be at most {vocab}, the tokens that student and teacher share, got "
            f"{config.objective.teacher_tokens}: set it"
        )
    total = steps["per_epoch"] * config.training.epochs
    writer = writer_of(config, loaded.tokenizer)
    served = _served(config, context, loaded, vocab) if config.rollout.model else None
    head, ends = Head(model, vocab), end_tokens(model)
    distillation = DistillationStep(config, head, teachers, writer, total, ends, served, judge_of(config))
    ready = Ready(loaded, teachers, train, validation, sites, distillation, full_model_bytes)
    if context.resume is not None:
        check_drift(context.resume, _identity(config, ready, context))
        check_reward(context.resume, config, distillation.judge)
    return ready


def _evaluates(config: DistillConfig) -> bool:
    """Whether the student is measured between its first and its last step."""
    return config.training.select == "validation" or config.training.evaluate_every_steps is not None


def _served(config: DistillConfig, context: RunContext, loaded: LoadedModel, vocab: int) -> ServedStudent:
    def write(model: nn.Module, folder: Path) -> None:
        write_served(folder, model, config, loaded, config.student.tuning == "full")

    folder = Path(config.rollout.folder or f"{config.output}.served")
    check_served(folder)
    ends, most = end_tokens(loaded.model), context_length(loaded.model)
    return ServedStudent(config, folder, vocab, ends, most, context.world, write)


def _prompts(
    config: DistillConfig, loaded: LoadedModel, teachers: Teachers
) -> tuple[PromptSet, PromptSet | None]:
    data = config.data
    # One token of a response at least.
    contexts = [context_length(loaded.model), *(one.context for one in teachers.teachers.values())]
    longest = min((one for one in contexts if one is not None), default=sys.maxsize) - 1
    train = load_prompts(data.train, data.train_size, data, loaded.tokenizer, longest, labelled=False)
    validation = None
    if data.validation is not None:
        validation = load_prompts(
            data.validation,
            data.validation_size,
            data,
            loaded.tokenizer,
            longest,
            labelled=config.reward.function is None,
        )
    for key, prompts in (("data.train", train), ("data.validation", validation)):
        for prompt in [] if prompts is None else prompts.prompts:
            _check_room(prompt, key, loaded.model, teachers, config.sampling.max_new_tokens)
    return train, validation


def _check_room(prompt: Prompt, key: str, student: nn.Module, teachers: Teachers, limit: int) -> None:
    """Refuse a prompt without a teacher, or whose response may grow beyond its teacher's context."""
    teacher = teachers.of(prompt.question.dataset)
    context = teacher.context or sys.maxsize
    longest = min(len(prompt.ids) + limit, context_length(student) or sys.maxsize)
    if longest > context:
        raise InputError(
            f"sampling.max_new_tokens must be at most {context - len(prompt.ids)} behind the "
            f"{len(prompt.ids)} tokens of {prompt.question.name} of {key}, got {limit}: the context of the "
            f"teacher {teacher.name} is {context} tokens"
        )


def writer_of(config: DistillConfig, tokenizer: Any) -> Writer:
    """How the student's ids become texts, and the texts that end its responses."""

    def decode(ids: Any) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    stops = Stops(config.sampling.stop, decode) if config.sampling.stop else None
    return Writer(padding_token(tokenizer), decode, stops)


@torch.no_grad()
def _same_behaviour(ready: Ready, reloaded: nn.Module) -> Check:
    """Compare the logits of the trained student and of its reloaded artifact at prompts."""
    ready.model.eval()
    pairs: list[tuple[Tensor, Tensor]] = []
    for prompt in ready.train.prompts[:CHECKED_PROMPTS]:
        ids = torch.tensor([prompt.ids], device=next(reloaded.parameters()).device)
        logits = [one(input_ids=ids, use_cache=False).logits[0] for one in (ready.model, reloaded)]
        pairs.append((logits[0], logits[1]))
    trained, again = (torch.cat(side) for side in zip(*pairs, strict=True))
    return compare_logits(trained, again)


def _identity(config: DistillConfig, ready: Ready, context: RunContext) -> dict[str, Any]:
    """List the settings that a resumed run must share with the run it goes on from."""
    found = {
        "student.sha256": ready.loaded.base_sha256,
        "teachers.sha256": {name: one.sha256 for name, one in ready.teachers.teachers.items()},
        "data.sha256": ready.train.sha256,
        "processes": context.world.size,
    }
    reward = reward_facts(ready.step.judge)
    if reward is not None:
        found["reward.sha256"] = reward["sha256"]
    return lasting_settings(config) | found


def _summary(
    config: DistillConfig,
    ready: Ready,
    context: RunContext,
    fitted: Fitted,
    measured: tuple[RewardEvaluation | None, RewardEvaluation | None],
    check: Check,
) -> dict[str, Any]:
    before, after = (None if one is None else one.payload() for one in measured)
    return {
        **run_facts(context, config.seed, fitted, [check]),
        "task": "distillation",
        "objective": config.objective.kind,
        "tuning": config.student.tuning,
        "teachers": ready.teachers.facts(),
        "reward_function": reward_facts(ready.step.judge),
        "evaluated": "artifact, reloaded",
        "before": before,
        "after": after,
        "examples_per_second": {"train": fitted.examples_per_second},
        "bytes": sizes_of(config, ready),
    }
