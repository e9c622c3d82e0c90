"""`petkit distill RECIPE.yaml`: parse, call the recipe of its kind, print."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from petkit.cli import common, output
from petkit.cli.catalog import method_for
from petkit.cli.default_group import app_with_default
from petkit.cli.grouped import grouped
from petkit.cli.runs import OptionalValue, SkipBadFlag, Surroundings, check_output, finish, work
from petkit.errors import ConfigError

WrittenBy = Literal["teacher", "student"]


@grouped
def command(
    surroundings: Surroundings, skip_bad: SkipBadFlag = False, allow_code: common.AllowCodeFlag = False
) -> None:
    """Teach a student on its own responses, judged by a teacher, and write it as one artifact folder.

    A recipe with `kind: vision` teaches an image classifier the logits and features of another one.
    """
    files = common.recipe_files(surroundings.recipe, surroundings.config)
    if method_for("distill", files, surroundings.settings or ()).kind == "vision":
        common.check_code(None, allow_code)
        _images(surroundings, skip_bad, files)
    else:
        _text(surroundings, skip_bad, allow_code)


def _text(surroundings: Surroundings, skip_bad: bool, allow_code: bool) -> None:
    from petkit.methods.tropd.config import DistillConfig

    config = surroundings.resolve(DistillConfig, **{"data.skip_bad": skip_bad or None})
    common.check_code(config.reward.function, allow_code)
    check_output(Path(config.output), surroundings.overwrite, surroundings.resume is not None)

    from petkit.methods.tropd import recipe

    chosen = recipe.plan if surroundings.dry_run else recipe.run
    result = work(chosen, config, surroundings, tokens=True)
    if result is not None:
        rows = _plan_rows(result) if surroundings.dry_run else _result_rows(result, Path(config.output))
        finish(rows, result, Path(config.output), surroundings)


def _images(surroundings: Surroundings, skip_bad: bool, files: Sequence[Path]) -> None:
    from petkit.cli import distilled_images
    from petkit.methods.vision_distillation.config import VisionDistillationConfig

    config = surroundings.resolve(VisionDistillationConfig, **{"data.skip_bad": skip_bad or None})
    folder = Path(config.output)
    check_output(folder, surroundings.overwrite, surroundings.resume is not None)
    distilled_images.check_teacher(config.teacher.model, files)

    from petkit.methods.vision_distillation import recipe

    chosen = recipe.plan if surroundings.dry_run else recipe.run
    result = work(chosen, config, surroundings, stage_unit="images")
    if result is not None:
        shown = distilled_images
        rows = shown.plan_rows(result) if surroundings.dry_run else shown.result_rows(result, folder)
        finish(rows, result, folder, surroundings)


def cache(
    recipe: common.ConfigArgument = None,
    config_file: common.ConfigOption = None,
    settings: common.SetOption = None,
    folder: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Of the cache; one begun is gone on with."),
    ] = ...,  # type: ignore[assignment]
    writer: Annotated[
        WrittenBy, typer.Option("--by", help="Who writes the responses: teacher, or the untrained student.")
    ] = "teacher",
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k", metavar="N", min=1, help="Likeliest tokens to keep (default: the objective's, or 64)."
        ),
    ] = None,
    device: common.DeviceOption = "auto",
    threads: common.ThreadsOption = None,
    as_json: common.JsonFlag = False,
) -> None:
    """Keep responses to all prompts, with the teacher's log-probabilities, for runs with teacher.cache."""
    from petkit.configuration import resolve
    from petkit.methods.tropd.config import DistillConfig

    files = common.recipe_files(recipe, config_file)
    if method_for("distill", files, settings or ()).kind != "text":
        raise ConfigError(
            "petkit distill cache keeps responses of language models, got a recipe of another kind: "
            "petkit distill asks the teacher of pictures once and needs no cache"
        )
    resolved = resolve(DistillConfig, files, settings or (), {})
    output.log_notes(resolved.dropped)

    from petkit.methods.tropd.filling import fill
    from petkit.training import device as devices
    from petkit.training.context import RunContext

    devices.configure(threads, deterministic=False)
    context = RunContext(folder, devices.resolve_device(device), stage=partial(_progress, "prompts"))
    result = fill(resolved.config, context, folder, writer, top_k)
    rows = [
        (name, str(result[name])) for name in ("folder", "teacher", "writer", "responses", "top_k", "bytes")
    ]
    output.print_result(output.table(("", ""), rows), result, as_json)


def _progress(unit: str, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    return output.progress(label, total, unit)


def _result_rows(result: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    sizes = result["bytes"]
    rows = [
        ("artifact", str(folder)),
        ("status", result["status"] + (f", stopped by {result['stopped']}" if result["stopped"] else "")),
        ("objective", result["objective"]),
    ]
    for name in ("before", "after"):
        if result[name] is not None:
            rows += measured_rows(name, result[name])
    return [
        *rows,
        ("steps", f"{result['steps']} of {result['total_steps']}"),
        ("bytes", _bytes(sizes)),
    ]


def _bytes(sizes: Mapping[str, Any]) -> str:
    if sizes["ratio"] == 1:
        return f"{sizes['bytes']:,}, the whole student"
    return f"adapter {sizes['adapter']:,}, {sizes['ratio']:.0f} times less than the student in float32"


def measured_rows(title: str, evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """An evaluation as a row, with a row for each data set where there are several.

    Args:
        title: of the first row.
        evaluation: the payload of a `RewardEvaluation`.

    Returns:
        Name and value of each row.
    """
    named = evaluation.get("datasets", {})
    return [(title, measured(evaluation)), *((f"  {name}", measured(one)) for name, one in named.items())]


def measured(evaluation: Mapping[str, Any]) -> str:
    """Write an evaluation as one line.

    Args:
        evaluation: the payload of a `RewardEvaluation`, or of its measures of one data set.

    Returns:
        Text such as `reward 41.0% (34.4% to 48.0%), forward KL 0.21, reverse KL 0.18, n 200`.
    """
    low, high = evaluation["interval"]
    parts = [f"reward {evaluation['reward']:.1%} ({low:.1%} to {high:.1%})"]
    for name, title in (("forward_kl", "forward KL"), ("reverse_kl", "reverse KL")):
        if evaluation.get(name) is not None:
            parts.append(f"{title} {evaluation[name]:.4f}")
    return ", ".join([*parts, f"n {evaluation['n']:,}"])


def _plan_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    from petkit.models.site_names import patterns_of

    steps, prompts, sizes = plan["steps"], plan["prompts"], plan["bytes"]
    held = "" if prompts["validation"] is None else f", {prompts['validation']:,} for the reward"
    teachers = [f"{name + ': ' if name else ''}{one['id']}" for name, one in plan["teachers"].items()]
    kept = ", of the cache" if any("cache" in one for one in plan["teachers"].values()) else ""
    return [
        ("output", plan["output"]),
        ("student", f"{plan['student']['id']} (sha256 {plan['student']['sha256'][:12]})"),
        ("teacher", "\n".join(teachers)),
        ("objective", plan["objective"]),
        *_reward_row(plan["reward_function"]),
        ("device", f"{plan['device']}, {plan['processes']} process(es)"),
        ("prompts", f"{prompts['train']:,} to learn from{held}"),
        ("adapters", "\n".join(patterns_of(plan["adapters"])) or "none: all weights learn"),
        ("trainable", f"{plan['trainable_parameters']:,} parameters"),
        ("bytes", _bytes(sizes)),
        ("steps", f"{steps['total']:,} ({steps['per_epoch']:,} an epoch, {steps['warmup']:,} of warm-up)"),
        ("responses", f"{plan['responses']:,}{kept}, {plan['most_tokens']:,} tokens at most"),
    ]


def _reward_row(reward: Mapping[str, str] | None) -> list[tuple[str, str]]:
    return [] if reward is None else [("reward", f"{reward['function']} (sha256 {reward['sha256'][:12]})")]


app = app_with_default(
    command,
    "Teach a student what a teacher knows: language models, image classifiers.",
    kind=OptionalValue,
    cache=cache,
)
