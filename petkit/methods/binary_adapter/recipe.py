"""`petkit train adapter`: from a recipe to an artifact. Start reading at `run`."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from petkit.artifacts import (
    Base,
    Check,
    Manifest,
    Preprocess,
    Task,
    atomic_write,
    staged_in_run,
    step,
    write_artifact,
    write_checks,
    write_json,
)
from petkit.configuration.effects import effective
from petkit.data.loading import Dataset, Splits, list_data
from petkit.data.tokens import at_targets
from petkit.errors import ConfigError, InputError
from petkit.methods.binary_adapter.algorithm import insert_adapters, pack_adapters, step_function
from petkit.methods.binary_adapter.config import BinaryAdapterConfig
from petkit.models.inserts import Site, set_head
from petkit.models.loaded import LoadedModel, compute_logits, new_head
from petkit.models.loading import load_adapted, load_model
from petkit.training.checkpoint import check_drift, lasting_settings
from petkit.training.config import Precision, TrainingConfig
from petkit.training.context import RunContext
from petkit.training.distributed import World
from petkit.training.evaluate import Evaluation, evaluate, to_device
from petkit.training.fit import Fitted, fit
from petkit.training.memory import estimate_memory
from petkit.training.optim import trainable_parameters
from petkit.training.outcome import compare_logits, model_card, size_ledger
from petkit.training.run import (
    HISTORY,
    claim_folder,
    history_file,
    planned_steps,
    raise_failed,
    run_facts,
)
from petkit.training.sampler import plan_batches
from petkit.training.seeds import stream

log = logging.getLogger(__name__)

COMMAND = "train adapter"
CHECKED_EXAMPLES = 32
# Reading a larger split twice would cost more than finding a bad file late.
READ_UP_FRONT = 20_000


def run(config: BinaryAdapterConfig, context: RunContext) -> dict[str, Any] | None:
    """Train an adapter, write its artifact, load that again and measure it.

    Args:
        config: the validated recipe.
        context: folder, device, processes.

    Returns:
        The content of result.json; None on processes other than the first.

    Raises:
        GateError: the reloaded artifact does not behave like the trained model.
        PetkitError: whatever else stops the run, by kind.

    Source:
        Jie, Wang and Deng (2023). The original chose its checkpoint on the test split; here that split is
        evaluated once, after everything is decided.
    """
    ready = prepare(config, context)
    with claim_folder(context) as directory:
        fitted = fit(
            ready.model,
            step_function(config.task),
            ready.train,
            config.training,
            context,
            seed=config.seed,
            identity=_identity(config, ready, context),
            validate=_validation_of(config, ready, context),
            workers=config.data.workers,
        )
        if directory is None:
            return None
        packed, dense = pack_adapters(ready.model)
        manifest = _describe(config, ready)
        with staged_in_run(directory) as folder:
            write_artifact(
                folder,
                manifest=manifest,
                config=effective(config),
                packed=packed,
                dense=dense,
                extra_files={HISTORY: history_file(config.training, fitted)},
            )
            reloaded = load_adapted(folder, context.device, mode="packed").model
            check = _same_behaviour(ready, reloaded, context.device)
            write_checks(folder, [check])
            log.info("evaluating the packed artifact on the test split")
            evaluation = _evaluate_split(config, reloaded, ready.splits.test, ready.splits.classes, context)
            sizes = size_ledger(packed, dense, ready.full_model_bytes)
            result = _summary(config, context, fitted, evaluation, check) | {"bytes": sizes}
            card = model_card(manifest, result, _licence_of(ready.model))
            atomic_write(folder / "README.md", card.encode())
            write_json(folder / "result.json", result)
    raise_failed([check], context)
    return result


def plan(config: BinaryAdapterConfig, context: RunContext) -> dict[str, Any]:
    """Do everything that a run does before its first step, and say what would follow.

    Args:
        config: the validated recipe.
        context: folder, device, processes.

    Returns:
        JSON-ready values: model, data, matched modules, sizes, steps, memory.

    Raises:
        PetkitError: what would stop the run, too.
    """
    ready = prepare(config, context)
    example = to_device(ready.train.collate([ready.train[0]]), context.device)
    micro_batch = -(-config.training.batch_size // config.training.gradient_accumulation)
    ready.model.train()
    memory = estimate_memory(ready.model, step_function(config.task), example, micro_batch)
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
        "bytes": size_ledger(*pack_adapters(ready.model), ready.full_model_bytes),
        "steps": planned_steps(config.training, len(ready.train), config.seed, context.world.size),
        "memory_bytes": {
            "weights": memory.weights,
            "optimizer": memory.optimizer,
            "activations": memory.activations,
            "total": memory.total,
        },
    }


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


def prepare(config: BinaryAdapterConfig, context: RunContext) -> Ready:
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
    sites = insert_adapters(model, config.adapter, stream(config.seed, "init", "adapters"))
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
    ready = Ready(loaded, splits, train, sites, full_model_bytes, data_sha256)
    if context.resume is not None:
        check_drift(context.resume, _identity(config, ready, context))
    return ready


def _warn_of_endless_warmup(training: TrainingConfig) -> None:
    if training.warmup_epochs == training.epochs:
        log.warning(
            "training.warmup_epochs %g is all of training.epochs %d: the learning rate only rises, and "
            "training.min_learning_rate has no effect",
            training.warmup_epochs,
            training.epochs,
        )


def _training_split(config: BinaryAdapterConfig, splits: Splits) -> Dataset:
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


def _validation_of(
    config: BinaryAdapterConfig, ready: Ready, context: RunContext
) -> Callable[[], Evaluation] | None:
    """Make the function that scores a step on the validation split, when that split selects."""
    validation = ready.used["validation"]
    if validation is None:
        return None
    return lambda: _evaluate_split(
        config,
        ready.model,
        validation,
        ready.splits.classes,
        context,
        config.training.precision,
        context.world,
    )


def _evaluate_split(
    config: BinaryAdapterConfig,
    model: nn.Module,
    split: Dataset | None,
    classes: Sequence[str],
    context: RunContext,
    precision: Precision = "fp32",
    world: World | None = None,
) -> Evaluation:
    """Evaluate a model on one split with the recipe's batch size."""
    return evaluate(
        model,
        split or [],
        step_function(config.task),
        batch_size=config.training.batch_size,
        device=context.device,
        precision=precision,
        workers=config.data.workers,
        classes=classes,
        world=world,
    )


def _same_behaviour(ready: Ready, reloaded: nn.Module, device: torch.device) -> Check:
    """Compare the trained model with its reloaded artifact on the first training examples."""
    examples = [ready.train[index] for index in range(min(CHECKED_EXAMPLES, len(ready.train)))]
    batch = to_device(ready.train.collate(examples), device)
    with torch.no_grad():
        logits = [compute_logits(model.eval(), batch) for model in (ready.model, reloaded)]
    if batch["labels"].ndim == 2:
        # Behind padding a language model's logits mean nothing.
        logits = [at_targets(one, batch["labels"])[0] for one in logits]
    return compare_logits(*logits)


def _identity(config: BinaryAdapterConfig, ready: Ready, context: RunContext) -> dict[str, Any]:
    """List the settings that a resumed run must share with the run it goes on from."""
    found = {
        "model.sha256": ready.loaded.base_sha256,
        "data.training_examples": len(ready.train),
        "data.sha256": ready.data_sha256,
        "processes": context.world.size,
    }
    return lasting_settings(config) | found


def _describe(config: BinaryAdapterConfig, ready: Ready) -> Manifest:
    """Write down what the artifact is."""
    loaded, splits = ready.loaded, ready.splits
    text = config.task != "image_classification"
    base = Base(id=loaded.base_id, revision=loaded.revision, sha256=loaded.base_sha256)
    return Manifest(
        base=base,
        lineage=(step(COMMAND, effective(config), {"base": loaded.base_sha256}),),
        model=config.model.model_dump(mode="json"),
        adapter=config.adapter.model_dump(mode="json"),
        task=Task(
            type=config.task,
            classes=splits.classes,
            preprocess=_preprocess(splits, loaded.base_id),
            max_length=_max_length(config, loaded.tokenizer) if text else None,
        ),
    )


def _max_length(config: BinaryAdapterConfig, tokenizer: Any) -> int:
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


def _summary(
    config: BinaryAdapterConfig, context: RunContext, fitted: Fitted, evaluation: Evaluation, check: Check
) -> dict[str, Any]:
    """Sum a run up for result.json."""
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


def _matched(sites: Sequence[Site]) -> str:
    """Summarise where adapters went in one line."""
    if not sites:
        return "no adapters: the head alone is trained"
    patterns = Counter(re.sub(r"\b\d+\b", "*", site.name) for site in sites)
    listed = ", ".join(f"{pattern} ({count})" for pattern, count in patterns.items())
    return f"adapters at {len(sites)} modules: {listed}"


def _licence_of(model: nn.Module) -> str | None:
    """Read the licence of a base model where its library records one."""
    recorded = getattr(model, "pretrained_cfg", None) or {}
    return recorded.get("license")
