"""`petkit train adapter|tagger|nat`: parse, call the recipe, print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from petkit.cli.grouped import grouped
from petkit.cli.runs import OptionalValue, SkipBadFlag, Surroundings, check_output, finish, work

app = typer.Typer(help="Fit a method to data from a YAML recipe.")


@app.callback()
def _group() -> None:
    """Fit a method to data from a YAML recipe."""


@app.command(cls=OptionalValue)
@grouped
def adapter(surroundings: Surroundings, skip_bad: SkipBadFlag = False) -> None:
    """Train low-bit adapters in a frozen model and write them as one artifact folder."""
    from petkit.methods.binary_adapter.config import BinaryAdapterConfig

    more = {"data.skip_bad": skip_bad or None}
    config = surroundings.resolve(BinaryAdapterConfig, **more)
    check_output(Path(config.output), surroundings.overwrite, surroundings.resume is not None)

    from petkit.methods.binary_adapter import recipe

    result = work(recipe.plan if surroundings.dry_run else recipe.run, config, surroundings)
    if result is not None:
        rows = plan_rows(result) if surroundings.dry_run else result_rows(result, Path(config.output))
        finish(rows, result, Path(config.output), surroundings)


@app.command(cls=OptionalValue)
@grouped
def tagger(surroundings: Surroundings) -> None:
    """Train a tagger of words, with a softmax or a CRF, and write it as one artifact folder."""
    from petkit.cli import tagged
    from petkit.methods.crf_tagger.config import TaggerConfig

    config = surroundings.resolve(TaggerConfig)
    check_output(Path(config.output), surroundings.overwrite, surroundings.resume is not None)

    from petkit.methods.crf_tagger import recipe

    result = work(recipe.plan if surroundings.dry_run else recipe.run, config, surroundings)
    if result is not None:
        rows = tagged.plan_rows(result) if surroundings.dry_run else tagged.result_rows(result, config.output)
        finish(rows, result, Path(config.output), surroundings)


TeacherFlag = Annotated[
    bool,
    typer.Option(
        "--teacher",
        help="Train the autoregressive teacher instead, into the folder that teacher.model names.",
    ),
]


@app.command(cls=OptionalValue)
@grouped
def nat(surroundings: Surroundings, teacher: TeacherFlag = False) -> None:
    """Train a translator that writes all tokens at once, or its teacher, as one artifact folder."""
    from petkit.cli import translated
    from petkit.methods.nart_crf.config import TranslatorConfig

    config = surroundings.resolve(TranslatorConfig)
    if teacher:
        config = translated.teacher_recipe(config, surroundings.folder)
    check_output(Path(config.output), surroundings.overwrite, surroundings.resume is not None)

    from petkit.methods.nart_crf import recipe

    result = work(recipe.plan if surroundings.dry_run else recipe.run, config, surroundings)
    if result is not None:
        make = translated.plan_rows if surroundings.dry_run else translated.result_rows
        finish(make(result, config.output), result, Path(config.output), surroundings)


def result_rows(result: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """The table of a finished training of adapters.

    Args:
        result: the content of result.json.
        folder: of the artifact.

    Returns:
        Name and value of each row.
    """
    from petkit.report.rounding import significant

    sizes, rates = result["bytes"], result.get("images_per_second") or result["examples_per_second"]
    trained, evaluated = significant(rates["train"]), significant(rates["eval"])
    return [
        ("artifact", str(folder)),
        ("status", result["status"] + (f", stopped by {result['stopped']}" if result["stopped"] else "")),
        ("test", measured(result)),
        ("steps", f"{result['steps']} of {result['total_steps']}"),
        ("bytes", f"adapter {sizes['adapter']:,}, head {sizes['head']:,}"),
        ("full model", f"{sizes['full_model_fp32']:,} bytes in float32, {sizes['ratio']:.0f} times as much"),
        ("examples/s", f"{trained} in training, {evaluated} in evaluation"),
        *([("processes", str(result["processes"]))] if result["processes"] > 1 else []),
    ]


def measured(result: Mapping[str, Any]) -> str:
    """Write an evaluation as one line.

    Args:
        result: holds `accuracy`, `interval` and `n`, or `perplexity` and `n`.

    Returns:
        Text such as `81.2% accuracy, 95 % interval 78.1% to 84.0%, n 500`.
    """
    from petkit.report.rounding import significant

    if result.get("accuracy") is None:
        perplexity = significant(result["perplexity"], 4)
        return f"perplexity {perplexity}, loss {result['loss']:.4f}, n {result['n']:,} tokens"
    low, high = result["interval"]
    return f"{result['accuracy']:.1%} accuracy, 95 % interval {low:.1%} to {high:.1%}, n {result['n']:,}"


def plan_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The table of a plan.

    Args:
        plan: of a training of adapters.

    Returns:
        Name and value of each row.
    """
    from petkit.models.site_names import patterns_of

    sizes, steps, memory, sites = plan["bytes"], plan["steps"], plan["memory_bytes"], plan["adapters"]
    examples = ", ".join(f"{count} {name}" for name, count in plan["examples"].items() if count is not None)
    total, kept = memory["total"] / 2**20, memory["activations"] / 2**20
    return [
        ("output", plan["output"]),
        ("model", f"{plan['model']['id']} (sha256 {plan['model']['sha256'][:12]})"),
        ("device", f"{plan['device']}, {plan['processes']} process(es)"),
        ("data", f"{examples}; {plan['classes']} classes"),
        ("adapters", "\n".join(patterns_of(sites)) or "none: the head alone"),
        ("trainable", f"{plan['trainable_parameters']:,} parameters"),
        ("bytes", f"adapter {sizes['adapter']:,}, head {sizes['head']:,}, full model {sizes['ratio']:.0f} x"),
        ("steps", f"{steps['total']} ({steps['per_epoch']} an epoch, {steps['warmup']} of warm-up)"),
        ("memory", f"about {total:,.0f} MiB of tensors, {kept:,.0f} of it activations"),
    ]
