"""`petkit train adapter`: from a recipe to an artifact. Start reading at `run`."""

from __future__ import annotations

import logging
from typing import Any

from petkit.artifacts import (
    atomic_write,
    staged_in_run,
    step,
    write_artifact,
    write_checks,
    write_json,
)
from petkit.configuration.effects import effective
from petkit.methods.binary_adapter.algorithm import step_function
from petkit.methods.binary_adapter.config import BinaryAdapterConfig
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
from petkit.training.context import RunContext
from petkit.training.evaluate import to_device
from petkit.training.fit import fit
from petkit.training.outcome import model_card, size_ledger
from petkit.training.run import HISTORY, claim_folder, history_file, raise_failed

log = logging.getLogger(__name__)

COMMAND = "train adapter"


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
    learn = step_function(config.task)
    with claim_folder(context) as directory:
        fitted = fit(
            ready.model,
            learn,
            ready.train,
            config.training,
            context,
            seed=config.seed,
            identity=_identity(config, ready, context),
            validate=validation_of(config, ready, learn, context),
            workers=config.data.workers,
        )
        if directory is None:
            return None
        packed, dense = pack(ready.model)
        lineage = (step(COMMAND, effective(config), {"base": ready.loaded.base_sha256}),)
        manifest = describe(config, ready, lineage)
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
            log.info("evaluating the packed artifact on the test split")
            test, classes = ready.splits.test, ready.splits.classes
            evaluation = evaluate_split(config, reloaded, test, classes, learn, context)
            sizes = size_ledger(packed, dense, ready.full_model_bytes)
            result = summary_of(config, context, fitted, evaluation, check) | {"bytes": sizes}
            card = model_card(manifest, result, ready.licence)
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
    memory = memory_of(ready.model, step_function(config.task), example, config)
    return plan_of(config, ready, context) | {"memory_bytes": memory}


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
    ready = prepare_adapters(config, context)
    if context.resume is not None:
        check_drift(context.resume, _identity(config, ready, context))
    return ready


def _identity(config: BinaryAdapterConfig, ready: Ready, context: RunContext) -> dict[str, Any]:
    """List the settings that a resumed run must share with the run it goes on from."""
    return lasting_settings(config) | identity_of(ready, context)
