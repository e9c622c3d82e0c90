"""`petkit decode TRANSLATOR INPUT...`: translations, one a line; or how long one takes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petkit.cli import common, output
from petkit.cli.decode_inputs import LINES, ROWS, is_file, read_sentences, without_long
from petkit.cli.grouped import grouped
from petkit.errors import ConfigError, InputError

if TYPE_CHECKING:
    from petkit.methods.nart_crf.config import DecodeConfig
    from petkit.methods.nart_crf.decoding import Found, Translator
    from petkit.methods.nart_crf.timing import Latency


@dataclass(frozen=True)
class Search:
    """How translations are found; what is not given is as the translator's recipe says."""

    candidates: Annotated[
        int | None,
        typer.Option(
            "--candidates",
            metavar="N",
            min=1,
            max=64,
            help="Lengths to try for each sentence (not of a teacher).",
        ),
    ] = None
    rescore: Annotated[
        str | None,
        typer.Option(
            "--rescore", metavar="TEACHER", help="A teacher's folder, that chooses among candidates."
        ),
    ] = None
    beam: Annotated[
        int | None, typer.Option("--beam", metavar="N", min=1, max=64, help="Beams of a teacher's search.")
    ] = None
    repeats: Annotated[
        bool | None,
        typer.Option(
            "--repeats/--no-repeats", help="Keep tokens that repeat the one before (not of a teacher)."
        ),
    ] = None

    def settings(self, own: DecodeConfig, is_teacher: bool) -> DecodeConfig:
        """The recipe's section with the flags put upon it; a flag without an effect is refused."""
        given = {"candidates": self.candidates, "rescore": self.rescore, "beam": self.beam}
        given["deduplicate"] = None if self.repeats is None else not self.repeats
        flags = {"deduplicate": "--repeats"}
        for name, value in given.items():
            if value is not None and (name == "beam") != is_teacher:
                kind = "an autoregressive translator" if is_teacher else "a translator of all tokens at once"
                raise ConfigError(f"{flags.get(name, f'--{name}')} has no effect on {kind}: leave it out")
        asked = own.model_copy(update={name: value for name, value in given.items() if value is not None})
        if self.rescore is not None and asked.candidates == 1:
            raise ConfigError("--rescore has no effect on a single candidate: give --candidates too")
        return asked


@grouped
def command(
    artifact: Annotated[
        Path, typer.Argument(metavar="TRANSLATOR", help="Folder that `petkit train nat` wrote.")
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help=".jsonl files of source, .txt files of a sentence a line, or sentences."
        ),
    ],
    search: Search,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", metavar="N", min=1, help="Sentences at once, of like length (default 32)."
        ),
    ] = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Translate one sentence at a time, and say how long each takes.")
    ] = False,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Leave faulty rows out, and sentences too long for the model: of a .txt as empty lines.",
        ),
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="JSONL of id, source and target to write, fit to train on."
        ),
    ] = None,
    device: common.DeviceOption = "auto",
    threads: common.ThreadsOption = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace the output file, if it is there.",
            rich_help_panel=common.DANGER_PANEL,
        ),
    ] = False,
    as_json: common.JsonFlag = False,
) -> None:
    """Translate sentences with what `petkit train nat` made."""
    from petkit.methods.nart_crf.stored import load_translator, translator_of
    from petkit.training import device as devices

    if latency and batch_size is not None:
        raise ConfigError("--latency and --batch-size exclude each other: one sentence at a time, or many")
    if file is not None:
        _check_file(file, overwrite, inputs)
    elif overwrite:
        raise ConfigError("--overwrite has no effect without --output: leave it out")
    if skip_bad and not any(map(is_file, inputs)):
        raise ConfigError(f"--skip-bad has no effect without a {ROWS} or {LINES} file: leave it out")
    given = read_sentences(inputs, skip_bad)
    devices.configure(threads, deterministic=False)
    place = devices.resolve_device(device)
    stored = load_translator(artifact, place)
    decode = search.settings(stored.config.decode, stored.config.is_teacher)
    translator = translator_of(stored, decode, place, rescore_key="--rescore" if search.rescore else None)
    given = without_long(given, translator, skip_bad)
    asked = [one for one in given if one.source]
    done = _translate(translator, [one.source for one in asked], batch_size or 32, latency)
    rows = [
        {"id": one.id, "source": one.source, "target": text}
        for one, text in zip(asked, done.texts, strict=True)
    ]
    if file is not None:
        _write(file, rows)
        _warn_of_empty(rows)
        _warn_of_twins(rows)
    # A line for each line that came, blank ones too: files stay parallel.
    texts = iter(done.texts)
    lines = [next(texts) if one.source else "" for one in given]
    _print(rows, lines, done, as_json)


@dataclass(frozen=True)
class _Done:
    """Translations and how fast they came."""

    found: list[Found]
    texts: list[str]
    seconds: float
    latency: Latency | None


def _translate(translator: Translator, sources: Sequence[str], batch_size: int, alone: bool) -> _Done:
    import time

    from petkit.methods.nart_crf.timing import one_by_one

    started, times = time.perf_counter(), None
    with output.progress("decode", len(sources), "sentences") as advance:
        if alone:
            found, times = one_by_one(translator, sources, advance)
        else:
            found = translator.translate(sources, batch_size, advance)
    return _Done(found, translator.texts(found), time.perf_counter() - started, times)


def _check_file(file: Path, overwrite: bool, inputs: Sequence[str]) -> None:
    from petkit.artifacts.run_directory import refuse_unwritable

    if file.suffix.lower() != ROWS:
        raise ConfigError(f"--output must end in {ROWS}, got {file}")
    if file.is_dir():
        raise InputError(f"--output must be a file, {file} is a folder: choose another name")
    if any(is_file(name) and Path(name).resolve() == file.resolve() for name in inputs):
        raise ConfigError(f"--output must not be a file that is translated, got {file}: choose another name")
    if file.exists() and not overwrite:
        raise InputError(f"{file} is there already: choose another name, or --overwrite")
    refuse_unwritable(file.parent)


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    from petkit.artifacts import atomic_write

    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, text.encode())


def _warn_of_empty(rows: Sequence[dict[str, Any]]) -> None:
    empty = sum(not row["target"] for row in rows)
    if empty:
        many = "1 translation is" if empty == 1 else f"{empty} translations are"
        output.warn(f"{many} empty: to learn from the file, set data.skip_bad in the recipe")


def _warn_of_twins(rows: Sequence[dict[str, Any]]) -> None:
    counts = Counter(row["id"] for row in rows if row["id"])
    twins = [name for name, count in counts.items() if count > 1]
    if twins:
        many = f" and {len(twins) - 1:,} more" if len(twins) > 1 else ""
        output.warn(f"several rows have the id {twins[0]!r}{many}: the order of the rows tells them apart")


def _print(rows: Sequence[dict[str, Any]], lines: Sequence[str], done: _Done, as_json: bool) -> None:
    from petkit.report.rounding import significant

    # Alone, without the sentences that warmed up.
    rate = len(rows) / done.seconds if done.latency is None else 1000 / done.latency.mean
    count = "1 sentence" if len(rows) == 1 else f"{len(rows):,} sentences"
    speed = f"{count}, {significant(rate)} sentences/s"
    if done.latency is not None:
        times = done.latency
        speed += f"; a sentence alone {significant(times.median)} ms in the median, 90 % below"
        speed += f" {significant(times.p90)} ms, 99 % below {significant(times.p99)} ms"
    output.log(speed)
    items = [
        {**row, "score": one.score, "candidates": one.candidates}
        for row, one in zip(rows, done.found, strict=True)
    ]
    content: dict[str, Any] = {"items": items, "sentences_per_second": rate}
    if done.latency is not None:
        content["latency_ms"] = vars(done.latency)
    output.print_result("\n".join(lines), content, as_json)
