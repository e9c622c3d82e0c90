"""Runs an experiment: trains what is missing, quantises, adds noise, and gathers one row per variant."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from petkit.artifacts import read_artifact
from petkit.benchmarks.experiment import ExperimentConfig, QuantizeConfig, VariantConfig
from petkit.configuration import effective, load_yaml, resolve
from petkit.errors import InputError
from petkit.methods.binary_adapter import recipe
from petkit.methods.binary_adapter.config import BinaryAdapterConfig
from petkit.methods.binary_adapter.evaluation import evaluate_artifact
from petkit.quantization.artifact import quantize_artifact, write_quantized
from petkit.quantization.config import QuantizationConfig
from petkit.report.statistics import Interval, mean_interval
from petkit.report.tables import Table
from petkit.training.context import RunContext
from petkit.training.outcome import size_ledger

MakeContext = Callable[[Path], RunContext]
RESULT = "result.json"


@dataclass
class Row:
    """One variant over its seeds."""

    name: str
    accuracies: list[float] = field(default_factory=list)
    bytes: dict[str, Any] = field(default_factory=dict)
    train_rates: list[float] = field(default_factory=list)
    eval_rates: list[float] = field(default_factory=list)
    noise: dict[float, list[float]] = field(default_factory=dict)

    @property
    def accuracy(self) -> Interval:
        """Mean test accuracy over seeds with its 95 % t-interval."""
        return mean_interval(self.accuracies)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            **_accuracy_values(self.accuracies),
            "bytes": self.bytes,
            "images_per_second": {"train": self.train_rates, "eval": self.eval_rates},
            "noise": {f"{level:g}": _accuracy_values(values) for level, values in self.noise.items()},
        }


def _accuracy_values(accuracies: list[float]) -> dict[str, Any]:
    interval = mean_interval(accuracies)
    # JSON has no NaN: one seed gives no interval.
    low, high = (end if math.isfinite(end) else None for end in (interval.low, interval.high))
    return {
        "accuracy": {"mean": interval.estimate, "low": low, "high": high},
        "accuracies": accuracies,
    }


def run_experiment(
    experiment: ExperimentConfig,
    recipe_file: Path,
    folder: Path,
    make_context: MakeContext,
    done: Callable[[str], None] = lambda name: None,
) -> list[Row]:
    """Train, quantise and evaluate every variant with every seed; finished runs in `folder` are kept.

    Args:
        experiment: variants, and how many seeds each.
        recipe_file: the recipe that they vary.
        folder: holds one run per variant and seed.
        make_context: gives a run its device and progress, from its folder.
        done: called with a run's name when it is finished.

    Returns:
        One row per variant, in the experiment's order.

    Raises:
        InputError: a finished run in `folder` was made by other settings.
        PetkitError: a run failed, by kind.
    """
    rows = [Row(variant.name) for variant in experiment.variants]
    folders = {variant.name: variant.folder for variant in experiment.variants}
    for seed in range(experiment.seeds):
        for row, variant in zip(rows, experiment.variants, strict=True):
            run = folder / variant.folder / f"seed-{seed}"
            if variant.quantize is None:
                result = _trained(experiment, variant, recipe_file, seed, make_context(run))
            else:
                source = folder / folders[variant.quantize.source] / f"seed-{seed}"
                result = _quantized(variant.quantize, source, make_context(run))
            _gather(row, result)
            for level in experiment.noise:
                row.noise.setdefault(level, []).append(_under_noise(make_context(run), level, seed))
            done(f"{variant.name}, seed {seed}")
    return rows


def plan(experiment: ExperimentConfig, recipe_file: Path, folder: Path) -> list[dict[str, Any]]:
    """What `run_experiment` would do, without doing it.

    Args:
        experiment: variants, and how many seeds each.
        recipe_file: the recipe that they vary.
        folder: holds one run per variant and seed; it may be missing.

    Returns:
        One JSON-ready record per run, in their order: variant, seed, folder, whether it is finished, what the
        variant changes, and all settings of its training or quantisation.

    Raises:
        InputError: a finished run in `folder` was made by other settings.
    """
    runs = []
    for seed in range(experiment.seeds):
        for variant in experiment.variants:
            run = folder / variant.folder / f"seed-{seed}"
            finished = _finished(run) is not None
            if variant.quantize is None:
                config = _settings(experiment, variant, recipe_file, seed, run)
                if finished:
                    _same_settings(config, run)
                changes, settings = [*experiment.set, *variant.set], effective(config)
            else:
                settings = variant.quantize.model_dump(mode="json")
                changes = [f"quantize.{key}={value}" for key, value in settings.items()]
            record = {"variant": variant.name, "seed": seed, "folder": str(run), "finished": finished}
            runs.append({**record, "changes": changes, "settings": settings})
    return runs


def _trained(
    experiment: ExperimentConfig, variant: VariantConfig, recipe_file: Path, seed: int, context: RunContext
) -> dict[str, Any]:
    config = _settings(experiment, variant, recipe_file, seed, context.folder)
    finished = _finished(context.folder)
    if finished is not None:
        _same_settings(config, context.folder)
        return finished
    # One process, no launcher: the first and only process always gets the result.
    return recipe.run(config, context) or {}


def _settings(
    experiment: ExperimentConfig, variant: VariantConfig, recipe_file: Path, seed: int, run: Path
) -> BinaryAdapterConfig:
    flags = {"seed": seed, "output": str(run)}
    return resolve(BinaryAdapterConfig, [recipe_file], [*experiment.set, *variant.set], flags).config


def _finished(folder: Path) -> dict[str, Any] | None:
    try:
        result = json.loads((folder / RESULT).read_text())
    except FileNotFoundError:
        return None
    return dict(result) if result.get("status") == "completed" else None


def _same_settings(config: BinaryAdapterConfig, folder: Path) -> None:
    before, now = load_yaml(folder / "config.yaml").data, effective(config)
    changed = [name for name in now if name != "output" and before.get(name) != now[name]]
    if changed:
        raise InputError(
            f"{folder} was made with other settings ({', '.join(changed)}): remove it or use another folder"
        )


def _quantized(settings: QuantizeConfig, source: Path, context: RunContext) -> dict[str, Any]:
    finished = _finished(context.folder)
    if finished is not None:
        return finished
    quantized = quantize_artifact(
        read_artifact(source), QuantizationConfig(bits=settings.bits, method=settings.method)
    )
    write_quantized(quantized, context.folder, overwrite=True)
    trained = _finished(source) or {}
    evaluation = evaluate_artifact(context.folder, context.device)
    result = {
        "status": "completed",
        "accuracy": evaluation.accuracy,
        "bytes": size_ledger(quantized.packed, quantized.dense, trained["bytes"]["full_model_fp32"]),
        "images_per_second": {"train": None, "eval": evaluation.examples_per_second},
    }
    (context.folder / RESULT).write_text(json.dumps(result, indent=2))
    return result


def _under_noise(context: RunContext, level: float, seed: int) -> float:
    kept = context.folder / f"noise-{level:g}.json"
    if not kept.exists():
        evaluation = evaluate_artifact(context.folder, context.device, noise=level, noise_seed=seed)
        kept.write_text(json.dumps({"accuracy": evaluation.accuracy}))
    return float(json.loads(kept.read_text())["accuracy"])


def _gather(row: Row, result: dict[str, Any]) -> None:
    row.accuracies.append(result["accuracy"])
    row.bytes = result["bytes"]
    rates = result["images_per_second"]
    if rates["train"] is not None:
        row.train_rates.append(rates["train"])
    row.eval_rates.append(rates["eval"])


def tables(rows: list[Row]) -> tuple[Table, ...]:
    """All that was measured, for people: the summary, and accuracy under noise where it was asked for."""
    return (summary_table(rows), *([noise_table(rows)] if rows[0].noise else []))


def noise_table(rows: list[Row]) -> Table:
    """Accuracy with interval of every row at every level of noise on its weights."""
    levels = {level: f"{level:g}" for level in rows[0].noise}
    table = Table.from_records(
        [
            {"system": row.name, **{levels[level]: mean_interval(row.noise[level]) for level in levels}}
            for row in rows
        ],
        title="Test accuracy by weight noise, in standard deviations of each matrix",
        note=_over_seeds(rows),
    )
    return replace(table, formats=dict.fromkeys(levels.values(), ".1%"))


def summary_table(rows: list[Row]) -> Table:
    """The rows as a table for people: accuracy with interval, bytes, ratio to full fine-tuning, rates."""
    table = Table.from_records(
        [
            {
                "system": row.name,
                "test accuracy": row.accuracy,
                "adapter bytes": row.bytes["adapter"],
                "with head": row.bytes["adapter"] + row.bytes["head"],
                "full model / artifact": row.bytes["ratio"],
                "train images/s": _median(row.train_rates),
                "eval images/s": _median(row.eval_rates),
            }
            for row in rows
        ],
        note=_over_seeds(rows),
    )
    return replace(table, formats={"test accuracy": ".1%", "full model / artifact": ".0f"})


def _over_seeds(rows: list[Row]) -> str:
    seeds = len(rows[0].accuracies)
    return f"mean ± half of the 95 % t-interval over {seeds} seeds" if seeds > 1 else "one seed: no interval"


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None
