"""`petkit route probe|calibrate|run|eval|explain`: entropy of the first tokens decides how to answer."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petkit.cli import common, output, route_text
from petkit.cli.grouped import grouped
from petkit.cli.route_options import (
    BatchOption,
    DataOption,
    LengthOption,
    Machine,
    ModelArgument,
    OutOption,
    QuestionOption,
    RouterOption,
    Settings,
    SkipOption,
)
from petkit.errors import ConfigError, GateError, InputError

if TYPE_CHECKING:
    from petkit.data.questions import Question
    from petkit.methods.edrm.calibration import Objective, Outcomes
    from petkit.methods.edrm.rule import Rule

app = typer.Typer(help="Choose how to answer by the entropy of the first tokens.")


@dataclass(frozen=True)
class Measured:
    """Outcomes, and the model that they are of."""

    records: list[dict[str, Any]]
    model: str
    sha256: str


@dataclass(frozen=True)
class Labelled:
    """Questions with answers, and what is known of them."""

    data: DataOption = None
    outcomes: Annotated[
        Path | None,
        typer.Option(
            "--outcomes",
            metavar="FILE",
            help="Keep what is measured in this JSONL, and measure only what it lacks.",
        ),
    ] = None
    max_new_tokens: LengthOption = None
    batch_size: BatchOption = 16
    skip_bad: SkipOption = False

    def questions(self) -> list[Question]:
        """Read them all."""
        return _questions(self.data, None, self.skip_bad, labelled=True)

    def measured(
        self,
        model: str,
        machine: Machine,
        rule: Rule,
        questions: Sequence[Question],
        folder: Path | None = None,
    ) -> Measured:
        """Answer them in every mode, but for those whose outcomes are kept; load no model where all are."""
        from petkit.methods.edrm.outcome_file import OutcomeFile, model_files

        kept = OutcomeFile(self.outcomes, model_files(model) if self.outcomes else None)
        records = kept.find(questions, rule.config)
        if records is not None:
            _check_unloaded(model, str(kept.measured_by), rule, folder)
            output.log(f"all {len(questions)} outcomes are kept in {self.outcomes}: the model is not loaded")
            return Measured(records, model, str(kept.measured_by))
        router = machine.router(model, rule, self.batch_size, folder)
        known = sum(router.key_of(question) in kept.records for question in questions)
        if known:
            output.log(f"{known} of {len(questions)} outcomes are kept in {self.outcomes}")
        with output.progress("every mode", 4 * len(questions), "steps", 4 * known) as advance:
            records = router.measure(questions, advance, kept)
        return Measured(records, router.language_model.name, router.language_model.sha256)


@app.command()
@grouped
def probe(
    model: ModelArgument,
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help="JSONL files of questions.")],
    folder: common.OutputOption,
    given: Settings,
    machine: Machine,
    batch_size: BatchOption = 16,
    skip_bad: SkipOption = False,
    overwrite: common.OverwriteFlag = False,
    as_json: common.JsonFlag = False,
) -> None:
    """Decode the first tokens of each answer and write their entropies, for `explain`."""
    from petkit.methods.edrm.recipe import record_of

    questions = _questions(data, None, skip_bad)
    _check_output(folder, overwrite)
    rule = given.rule()
    router = machine.router(model, rule, batch_size)
    with output.progress("route probe", len(questions), "questions") as advance:
        probes = router.probe(questions, advance)
    pairs = zip(questions, probes, strict=True)
    records = [record_of(question, one, rule.config.stop) for question, one in pairs]
    items = rule.explained(records)
    result = {
        "model": model,
        "model_sha256": router.language_model.sha256,
        "questions": len(records),
        "tokens": sum(one.cost for one in probes),
        **_described(rule, items, records),
    }
    warning = _bias_warning(rule, items)
    with _staged(folder, overwrite) as stage:
        _write(stage, {"trajectories.jsonl": _lines(records), "result.json": _pretty(result)})
        _report(stage, rule, items, records, about=_about(model, data), warning=warning)
    if warning:
        output.warn(warning)
    output.print_result(route_text.item_table(items, vars(rule.thresholds)), result, as_json)


@app.command()
@grouped
def explain(
    given: Settings,
    machine: Machine,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="JSONL of id and entropies, as probe writes it. With --router as many tokens as its probes "
            "have, or fewer where finished is true.",
        ),
    ] = None,
    question: QuestionOption = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="The model that --question is put to.")
    ] = None,
    router: RouterOption = None,
    skip_bad: SkipOption = False,
    folder: OutOption = None,
    overwrite: common.OverwriteFlag = False,
    as_json: common.JsonFlag = False,
) -> None:
    """Show a trajectory, its descriptors and the inequality that decided; with -o as a picture too."""
    from petkit.methods.edrm.recipe import record_of
    from petkit.methods.edrm.stored import check_probes

    if (file is None) == (question is None):
        raise ConfigError("explain needs either FILE or --question TEXT")
    if (question is None) != (model is None):
        raise ConfigError("--question and --model MODEL go together")
    if folder is not None:
        _check_output(folder, overwrite)
    rule = given.rule(router)
    if file is not None:
        records = _trajectories(file, skip_bad)
        if router is not None:
            check_probes(router, records, file)
    else:
        questions = _questions(None, question, False)
        written = machine.router(str(model), rule, folder=router).probe(questions)
        records = [record_of(questions[0], written[0], rule.config.stop)]
    items = rule.explained(records)
    result = _described(rule, items, records)
    if file is None:
        result["trajectories"] = [{"id": one["id"], "entropies": one["entropies"]} for one in records]
    # A router's own thresholds were fitted to such estimates.
    warning = _bias_warning(rule, items) if router is None else ""
    if folder is not None:
        with _staged(folder, overwrite) as stage:
            _write(stage, {"result.json": _pretty(result)})
            _report(stage, rule, items, records, warning=warning)
    if warning:
        output.warn(warning)
    thresholds = vars(rule.thresholds) if rule.config.rule == "thresholds" else {}
    pairs = zip(records, items, strict=True)
    text = "\n\n".join(route_text.trace(record, item, thresholds) for record, item in pairs)
    output.print_result(text or "no trajectory", result, as_json)


def _described(
    rule: Rule, items: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Items, what they were compared with, and bounds on the error of estimated entropies."""
    from petkit.methods.edrm.rule import entropy_bias

    found = {"rule": rule.config.rule, "thresholds": vars(rule.thresholds), "items": items}
    bias = entropy_bias(records)
    return found if bias is None else {**found, "entropy_bias": bias}


def _bias_warning(rule: Rule, items: Sequence[Mapping[str, Any]]) -> str:
    """What to be told of thresholds that were not fitted to estimates; empty where there is nothing."""
    if rule.config.rule != "thresholds":
        return ""
    return route_text.bias_warning(items, rule.thresholds.cumulative) or ""


@app.command()
@grouped
def run(
    model: ModelArgument,
    given: Settings,
    machine: Machine,
    data: DataOption = None,
    question: QuestionOption = None,
    router: RouterOption = None,
    max_new_tokens: LengthOption = None,
    batch_size: BatchOption = 16,
    skip_bad: SkipOption = False,
    folder: OutOption = None,
    overwrite: common.OverwriteFlag = False,
    as_json: common.JsonFlag = False,
) -> None:
    """Answer questions, each in the mode that its probe asks for."""
    questions = _questions(data, question, skip_bad)
    if folder is not None:
        _check_output(folder, overwrite)
    answering = machine.router(model, given.rule(router, max_new_tokens), batch_size, router)
    with output.progress("route run", 2 * len(questions), "steps") as advance:
        answers = answering.run(questions, advance)
    items = [
        {"id": own.id, "dataset": own.dataset, **vars(answer)}
        for own, answer in zip(questions, answers, strict=True)
    ]
    result = {"model": model, "items": items, "tokens": sum(answer.tokens for answer in answers)}
    if folder is not None:
        with _staged(folder, overwrite) as stage:
            _write(stage, {"answers.jsonl": _lines(items), "result.json": _pretty(result)})
    text = "\n\n".join(
        f"{one['id']} ({one['mode']}, {one['tokens']} tokens: {one['reason']})\n{one['text']}"
        for one in items
    )
    output.print_result(text, result, as_json)


@app.command()
@grouped
def calibrate(
    model: ModelArgument,
    folder: common.OutputOption,
    given: Settings,
    machine: Machine,
    labelled: Labelled,
    max_tokens: Annotated[
        float | None,
        common.limit("--max-tokens", 1, None, "Most accuracy within X tokens a question."),
    ] = None,
    min_accuracy: Annotated[
        float | None,
        common.limit("--min-accuracy", 0, 1, "Fewest tokens with X right."),
    ] = None,
    token_weight: Annotated[
        float | None,
        common.limit(
            "--token-weight", 0, None, "Accuracy that a decade of tokens costs (default 0.07).", metavar="K"
        ),
    ] = None,
    learned: Annotated[
        bool, typer.Option("--learned", help="Train the network that decides in the thresholds' place.")
    ] = False,
    overwrite: common.OverwriteFlag = False,
    as_json: common.JsonFlag = False,
) -> None:
    """Fit a router's thresholds to labelled questions; it is bound to the model's weights."""
    from petkit.artifacts.manifest import Base
    from petkit.methods.edrm.evaluation import compared, read_outcomes
    from petkit.methods.edrm.stored import save_router

    objective = _objective(max_tokens, min_accuracy, token_weight, learned)
    questions = labelled.questions()
    _check_output(folder, overwrite)
    given_rule = given.rule(None, labelled.max_new_tokens)
    if learned and given_rule.config.level == "dataset":
        raise ConfigError("--learned decides for each question: it goes with level question")
    measured = labelled.measured(model, machine, given_rule, questions)
    records = measured.records
    rule = _fitted(given_rule, read_outcomes(records), objective, learned)
    result, reached = compared(records, rule, objective)
    payload = {
        "model": model,
        "questions": len(records),
        "thresholds": vars(rule.thresholds),
        "objective": vars(objective),
        "reached": {"accuracy": reached.accuracy, "tokens": reached.tokens},
        "limit_met": reached.is_met,
        **result,
    }
    fit = route_text.fit_rows(rule, reached, len(records), folder)
    files = {"outcomes.jsonl": _lines(records), "result.json": _pretty(payload)}
    base = Base(id=measured.model, sha256=measured.sha256)
    with _staged(folder, overwrite) as stage:
        save_router(stage, base, rule, reached, labelled.data or (), files)
        about = _about(model, labelled.data)
        _report(stage, rule, rule.explained(records), records, {**result, "fit": fit}, about)
    tables = output.table(("calibrated", ""), fit), "", route_text.comparison(result["policies"])
    output.print_result(output.stacked(*tables), payload, as_json)
    if not reached.is_met:
        raise GateError(
            f"no thresholds keep the limit on these questions: {reached.text}; the nearest are in {folder}"
        )


@app.command(name="eval")
@grouped
def evaluate(
    model: ModelArgument,
    given: Settings,
    machine: Machine,
    labelled: Labelled,
    router: RouterOption = None,
    folder: OutOption = None,
    overwrite: common.OverwriteFlag = False,
    as_json: common.JsonFlag = False,
) -> None:
    """Compare the router with fixed modes, other routers and the oracle on labelled questions."""
    from petkit.methods.edrm.evaluation import compared

    questions = labelled.questions()
    if folder is not None:
        _check_output(folder, overwrite)
    rule = given.rule(router, labelled.max_new_tokens)
    measured = labelled.measured(model, machine, rule, questions, router)
    records = measured.records
    result, _ = compared(records, rule)
    payload = {
        "model": model,
        "model_sha256": measured.sha256,
        "settings": rule.config.model_dump(mode="json"),
        "questions": dict(Counter(question.dataset for question in questions)),
        **result,
    }
    if folder is not None:
        with _staged(folder, overwrite) as stage:
            _write(stage, {"outcomes.jsonl": _lines(records), "result.json": _pretty(payload)})
            _report(stage, rule, rule.explained(records), records, result, _about(model, labelled.data))
    output.print_result(route_text.comparison(result["policies"]), payload, as_json)


def _check_unloaded(model: str, sha256: str, rule: Rule, folder: Path | None) -> None:
    """Refuse what loading the model would refuse."""
    from petkit.methods.edrm.stored import check_model
    from petkit.methods.edrm.writers import check_local

    check_local(model, rule.config)
    if folder is not None:
        check_model(folder, model, sha256)


def _objective(
    max_tokens: float | None, min_accuracy: float | None, token_weight: float | None, learned: bool
) -> Objective:
    from petkit.methods.edrm.calibration import TOKEN_WEIGHT, Objective

    limits = [name for name, value in (("max", max_tokens), ("min", min_accuracy)) if value is not None]
    if len(limits) == 2:
        raise ConfigError("--max-tokens and --min-accuracy exclude each other: one limit at a time")
    if limits and learned:
        raise ConfigError("--learned knows no limit: weigh tokens against accuracy with --token-weight")
    if limits and token_weight is not None:
        raise ConfigError("--token-weight has no effect with a limit: give one of them")
    if max_tokens is not None:
        return Objective("accuracy", max_tokens)
    if min_accuracy is not None:
        return Objective("tokens", min_accuracy)
    return Objective(weight=TOKEN_WEIGHT if token_weight is None else token_weight)


def _fitted(rule: Rule, outcomes: Outcomes, objective: Objective, learned: bool) -> Rule:
    from petkit.methods.edrm.calibration import calibrate
    from petkit.methods.edrm.learned import train_router
    from petkit.methods.edrm.rule import Rule

    config = rule.config
    if learned:
        network = train_router(outcomes, weight=objective.weight)
        return Rule(config.model_copy(update={"rule": "learned"}), network)
    thresholds = calibrate(outcomes, objective, config.thresholds.overload, rule.route_by(outcomes))
    update = {"thresholds": type(config.thresholds)(**vars(thresholds))}
    return Rule(config.model_copy(update=update))


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
    with _flag_hints():
        found = [one for path in data or () for one in read_questions(path, skip_bad, labelled)]
    if not found:
        raise ConfigError("there is no question in the data")
    return found


def _trajectories(path: Path, skip_bad: bool) -> list[dict[str, Any]]:
    from petkit.data.jsonl import placed_rows

    def parse(row: dict[str, Any]) -> dict[str, Any]:
        values = row.get("entropies")
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise ValueError(f"entropies must be a list of numbers, got {values!r:.60}")
        # An integer beyond the largest float is no entropy either.
        wrong = [place for place, value in enumerate(values) if not 0 <= value <= sys.float_info.max]
        if wrong:
            got = f"{values[wrong[0]]!r:.60} at token {wrong[0]}"
            raise ValueError(f"entropies must be finite and at least 0, got {got}")
        if type(row.get("finished", False)) is not bool:
            raise ValueError(f"finished must be true or false, got {row['finished']!r:.60}")
        return row

    with _flag_hints():
        rows = placed_rows(path, parse, skip_bad)
    return [{"id": place.rpartition(":")[2], **row} for place, row in rows]


@contextmanager
def _flag_hints() -> Iterator[None]:
    """Name the flag where a reader of data names a recipe's key."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("set data.skip_bad", "pass --skip-bad")) from error


def _about(model: str, data: Sequence[Path] | None) -> str:
    """What a report is of."""
    return f"{model} on {', '.join(path.name for path in data or ())}"


def _report(
    folder: Path,
    rule: Rule,
    items: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any] | None = None,
    about: str = "",
    warning: str = "",
) -> None:
    """Pictures, and one page that holds them."""
    from petkit.methods.edrm.rule import entropy_bias
    from petkit.report.routing import Estimates, write_routing_page

    traces = [(item["regime"], record["entropies"]) for record, item in zip(records, items, strict=True)]
    estimates = Estimates(entropy_bias(records), warning)
    write_routing_page(folder, traces, items, result, about, vars(rule.thresholds), estimates)


def _check_output(folder: Path, overwrite: bool) -> None:
    from petkit.artifacts.writer import check_output

    check_output(folder, overwrite)


def _staged(folder: Path, overwrite: bool) -> AbstractContextManager[Path]:
    from petkit.artifacts.writer import staged_artifact

    return staged_artifact(folder, overwrite)


def _write(folder: Path, files: Mapping[str, str]) -> None:
    from petkit.artifacts.files import write_folder

    write_folder(folder, {name: text.encode() for name, text in files.items()})


def _lines(records: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
