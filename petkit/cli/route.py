"""`petkit route probe|calibrate|run|eval|explain`: entropy of the first tokens decides how to answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petkit.cli import common, output
from petkit.errors import ConfigError, GateError

if TYPE_CHECKING:
    from petkit.data.questions import Question
    from petkit.methods.edrm.config import RouterConfig
    from petkit.methods.edrm.recipe import Router

app = typer.Typer(help="Choose how to answer by the entropy of the first tokens.")

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Language model as in a recipe, or an adapter's folder.")
]
DataOption = Annotated[
    list[Path] | None,
    typer.Option("--data", metavar="FILE", help="JSONL of questions; may be repeated, a data set each."),
]
QuestionOption = Annotated[str | None, typer.Option("--question", metavar="TEXT", help="One question.")]
RouterOption = Annotated[
    Path | None,
    typer.Option("--router", metavar="FOLDER", help="A calibrated router. Default: the zero-shot rule."),
]
OutOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write as well.")
]
ProbeOption = Annotated[
    int | None,
    typer.Option("--probe-tokens", metavar="N", min=3, help="Tokens that are looked at (default 64)."),
]
LengthOption = Annotated[
    int | None,
    typer.Option("--max-new-tokens", metavar="N", min=1, help="Tokens of an answer (default 512)."),
]
BatchOption = Annotated[
    int, typer.Option("--batch-size", metavar="N", min=1, help="Questions decoded together.")
]
SkipOption = Annotated[bool, typer.Option("--skip-bad", help="Leave faulty lines out, naming each.")]


@app.command()
def probe(
    model: ModelArgument,
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help="JSONL files of questions.")],
    folder: common.OutputOption,
    settings: common.SetOption = None,
    probe_tokens: ProbeOption = None,
    batch_size: BatchOption = 16,
    skip_bad: SkipOption = False,
    overwrite: common.OverwriteFlag = False,
    device: common.DeviceOption = "auto",
    threads: common.ThreadsOption = None,
    as_json: common.JsonFlag = False,
) -> None:
    """Decode the first tokens of each answer and write their entropies, for `explain`."""
    from petkit.methods.edrm.recipe import record_of

    questions = _questions(data, None, skip_bad)
    _check_output(folder, overwrite)
    config = _config(settings, None, probe_tokens=probe_tokens)
    router = _router(model, config, batch_size, device, threads)
    with output.progress("route probe", len(questions), "questions") as advance:
        probes = router.probe(questions, advance)
    records = [record_of(question, one) for question, one in zip(questions, probes, strict=True)]
    items = _explained(records, config)
    result = {
        "model": model,
        "model_sha256": router.language_model.sha256,
        "questions": len(records),
        "tokens": sum(one.cost for one in probes),
        "items": items,
    }
    _write(folder, {"trajectories.jsonl": _lines(records), "result.json": _pretty(result)}, overwrite)
    _report(folder, items, records)
    output.print_result(_item_table(items), result, as_json)


@app.command()
def explain(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="JSONL of id and entropies, as probe writes it.")
    ] = None,
    question: QuestionOption = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="The model that --question is put to.")
    ] = None,
    router: RouterOption = None,
    settings: common.SetOption = None,
    probe_tokens: ProbeOption = None,
    folder: OutOption = None,
    overwrite: common.OverwriteFlag = False,
    device: common.DeviceOption = "auto",
    threads: common.ThreadsOption = None,
    as_json: common.JsonFlag = False,
) -> None:
    """Show a trajectory, its descriptors and the inequality that decided; with -o as a picture too."""
    if (file is None) == (question is None):
        raise ConfigError("explain needs either FILE or --question TEXT")
    if (question is None) != (model is None):
        raise ConfigError("--question and --model MODEL go together")
    if folder is not None:
        _check_output(folder, overwrite)
    config = _config(settings, router, probe_tokens=probe_tokens)
    if file is not None:
        records = _trajectories(file)
    else:
        records = _probe_one(str(question), str(model), config, router, device, threads)
    items = _explained(records, config)
    if folder is not None:
        _write(folder, {"result.json": _pretty({"items": items})}, overwrite)
        _report(folder, items, records)
    text = "\n\n".join(_trace(record, item) for record, item in zip(records, items, strict=True))
    output.print_result(text or "no trajectory", {"items": items}, as_json)


@app.command()
def run(
    model: ModelArgument,
    data: DataOption = None,
    question: QuestionOption = None,
    router: RouterOption = None,
    settings: common.SetOption = None,
    probe_tokens: ProbeOption = None,
    max_new_tokens: LengthOption = None,
    batch_size: BatchOption = 16,
    skip_bad: SkipOption = False,
    folder: OutOption = None,
    overwrite: common.OverwriteFlag = False,
    device: common.DeviceOption = "auto",
    threads: common.ThreadsOption = None,
    as_json: common.JsonFlag = False,
) -> None:
    """Answer questions, each in the mode that its probe asks for."""
    questions = _questions(data, question, skip_bad)
    if folder is not None:
        _check_output(folder, overwrite)
    config = _config(settings, router, probe_tokens=probe_tokens, max_new_tokens=max_new_tokens)
    answering = _router(model, config, batch_size, device, threads, router)
    with output.progress("route run", 2 * len(questions), "steps") as advance:
        answers = answering.run(questions, advance)
    items = [
        {"id": own.id, "dataset": own.dataset, **vars(answer)}
        for own, answer in zip(questions, answers, strict=True)
    ]
    result = {"model": model, "items": items, "tokens": sum(answer.tokens for answer in answers)}
    if folder is not None:
        _write(folder, {"answers.jsonl": _lines(items), "result.json": _pretty(result)}, overwrite)
    text = "\n\n".join(
        f"{one['id']} ({one['mode']}, {one['tokens']} tokens: {one['reason']})\n{one['text']}"
        for one in items
    )
    output.print_result(text, result, as_json)


@app.command()
def calibrate(
    model: ModelArgument,
    folder: common.OutputOption,
    data: DataOption = None,
    max_tokens: Annotated[
        float | None,
        typer.Option("--max-tokens", metavar="X", min=1, help="Most accuracy within X tokens a question."),
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option("--min-accuracy", metavar="X", min=0, max=1, help="Fewest tokens with X right."),
    ] = None,
    settings: common.SetOption = None,
    probe_tokens: ProbeOption = None,
    max_new_tokens: LengthOption = None,
    batch_size: BatchOption = 16,
    skip_bad: SkipOption = False,
    overwrite: common.OverwriteFlag = False,
    device: common.DeviceOption = "auto",
    threads: common.ThreadsOption = None,
    as_json: common.JsonFlag = False,
) -> None:
    """Fit a router's thresholds to labelled questions; it is bound to the model's weights."""
    from petkit.methods.edrm.calibration import Objective, calibrate
    from petkit.methods.edrm.evaluation import compared, read_outcomes
    from petkit.methods.edrm.recipe import save_router

    if max_tokens is not None and min_accuracy is not None:
        raise ConfigError("--max-tokens and --min-accuracy exclude each other: one limit at a time")
    objective = Objective()
    if max_tokens is not None:
        objective = Objective("accuracy", max_tokens)
    if min_accuracy is not None:
        objective = Objective("tokens", min_accuracy)
    questions = _questions(data, None, skip_bad, labelled=True)
    _check_output(folder, overwrite)
    config = _config(settings, None, probe_tokens=probe_tokens, max_new_tokens=max_new_tokens)
    router = _router(model, config, batch_size, device, threads)
    records = _measured(router, questions)
    thresholds = calibrate(read_outcomes(records), objective)
    chosen = config.model_copy(update={"thresholds": type(config.thresholds)(**vars(thresholds))})
    result, met = compared(records, thresholds, objective)
    payload = {"model": model, "thresholds": vars(thresholds), "limit_met": met, **result}
    files = {"outcomes.jsonl": _lines(records), "result.json": _pretty(payload)}
    save_router(folder, router.language_model, chosen, objective, met, data or (), files, overwrite)
    _report(folder, _explained(records, chosen), records, result)
    output.print_result(_policy_table(result["policies"]), payload, as_json)
    if not met:
        raise GateError("no thresholds keep the limit on these questions: the nearest were written")


@app.command(name="eval")
def evaluate(
    model: ModelArgument,
    data: DataOption = None,
    router: RouterOption = None,
    settings: common.SetOption = None,
    probe_tokens: ProbeOption = None,
    max_new_tokens: LengthOption = None,
    batch_size: BatchOption = 16,
    skip_bad: SkipOption = False,
    folder: OutOption = None,
    overwrite: common.OverwriteFlag = False,
    device: common.DeviceOption = "auto",
    threads: common.ThreadsOption = None,
    as_json: common.JsonFlag = False,
) -> None:
    """Compare the router with fixed modes, other routers and the oracle on labelled questions."""
    from petkit.methods.edrm.algorithm import Thresholds
    from petkit.methods.edrm.evaluation import compared

    questions = _questions(data, None, skip_bad, labelled=True)
    if folder is not None:
        _check_output(folder, overwrite)
    config = _config(settings, router, probe_tokens=probe_tokens, max_new_tokens=max_new_tokens)
    answering = _router(model, config, batch_size, device, threads, router)
    records = _measured(answering, questions)
    result, _ = compared(records, Thresholds(**config.thresholds.model_dump()))
    payload = {"model": model, "model_sha256": answering.language_model.sha256, **result}
    if folder is not None:
        _write(folder, {"outcomes.jsonl": _lines(records), "result.json": _pretty(payload)}, overwrite)
        _report(folder, _explained(records, config), records, result)
    output.print_result(_policy_table(result["policies"]), payload, as_json)


def _questions(
    data: Sequence[Path] | None, question: str | None, skip_bad: bool, labelled: bool = False
) -> list[Question]:
    from petkit.data.questions import Question, read_questions

    if bool(data) == (question is not None):
        raise ConfigError("give questions: --data FILE" + ("" if labelled else ", or --question TEXT"))
    if question is not None:
        if not question.strip():
            raise ConfigError("--question must be a text that is not empty")
        return [Question("question", question)]
    found = [one for path in data or () for one in read_questions(path, skip_bad, labelled)]
    if not found:
        raise ConfigError("there is no question in the data")
    return found


def _config(settings: Sequence[str] | None, router: Path | None, **flags: int | None) -> RouterConfig:
    """The router's own settings, or the defaults, changed by --set and flags."""
    from petkit.configuration import resolve
    from petkit.methods.edrm.config import RouterConfig

    files = [] if router is None else [router / "config.yaml"]
    if router is not None:
        from petkit.artifacts.router import read_router

        read_router(router)
    return resolve(RouterConfig, files, settings or (), flags).config


def _router(
    model: str,
    config: RouterConfig,
    batch_size: int,
    device: str,
    threads: int | None,
    folder: Path | None = None,
) -> Router:
    from petkit.methods.edrm.recipe import Router, load_language_model, load_router
    from petkit.training import device as devices

    devices.configure(threads, deterministic=False)
    loaded = load_language_model(model, devices.resolve_device(device))
    if folder is not None:
        load_router(folder, loaded)
    return Router(loaded, config, batch_size)


def _measured(router: Router, questions: Sequence[Question]) -> list[dict[str, Any]]:
    with output.progress("every mode", 4 * len(questions), "steps") as advance:
        return router.measure(questions, advance)


def _probe_one(
    question: str, model: str, config: RouterConfig, folder: Path | None, device: str, threads: int | None
) -> list[dict[str, Any]]:
    from petkit.methods.edrm.recipe import record_of

    questions = _questions(None, question, False)
    router = _router(model, config, 1, device, threads, folder)
    return [record_of(questions[0], router.probe(questions)[0])]


def _trajectories(path: Path) -> list[dict[str, Any]]:
    from petkit.data.jsonl import placed_rows

    def parse(row: dict[str, Any]) -> dict[str, Any]:
        values = row.get("entropies")
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise ValueError(f"entropies must be a list of numbers, got {values!r:.60}")
        return row

    rows = placed_rows(path, parse)
    return [{"id": place.rpartition(":")[2], **row} for place, row in rows]


def _trace(record: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    from petkit.report.sparkline import sparkline

    values = record["entropies"]
    top = f"entropy 0 to {max(values):.2f} nats over {len(values)} tokens" if values else "no token"
    return (
        f"{item['id']}: {item['decision']} ({item['regime']})\n{sparkline(values)}\n{top}; {item['reason']}"
    )


def _explained(records: Sequence[Mapping[str, Any]], config: RouterConfig) -> list[dict[str, Any]]:
    from petkit.methods.edrm.evaluation import explained

    return explained(records, config)


def _report(
    folder: Path,
    items: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any] | None = None,
) -> None:
    """Pictures, and one page that holds them."""
    from petkit.report.routing import write_routing_page

    traces = [(item["regime"], record["entropies"]) for record, item in zip(records, items, strict=True)]
    write_routing_page(folder, traces, items, result)


def _item_table(items: Sequence[Mapping[str, Any]]) -> Any:
    columns = ("id", "decision", "regime", "cumulative", "spearman", "von_neumann")
    rows = [
        [f"{item[name]:.3f}" if isinstance(item[name], float) else item[name] for name in columns]
        for item in items
    ]
    return output.table(columns, rows)


def _policy_table(policies: Sequence[Mapping[str, Any]]) -> Any:
    def cell(value: Mapping[str, float], form: str) -> str:
        return f"{value['mean']:{form}} ({value['low']:{form}} to {value['high']:{form}})"

    rows = [
        (
            one["policy"],
            cell(one["accuracy"], ".1%"),
            cell(one["tokens"], ".1f"),
            cell(one["tokens_saved"], ".1%"),
            cell(one["accuracy_gain"], "+.1%"),
        )
        for one in policies
    ]
    columns = ("policy", "accuracy", "tokens a question", "saved against always cot", "accuracy against it")
    return output.table(columns, rows)


def _check_output(folder: Path, overwrite: bool) -> None:
    from petkit.artifacts.writer import check_output

    check_output(folder, overwrite)


def _write(folder: Path, files: Mapping[str, str], overwrite: bool) -> None:
    from petkit.artifacts.files import write_folder

    write_folder(folder, {name: text.encode() for name, text in files.items()})


def _lines(records: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
