"""What every recipe does around its training: claim the folder, keep the history, sum up, judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from petkit.artifacts import Check, RunDirectory, open_run
from petkit.errors import GateError
from petkit.training.config import TrainingConfig
from petkit.training.context import RunContext
from petkit.training.fit import Fitted
from petkit.training.metrics import trainer_state
from petkit.training.optim import make_schedule
from petkit.training.sampler import plan_batches

HISTORY = "trainer_state.json"


def claim_folder(context: RunContext) -> AbstractContextManager[RunDirectory | None]:
    """Take the output folder.

    Args:
        context: says which, and whether the run goes on or begins.

    Returns:
        A context manager of the folder; of None on processes other than the first.

    Raises:
        InputError: the folder is not empty or another run holds it.
    """
    if not context.world.is_main:
        return nullcontext()
    return open_run(context.folder, context.overwrite, context.restart or context.resume is not None)


def history_file(training: TrainingConfig, fitted: Fitted) -> bytes:
    """The run's history, in the shape of trainer_state.json.

    Args:
        training: the section that it ran with.
        fitted: how it went.

    Returns:
        JSON.
    """
    history = trainer_state(
        fitted.history,
        step=fitted.steps,
        total_steps=fitted.total_steps,
        epochs=training.epochs,
        batch_size=training.batch_size,
        best_metric=fitted.best_score,
        best_step=fitted.best_step,
    )
    return json.dumps(history, indent=2).encode()


def planned_steps(training: TrainingConfig, examples: int, seed: int, processes: int) -> dict[str, int]:
    """How many steps a run would take.

    Args:
        training: the section.
        examples: of the training split.
        seed: of the recipe.
        processes: that share a step.

    Returns:
        `total`, limits applied, `per_epoch` and `warmup`.

    Raises:
        ConfigError: no full batch fits into the split.
    """
    batches = plan_batches(training, examples, seed, processes)
    schedule = make_schedule(training, batches.steps_per_epoch)
    total = min(batches.total_steps, training.max_steps or batches.total_steps)
    return {"total": total, "per_epoch": batches.steps_per_epoch, "warmup": schedule.warmup_steps}


def run_facts(context: RunContext, seed: int, fitted: Fitted, checks: Sequence[Check]) -> dict[str, Any]:
    """What result.json says of any run, beside its measures.

    Args:
        context: device and processes.
        seed: of the recipe.
        fitted: how the training went.
        checks: of the reloaded artifact.

    Returns:
        JSON-ready values.
    """
    return {
        "status": "completed" if all(check.ok for check in checks) else "gate_failed",
        "stopped": fitted.stopped,
        "steps": fitted.steps,
        "total_steps": fitted.total_steps,
        "best_step": fitted.best_step,
        "trainable_parameters": fitted.trainable,
        "seed": seed,
        "device": str(context.device),
        "processes": context.world.size,
    }


def raise_failed(checks: Sequence[Check], context: RunContext) -> None:
    """End a run whose reloaded artifact is not what was trained; the artifact stays, with its checks.

    Args:
        checks: of the artifact.
        context: says where it is.

    Raises:
        GateError: the first check that failed.
    """
    for check in checks:
        if not check.ok:
            raise GateError(f"{check.name}: {check.detail} (see checks.json in {context.folder})")
