"""A frozen model with new adapters and head, its examples, and what is said of them: before and after fit."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from torch import nn

from petkit.artifacts import Base, Check, Manifest, Preprocess
from petkit.artifacts import Task as RecordedTask
from petkit.artifacts.manifest import Step
from petkit.data.config import DataConfig
from petkit.data.loading import Dataset, Splits, list_data
from petkit.data.tokens import at_targets
from petkit.errors import ConfigError, InputError
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.models.inserts import Site, insert, pack, set_head
from petkit.models.loaded import LoadedModel, Task, compute_logits, new_head
from petkit.models.loading import load_model
from petkit.models.site_names import patterns_of
from petkit.training.config import Precision, TrainingConfig
from petkit.training.context import RunContext
from petkit.training.distributed import World
from petkit.training.evaluate import Evaluation, StepFunction, evaluate, to_device
from petkit.training.fit import Fitted
from petkit.training.memory import estimate_memory
from petkit.training.optim import trainable_parameters
from petkit.training.outcome import compare_logits, size_ledger
from petkit.training.run import planned_steps, run_facts
from petkit.training.sampler import plan_batches
from petkit.training.seeds import stream

log = logging.getLogger(__name__)

CHECKED_EXAMPLES = 32
# Reading a larger split twice would cost more than finding a bad file late.
READ_UP_FRONT = 20_000


class AdapterRecipe(Protocol):
    """What a recipe says of adapters that are trained on examples."""

    @property
    def seed(self) -> int:
        """Root of the named streams."""

    @property
    def task(self) -> Task:
        """What the head predicts."""

    @property
    def model(self) -> ModelConfig:
        """The frozen model."""

    @property
    def adapter(self) -> AdapterConfig:
        """What is put into it."""

    @property
    def data(self) -> DataConfig:
        """The examples."""

    @property
    def training(self) -> TrainingConfig:
        """How they are learnt."""


@dataclass(frozen=True)
class Ready:
    """A model with adapters and its data, before the first step."""

    loaded: LoadedModel
    splits: Splits
    train: Dataset
    sites: Sequence[Site]
    full_model_bytes: int
    data_sha256: str

    @property
    def model(self) -> nn.Module:
        """The frozen model with trainable adapters and head."""
        return self.loaded.model

    @property
    def used(self) -> Mapping[str, Dataset | None]:
        """The splits by the part they play."""
        selecting = self.train is self.splits.train
        validation = self.splits.validation if selecting else None
        return {"train": self.train, "validation": validation, "test": self.splits.test}

    @property
    def licence(self) -> str | None:
        """The licence of the base model where its library records one."""
        recorded = getattr(self.model, "pretrained_cfg", None) or {}
        return recorded.get("license")


def prepare_adapters(config: AdapterRecipe, context: RunContext) -> Ready:
    """Load model and data, give the model its head and adapters, and check that they can be trained.

    Args:
        config: the validated recipe.
        context: device and processes.

    Returns:
        All of it; the model is on the device.

    Raises:
        ConfigError: the recipe does not fit the model or the data.
        PetkitError: model or data cannot be loaded.
    """
    _warn_of_endless_warmup(config.training)
    if config.model.pooling == "own":
        raise ConfigError(
            "model.pooling own is for adapters converted from PEFT: training puts a new linear head on cls, "
            "mean or last"
        )
    # Before a model is fetched, for minutes perhaps, in vain.
    finish_data = list_data(config.data, config.task, seed=config.seed)
    # With a head of one class, until the splits say how many there are.
    loaded = load_model(config.model, config.task, num_classes=1)
    splits = finish_data(loaded.preprocess, loaded.tokenizer)
    # The artifact will record it: a value that it refuses must not be found after the training.
    _preprocess(splits, loaded.base_id)
    model = loaded.model
    if config.task != "causal_lm":
        width = int(model.head.in_features)  # type: ignore[union-attr, arg-type]
        set_head(model, new_head(width, len(splits.classes), stream(config.seed, "init", "head")))
    full_model_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    sites = insert(model, config.adapter, stream(config.seed, "init", "adapters"))
    train = _training_split(config, splits)
    data_sha256 = _fingerprint([train, splits.validation if train is splits.train else None])
    for _ in _read_up_front(splits.test):
        pass
    trainable_parameters(model)
    plan_batches(config.training, len(train), config.seed, context.world.size)
    model.to(context.device)
    log.info("%s", _matched(sites))
    for site in sites:
        log.debug("adapter at %s (%d -> %d)", site.name, site.in_features, site.out_features)
    return Ready(loaded, splits, train, sites, full_model_bytes, data_sha256)


def _warn_of_endless_warmup(training: TrainingConfig) -> None:
    if training.warmup_epochs == training.epochs:
        log.warning(
            "training.warmup_epochs %g is all of training.epochs %d: the learning rate only rises, and "
            "training.min_learning_rate has no effect",
            training.warmup_epochs,
            training.epochs,
        )


def _training_split(config: AdapterRecipe, splits: Splits) -> Dataset:
    """Choose what is trained on: train alone when validation selects, else train and validation."""
    selecting = config.training.select == "validation"
    if selecting and splits.validation is None:
        raise ConfigError(
            "training.select validation needs a validation split, got none in the data: add one or set "
            "training.select=last"
        )
    chosen = splits.train if selecting else splits.everything
    if chosen is None:
        raise ConfigError("training needs a train split, got none: see data.path")
    return chosen


def _read_up_front(split: Dataset | None) -> Iterator[dict[str, Any]]:
    """Find a file that cannot be read now and not after hours; small images stay decoded for the run."""
    if split is not None and len(split) <= READ_UP_FRONT:
        for index in range(len(split)):
            yield split[index]


def _fingerprint(splits: Sequence[Dataset | None]) -> str:
    """Hash what decides the weights: labels, and the examples of splits that are read up front anyway."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(json.dumps([] if split is None else [split.labels, split.rows]).encode())
        for example in _read_up_front(split):
            for key, value in sorted(example.items()):
                digest.update(key.encode())
                digest.update(
                    value.numpy().tobytes() if isinstance(value, torch.Tensor) else json.dumps(value).encode()
                )
    return digest.hexdigest()


def _matched(sites: Sequence[Site]) -> str:
    """Summarise where adapters went in one line."""
    if not sites:
        return "no adapters: the head alone is trained"
    return f"adapters at {len(sites)} modules: {', '.join(patterns_of(site.name for site in sites))}"


def identity_of(ready: Ready, context: RunContext) -> dict[str, Any]:
    """List what a resumed run must share with the run it goes on from, beside its settings.

    Args:
        ready: model and data.
        context: the processes.

    Returns:
        Dotted key -> JSON value.
    """
    return {
        "model.sha256": ready.loaded.base_sha256,
        "data.training_examples": len(ready.train),
        "data.sha256": ready.data_sha256,
        "processes": context.world.size,
    }


def plan_of(config: AdapterRecipe, ready: Ready, context: RunContext) -> dict[str, Any]:
    """What a plan says before anything is trained.

    Args:
        config: the recipe.
        ready: model and data.
        context: folder, device, processes.

    Returns:
        JSON-ready values: model, data, matched modules, sizes, steps.
    """
    return {
        "status": "plan",
        "output": str(context.folder),
        "device": str(context.device),
        "processes": context.world.size,
        "task": config.task,
        "model": {"id": ready.loaded.base_id, "sha256": ready.loaded.base_sha256},
        "examples": {name: None if split is None else len(split) for name, split in ready.used.items()},
        "classes": len(ready.splits.classes),
        "adapters": [site.name for site in ready.sites],
        "trainable_parameters": sum(p.numel() for p in trainable_parameters(ready.model).values()),
        "bytes": size_ledger(*pack(ready.model), ready.full_model_bytes),
        "steps": planned_steps(config.training, len(ready.train), config.seed, context.world.size),
    }


def memory_of(model: nn.Module, step: StepFunction, batch: Any, config: AdapterRecipe) -> dict[str, int]:
    """Bytes that a training takes.

    Args:
        model: what is trained, put into training mode.
        step: its step function.
        batch: of one example, on the model's device.
        config: says how many examples a forward pass has.

    Returns:
        JSON-ready values.
    """
    micro_batch = -(-config.training.batch_size // config.training.gradient_accumulation)
    model.train()
    memory = estimate_memory(model, step, batch, micro_batch)
    return {
        "weights": memory.weights,
        "optimizer": memory.optimizer,
        "activations": memory.activations,
        "total": memory.total,
    }


def validation_of(
    config: AdapterRecipe, ready: Ready, step: StepFunction, context: RunContext
) -> Callable[[], Evaluation] | None:
    """Make the function that scores a step on the validation split, when that split selects.

    Args:
        config: the recipe.
        ready: model and data.
        step: loss and hits of a batch.
        context: device and processes.

    Returns:
        The function for `fit`, or None.
    """
    validation, precision = ready.used["validation"], config.training.precision
    if validation is None:
        return None
    return lambda: evaluate_split(
        config, ready.model, validation, ready.splits.classes, step, context, precision, context.world
    )


def evaluate_split(
    config: AdapterRecipe,
    model: nn.Module,
    split: Dataset | None,
    classes: Sequence[str],
    step: StepFunction,
    context: RunContext,
    precision: Precision = "fp32",
    world: World | None = None,
) -> Evaluation:
    """Evaluate a model on one split with the recipe's batch size.

    Args:
        config: the recipe.
        model: on the context's device.
        split: the examples.
        classes: names in label order.
        step: loss and hits of a batch.
        context: the device.
        precision: bf16 runs under autocast.
        world: processes that share the split; None is this one alone.

    Returns:
        The evaluation.

    Raises:
        InputError: the split is empty.
    """
    return evaluate(
        model,
        split or [],
        step,
        batch_size=config.training.batch_size,
        device=context.device,
        precision=precision,
        workers=config.data.workers,
        classes=classes,
        world=world,
    )


def same_behaviour(ready: Ready, reloaded: nn.Module, device: torch.device) -> Check:
    """Compare the trained model with its reloaded artifact on the first training examples.

    Args:
        ready: the trained model and its examples.
        reloaded: in evaluation mode.
        device: of both.

    Returns:
        The check.
    """
    examples = [ready.train[index] for index in range(min(CHECKED_EXAMPLES, len(ready.train)))]
    batch = to_device(ready.train.collate(examples), device)
    with torch.no_grad():
        logits = [compute_logits(model.eval(), batch) for model in (ready.model, reloaded)]
    if batch["labels"].ndim == 2:
        # Behind padding a language model's logits mean nothing.
        logits = [at_targets(one, batch["labels"])[0] for one in logits]
    return compare_logits(*logits)


def describe(config: AdapterRecipe, ready: Ready, lineage: tuple[Step, ...]) -> Manifest:
    """Write down what the artifact is.

    Args:
        config: the recipe.
        ready: model and data.
        lineage: the commands that made it.

    Returns:
        The content of petkit.json.
    """
    loaded, splits = ready.loaded, ready.splits
    text = config.task != "image_classification"
    return Manifest(
        base=Base(id=loaded.base_id, revision=loaded.revision, sha256=loaded.base_sha256),
        lineage=lineage,
        model=config.model.model_dump(mode="json"),
        adapter=config.adapter.model_dump(mode="json"),
        task=RecordedTask(
            type=config.task,
            classes=splits.classes,
            preprocess=_preprocess(splits, loaded.base_id),
            max_length=_max_length(config, loaded.tokenizer) if text else None,
        ),
    )


def _max_length(config: AdapterRecipe, tokenizer: Any) -> int:
    """Tokens that were kept of a text: as configured, and no more than the model takes."""
    return min(config.data.max_length, int(tokenizer.model_max_length))


def _preprocess(splits: Splits, base: str) -> Preprocess | None:
    """Take what is done to pixels from the model's own record, such as preprocessor_config.json."""
    try:
        return None if splits.preprocess is None else Preprocess(**splits.preprocess)
    except ValidationError as error:
        faults = "; ".join(
            f"{fault['loc'][0]}: {fault['msg']}, got {fault['input']}" for fault in error.errors()
        )
        raise InputError(
            f"{base} must say how its pictures are prepared, with three means and three positive standard "
            f"deviations, got {faults}: correct its preprocessor_config.json or set data.normalize=none"
        ) from error


def summary_of(
    config: AdapterRecipe, context: RunContext, fitted: Fitted, evaluation: Evaluation, check: Check
) -> dict[str, Any]:
    """Sum a run up for result.json.

    Args:
        config: the recipe.
        context: folder, device, processes.
        fitted: the training.
        evaluation: of the reloaded artifact on the test split.
        check: that it behaves like the trained model.

    Returns:
        JSON-ready values.
    """
    measured = evaluation.payload()
    rate = {"train": fitted.examples_per_second, "eval": measured.pop("examples_per_second")}
    unit = "images" if config.task == "image_classification" else "examples"
    return {
        **run_facts(context, config.seed, fitted, [check]),
        "task": config.task,
        "split": "test",
        "evaluated": "packed artifact, reloaded",
        **measured,
        f"{unit}_per_second": rate,
    }
