"""`petkit distill` with `kind: vision`: from a recipe to an artifact. Start reading at `run`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from petkit.artifacts import (
    atomic_write,
    staged_in_run,
    step,
    write_artifact,
    write_checks,
    write_json,
)
from petkit.configuration.effects import effective
from petkit.data.images import ImageDataset
from petkit.methods.vision_distillation.config import VisionDistillationConfig
from petkit.methods.vision_distillation.model import Pupil, new_projector
from petkit.methods.vision_distillation.step import MEASURES, ComparedStep, distillation_step
from petkit.methods.vision_distillation.targets import FEATURES, LOGITS, Targets, TaughtDataset, ask
from petkit.methods.vision_distillation.teacher import Teacher, load_teacher
from petkit.models.inserts import pack
from petkit.models.loading import load_adapted
from petkit.training.adapting import (
    Ready,
    describe,
    evaluate_split,
    identity_of,
    memory_of,
    plan_of,
    prepare_adapters,
    same_behaviour,
    summary_of,
    validation_of,
)
from petkit.training.checkpoint import check_drift, lasting_settings
from petkit.training.classification import classification_step
from petkit.training.context import RunContext
from petkit.training.evaluate import Evaluation, to_device, wilson_interval
from petkit.training.fit import fit
from petkit.training.optim import trainable_parameters
from petkit.training.outcome import measured_accuracy, model_card, size_ledger
from petkit.training.run import HISTORY, claim_folder, history_file, raise_failed
from petkit.training.seeds import stream

log = logging.getLogger(__name__)

COMMAND = "distill"


def run(config: VisionDistillationConfig, context: RunContext) -> dict[str, Any] | None:
    """Train a student on labels and a teacher's answers, write its artifact, load that again and measure it.

    Args:
        config: the validated recipe.
        context: folder, device, processes.

    Returns:
        The content of result.json; None on processes other than the first.

    Raises:
        GateError: the reloaded artifact does not behave like the trained student.
        PetkitError: whatever else stops the run, by kind.

    Source:
        Hinton, Vinyals and Dean (2015), arXiv:1503.02531, for logits; algorithm.py names those of features.
    """
    distilling = prepare(config, context)
    ready = distilling.ready
    with claim_folder(context) as directory:
        train = _ask(config, distilling.teacher, ready.train, context)
        fitted = fit(
            distilling.pupil,
            distillation_step(config.distillation),
            train,
            config.training,
            context,
            seed=config.seed,
            identity=_identity(config, distilling, context),
            validate=validation_of(config, ready, classification_step, context),
            workers=config.data.workers,
            measures=MEASURES,
        )
        if directory is None:
            return None
        packed, dense = pack(ready.model)
        inputs = {"base": ready.loaded.base_sha256, "teacher": distilling.teacher.sha256}
        manifest = describe(config, ready, (step(COMMAND, effective(config), inputs),))
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
            check = same_behaviour(ready, reloaded, context.device)
            write_checks(folder, [check])
            log.info("evaluating the packed artifact and its teacher on the test split")
            evaluation, teacher = _evaluate(config, distilling, reloaded, context)
            result = summary_of(config, context, fitted, evaluation, check)
            result |= {"teacher": teacher, "bytes": size_ledger(packed, dense, ready.full_model_bytes)}
            card = model_card(manifest, result, ready.licence, _card_rows(result))
            atomic_write(folder / "README.md", card.encode())
            write_json(folder / "result.json", result)
    raise_failed([check], context)
    return result


def plan(config: VisionDistillationConfig, context: RunContext) -> dict[str, Any]:
    """Do everything that a run does before it asks the teacher, and say what would follow.

    Args:
        config: the validated recipe.
        context: folder, device, processes.

    Returns:
        JSON-ready values: student, teacher, data, matched modules, sizes, steps, memory.

    Raises:
        PetkitError: what would stop the run, too.
    """
    distilling = prepare(config, context)
    ready, teacher = distilling.ready, distilling.teacher
    batch = ready.train.collate([ready.train[0]])
    batch[FEATURES] = torch.zeros(1, teacher.width)
    if teacher.classifies:
        batch[LOGITS] = torch.zeros(1, len(ready.splits.classes))
    step = distillation_step(config.distillation)
    memory = memory_of(distilling.pupil, step, to_device(batch, context.device), config)
    wanted = config.distillation
    return plan_of(config, ready, context) | {
        "trainable_parameters": sum(p.numel() for p in trainable_parameters(distilling.pupil).values()),
        "teacher": {
            "id": teacher.id,
            "sha256": teacher.sha256,
            "image_size": teacher.preprocess["image_size"],
            "features": teacher.width,
        },
        "learns": [
            name
            for name, weight in (
                ("labels", 1 - wanted.alpha),
                ("logits", wanted.alpha),
                ("features", wanted.feature_weight),
            )
            if weight
        ],
        "memory_bytes": memory,
    }


@dataclass(frozen=True)
class Distilling:
    """A student and its teacher, before the first step."""

    ready: Ready
    teacher: Teacher
    pupil: Pupil


def prepare(config: VisionDistillationConfig, context: RunContext) -> Distilling:
    """Load student, data and teacher, and check that all of it goes together.

    Args:
        config: the validated recipe.
        context: device and processes.

    Returns:
        All of it; the models are on the device.

    Raises:
        PetkitError: models or data cannot be used, by kind.
    """
    ready = prepare_adapters(config, context)
    teacher = load_teacher(config, ready.splits.classes, context.device)
    projector = None
    if config.distillation.feature_weight:
        pixels = ready.train.collate([ready.train[0]])["pixel_values"].to(context.device)
        generator = stream(config.seed, "init", "projector")
        projector = new_projector(ready.model, teacher.width, pixels, generator)
    distilling = Distilling(ready, teacher, Pupil(ready.model, projector))
    if context.resume is not None:
        check_drift(context.resume, _identity(config, distilling, context))
    return distilling


def _ask(
    config: VisionDistillationConfig, teacher: Teacher, split: Any, context: RunContext
) -> TaughtDataset:
    """Put the teacher's answers beside the examples of a split."""
    assert isinstance(split, ImageDataset)
    with context.stage("teacher", len(split)) as advance:
        targets: Targets = ask(
            teacher,
            split,
            context.device,
            features=config.distillation.feature_weight > 0,
            batch_size=config.training.batch_size,
            workers=config.data.workers,
            advance=advance,
        )
    return TaughtDataset(split, targets)


def _evaluate(
    config: VisionDistillationConfig, distilling: Distilling, student: nn.Module, context: RunContext
) -> tuple[Evaluation, dict[str, Any]]:
    """Measure the student on the test split, and its teacher beside it."""
    teacher, classes = distilling.teacher, distilling.ready.splits.classes
    test = _ask(config, teacher, distilling.ready.splits.test, context)
    compared = ComparedStep()
    evaluation = evaluate_split(config, student, test, classes, compared, context)
    facts: dict[str, Any] = {"id": teacher.id, "sha256": teacher.sha256}
    logits = test.targets.logits
    if logits is not None:
        correct = int((logits.argmax(-1) == torch.tensor(test.labels)).sum())
        facts |= {
            "accuracy": correct / len(test),
            "interval": list(wilson_interval(correct, len(test))),
            "n": len(test),
            "agreement": compared.agreed / len(test),
        }
    return evaluation, facts


def _identity(
    config: VisionDistillationConfig, distilling: Distilling, context: RunContext
) -> dict[str, Any]:
    """List the settings that a resumed run must share with the run it goes on from."""
    found = identity_of(distilling.ready, context) | {"teacher.sha256": distilling.teacher.sha256}
    return lasting_settings(config) | found


def _card_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    teacher = result["teacher"]
    rows = [("teacher", f"`{teacher['id']}`, sha256 `{teacher['sha256']}`")]
    if "accuracy" in teacher:
        rows.append(("teacher on the test split", measured_accuracy(teacher)))
        rows.append(("same answer as the teacher", f"{teacher['agreement']:.1%} of the examples"))
    return rows
