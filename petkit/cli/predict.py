"""`petkit predict`: classes or text, by one artifact or by a bank whose inputs each name their adapter."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petkit.cli import common, output
from petkit.errors import ConfigError, InputError

if TYPE_CHECKING:
    from petkit.serving.predict import Classifier, Prediction
    from petkit.serving.samples import LeftOut, Sample
    from petkit.training.config import Precision

MAX_NEW_TOKENS = 128
TOP_K = 3


def command(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="[ARTIFACT] INPUT...",
            help="The artifact (not with --bank), then pictures and folders, or texts and .txt files, or "
            ".jsonl files.",
        ),
    ],
    bank: Annotated[
        Path | None,
        typer.Option(
            "--bank",
            metavar="FOLDER",
            help='Folder of packed artifacts; inputs are .jsonl files of {"image" or "text", "adapter"}.',
        ),
    ] = None,
    base: common.BaseOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Taggers: how INPUT files in columns divide, where not as the tagger's recipe says: "
            "data.word_column=1 (from 0; -1 is the last), data.separator, data.comment or data.docstart; may "
            "be repeated.",
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="N", min=1, help="Classes to print (default 3).")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", metavar="N", min=1, help="Language models: default 128."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", min=1)] = 32,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave unreadable inputs out, naming each.")
    ] = False,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = common.Dtype.FLOAT32,
    threads: common.ThreadsOption = None,
    as_json: common.JsonFlag = False,
    as_lines: Annotated[
        bool, typer.Option("--jsonl", help="Print one JSON object a prediction, as they come.")
    ] = False,
) -> None:
    """Predict the classes of pictures or texts, let a language model write, or tag words.

    A tagger's inputs are texts, .txt files of a sentence a line (words apart by spaces), or files
    in columns (.conll, .conllu, .tsv, .bio, .iob, .iob2), whose words are in the column that its
    recipe names or --set says.
    """
    from petkit.artifacts.tagger import is_tagger
    from petkit.cli import tagged
    from petkit.training import device as devices

    if as_json and as_lines:
        raise ConfigError("--json and --jsonl exclude each other: one object, or one a line")
    if bank is None and len(inputs) < 2:
        raise ConfigError("petkit predict needs an ARTIFACT and at least one INPUT, or --bank FOLDER")
    devices.configure(threads, deterministic=False)
    place = str(devices.resolve_device(device))
    if bank is None and is_tagger(inputs[0]):
        tagged.refuse({"--top-k": top_k, "--max-new-tokens": max_new_tokens, "--skip-bad": skip_bad or None})
        settled = tagged.Wanted(batch_size, place, dtype.precision, base)
        sentences = tagged.predict(Path(inputs[0]), inputs[1:], settings or (), settled)
        tagged.print_predictions(sentences, as_json, as_lines)
        return
    if settings:
        raise ConfigError("--set has no effect, since it is for taggers: leave it out")
    wanted = _Wanted(top_k, max_new_tokens, batch_size, skip_bad, place, dtype.precision)
    if bank is not None:
        found = _with_bank(bank, inputs, wanted, base)
    else:
        found = _with_artifact(Path(inputs[0]), inputs[1:], wanted, base)
    if as_lines:
        _print_lines(found)
    else:
        _print(list(found), wanted.left_out, as_json)


@dataclass(frozen=True)
class _Wanted:
    """What the flags ask for, and the list of what is left out meanwhile."""

    top_k: int | None
    max_new_tokens: int | None
    batch_size: int
    skip_bad: bool
    device: str
    precision: Precision
    left_out: list[LeftOut] = field(default_factory=list)


def _with_bank(
    folder: Path, inputs: Sequence[str], wanted: _Wanted, base: str | None
) -> Iterator[Prediction]:
    from petkit.serving.bank import BankModel
    from petkit.serving.predict import ManyAdapters
    from petkit.serving.samples import read_samples

    _refuse(wanted.max_new_tokens, "--max-new-tokens", "a bank holds classifiers")
    bank = BankModel.from_folder(folder, wanted.device, base)
    output.log(f"{len(bank)} adapters resident in {bank.nbytes:,} bytes")
    samples = read_samples(inputs, bank.task, bank.fault, wanted.skip_bad, wanted.left_out)
    return _classify(ManyAdapters(bank), samples, wanted)


def _with_artifact(
    folder: Path, inputs: Sequence[str], wanted: _Wanted, base: str | None
) -> Iterator[Prediction]:
    from petkit.artifacts import read_manifest
    from petkit.models.loading import load_adapted
    from petkit.serving.predict import OneAdapter, generate
    from petkit.serving.samples import read_samples

    task = read_manifest(folder).task
    if task is None:
        raise InputError(f"{folder} does not say what its head predicts, so that nothing can be predicted")
    language_model = task.type == "causal_lm"
    if language_model:
        _refuse(wanted.top_k, "--top-k", "a language model writes text")
    else:
        _refuse(wanted.max_new_tokens, "--max-new-tokens", f"the artifact is for {task.type}")
    samples = read_samples(inputs, task.type, None, wanted.skip_bad, wanted.left_out)
    adapted = load_adapted(folder, wanted.device, base_override=base)
    if not language_model:
        return _classify(OneAdapter(adapted), samples, wanted)
    return generate(
        adapted,
        samples,
        wanted.max_new_tokens or MAX_NEW_TOKENS,
        wanted.precision,
        wanted.skip_bad,
        wanted.left_out,
    )


def _classify(model: Classifier, samples: Sequence[Sample], wanted: _Wanted) -> Iterator[Prediction]:
    from petkit.serving.predict import classify

    return classify(
        model,
        samples,
        top_k=wanted.top_k or TOP_K,
        batch_size=wanted.batch_size,
        skip_bad=wanted.skip_bad,
        precision=wanted.precision,
        left_out=wanted.left_out,
    )


def _refuse(value: int | None, flag: str, why: str) -> None:
    if value is not None:
        raise ConfigError(f"{flag} has no effect, since {why}: leave it out")


def _print_lines(predictions: Iterator[Prediction]) -> None:
    count = 0
    for prediction in predictions:
        count += 1
        print(json.dumps({"schema_version": output.SCHEMA_VERSION, **prediction.payload()}), flush=True)
    _need(count)


def _print(predictions: Sequence[Prediction], left_out: Sequence[LeftOut], as_json: bool) -> None:
    _need(len(predictions))
    text = "" if as_json else _text(predictions)
    payload = {
        "predictions": [one.payload() for one in predictions],
        "left_out": [one.payload() for one in left_out],
    }
    output.print_result(text, payload, as_json)


def _need(count: int) -> None:
    if count == 0:
        raise InputError("no input could be read, so that nothing was predicted")


def _text(predictions: Sequence[Prediction]) -> str:
    from petkit.report.tables import Table

    if predictions[0].text is not None:
        return "\n\n".join(f"{one.name}\n{one.text}" for one in predictions)
    banked = any(one.adapter is not None for one in predictions)
    rows = []
    for one in predictions:
        for rank, (label, probability) in enumerate(one.classes):
            # An input is named once, beside its likeliest class.
            named = (one.name, *((one.adapter,) if banked else ())) if rank == 0 else ("",) * (1 + banked)
            rows.append((*named, label, probability))
    columns = ("input", *(("adapter",) if banked else ()), "class", "probability")
    return Table(columns, tuple(rows), formats={"probability": ".1%"}).render(tty=sys.stdout.isatty())
