"""Taggers on the command line: what `train`, `eval`, `predict`, `inspect` and `verify` do for them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petkit.cli import common, output
from petkit.cli.sentences import words_of
from petkit.errors import ArtifactError, ConfigError, InputError, PetkitError

if TYPE_CHECKING:
    from petkit.artifacts import Check
    from petkit.artifacts.tagger import TaggerArtifact
    from petkit.data.conll import Columns, TaggedSentence
    from petkit.methods.crf_tagger.config import TaggerConfig
    from petkit.methods.crf_tagger.stored import LoadedTagger
    from petkit.training.config import Precision

RECIPES = (".yaml", ".yml")
LINES = ".txt"
COLUMNS = (".conll", ".conllu", ".tsv", ".bio", ".iob", ".iob2")
SHOWN_LABELS = 20
# The keys of `data` that say how a line without tags divides, and a column that no word is in.
DIVIDES = ("word_column", "separator", "comment", "docstart")
NO_COLUMN = 2**31


@dataclass(frozen=True)
class Wanted:
    """What the flags ask for."""

    batch_size: int
    device: str
    precision: Precision
    base: str | None


@dataclass(frozen=True)
class Tagged:
    """The tags of one sentence, and the input that it came from."""

    name: str
    line: int | None
    """Of the file, where the sentence begins; None for a text."""
    words: tuple[str, ...]
    tags: tuple[str, ...]
    has_spans: bool
    separator: str = " "
    """Between the columns of what is printed; as in the files that the tagger learned from."""

    def payload(self) -> dict[str, Any]:
        """The same as JSON values; spans as first word, word behind the last, and type."""
        found: dict[str, Any] = {"input": self.name}
        if self.line is not None:
            found["row"] = f"{self.name}:{self.line}"
        found |= {"words": list(self.words), "tags": list(self.tags)}
        if self.has_spans:
            from petkit.data.spans import spans_of

            found["spans"] = [span._asdict() for span in spans_of(self.tags)]
        return found


def refuse(flags: Mapping[str, Any]) -> None:
    """Refuse flags that are given and have no effect on a tagger.

    Args:
        flags: values by name; None where a flag was not given.

    Raises:
        ConfigError: names the flag.
    """
    common.refuse_flags(flags, lambda _: ", since the artifact is a tagger: leave it out")


def check_has_spans(artifact: Path, flag: str) -> None:
    """Refuse a flag about spans for a tagger whose tags write none.

    Args:
        artifact: the tagger's folder.
        flag: what was given.

    Raises:
        ArtifactError: the artifact is damaged.
        ConfigError: its scheme is none.
    """
    from petkit.artifacts.tagger import read_tagger
    from petkit.methods.crf_tagger.stored import stored_config

    if stored_config(read_tagger(artifact)).data.scheme == "none":
        raise ConfigError(
            f"{flag} needs a tagger of spans, and {artifact} has data.scheme none: use --min-accuracy"
        )


def evaluate(
    artifact: Path, data: str | None, split: str, settings: Sequence[str], wanted: Wanted
) -> dict[str, Any]:
    """Measure a tagger.

    Args:
        artifact: its folder.
        data: a file of tagged words, a recipe, or None for the artifact's own.
        split: of the recipe; a file is measured whole.
        settings: values of `--set`.
        wanted: flags.

    Returns:
        The payload of its evaluation, with what was measured.

    Raises:
        PetkitError: the artifact, its encoder or the data cannot be used, by kind.
    """
    from petkit.methods.crf_tagger.evaluation import evaluate_tagger
    from petkit.methods.crf_tagger.inputs import TaggedSentences, warn_of_divided
    from petkit.methods.crf_tagger.splits import check_known
    from petkit.methods.crf_tagger.stored import load_tagger

    loaded = load_tagger(artifact, wanted.device, wanted.base)
    sentences = _sentences(loaded, data, split, settings)
    check_known(sentences, loaded.labels, is_trained=True)
    warn_of_divided(data or split, [sentence.words for sentence in sentences], loaded.reader)
    evaluation = evaluate_tagger(
        loaded.model,
        TaggedSentences(sentences, loaded.labels, loaded.reader),
        loaded.labels,
        loaded.config.data.scheme,
        batch_size=wanted.batch_size,
        device=wanted.device,
        precision=wanted.precision,
    )
    return {"artifact": str(artifact), "split": split, "data": data, **evaluation.payload()}


def _sentences(
    loaded: LoadedTagger, data: str | None, split: str, settings: Sequence[str]
) -> list[TaggedSentence]:
    from petkit.methods.crf_tagger.splits import measured_split, read_checked

    folder = loaded.artifact.folder
    why = dict.fromkeys(("output", "training"), "petkit eval reads data and seed alone")
    if data is not None and Path(data).suffix not in RECIPES and Path(data).is_file():
        if split != "test":
            raise ConfigError("--split has no effect, since --data names one file: leave it out")
        config = _resolved(folder, folder / "config.yaml", settings, _only_file(data), why)
        return read_checked(Path(data), config.data)
    if data is not None and Path(data).suffix in COLUMNS:
        raise InputError(f"--data {data} does not exist: expected a file of words in columns, or a recipe")
    file = folder / "config.yaml" if data is None else common.recipe_files([data], None)[0]
    return measured_split(_resolved(folder, file, settings, {}, why), split)


def _only_file(name: str) -> dict[str, str]:
    """Flags that put one file in the place of a recipe's sentences."""
    return {"data.format": "conll", "data.train": name, "data.test": name}


def _resolved(
    folder: Path, file: Path, settings: Sequence[str], flags: Mapping[str, Any], ignored: Mapping[str, str]
) -> TaggerConfig:
    """The recipe that says where sentences are; what the artifact is, it says itself."""
    from petkit.configuration import resolve
    from petkit.methods.crf_tagger.config import TaggerConfig

    own = dict.fromkeys(("model", "head", "adapter", "data.scheme"), "the artifact says what it is")
    ignored = {**ignored, **own}
    given = {"output": str(folder), **flags}
    return resolve(TaggerConfig, [file], settings, given, ignored=ignored).config


def evaluation_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `petkit eval` prints.

    Args:
        result: what `evaluate` returned.

    Returns:
        Names and texts.
    """
    from petkit.methods.crf_tagger.card import measured, ranged
    from petkit.report.rounding import significant

    rows = [("artifact", result["artifact"]), (result["data"] or result["split"], measured(result))]
    if result["spans"] is not None:
        for name in ("precision", "recall"):
            rows.append((name, ranged(**result["spans"][name])))
        for kind, own in result["spans"]["per_type"].items():
            numbers = f"F1 {own['f1']:.1%}, precision {own['precision']:.1%}, recall {own['recall']:.1%}"
            rows.append((kind or "spans", f"{numbers}, {own['gold']} spans"))
    return [*rows, ("rate", f"{significant(result['examples_per_second'])} sentences/s")]


def predict(
    artifact: Path, inputs: Sequence[str], settings: Sequence[str], wanted: Wanted
) -> Iterator[Tagged]:
    """Tag the words of every input.

    Args:
        artifact: the tagger's folder.
        inputs: files and texts.
        settings: values of `--set`: how files in columns divide where not as the tagger's recipe says.
        wanted: flags.

    Yields:
        The sentences in order.

    Raises:
        PetkitError: the artifact, its encoder or an input cannot be used, by kind.
    """
    from petkit.methods.crf_tagger.evaluation import tag_words
    from petkit.methods.crf_tagger.inputs import warn_of_divided
    from petkit.methods.crf_tagger.stored import load_tagger

    loaded = load_tagger(artifact, wanted.device, wanted.base)
    columns, has_spans = _columns(loaded, inputs, settings), loaded.config.data.scheme != "none"
    read = [(name, _words(name, columns)) for name in inputs]
    for name, sentences in read:
        warn_of_divided(name, [words for words, _ in sentences], loaded.reader)
    for name, sentences in read:
        for start in range(0, len(sentences), wanted.batch_size):
            chunk = sentences[start : start + wanted.batch_size]
            words = [own for own, _ in chunk]
            tags = tag_words(
                loaded.model,
                loaded.reader,
                words,
                loaded.labels,
                batch_size=wanted.batch_size,
                device=wanted.device,
                precision=wanted.precision,
            )
            for (own, line), found in zip(chunk, tags, strict=True):
                yield Tagged(name, line, own, found, has_spans, columns.separator or " ")


def _columns(loaded: LoadedTagger, inputs: Sequence[str], settings: Sequence[str]) -> Columns:
    """How the files in columns divide: as the tagger's recipe says, changed by --set."""
    if not settings:
        return loaded.config.data.columns()
    file = next((name for name in inputs if Path(name).suffix.lower() in COLUMNS), None)
    if file is None:
        raise ConfigError(
            f"--set has no effect, since no INPUT is a file in columns ({', '.join(COLUMNS)}): leave it out"
        )
    # The words' column may be any, since no tags are read.
    flags = {**_only_file(file), "data.tag_column": NO_COLUMN}
    ignored = {f"data.{name}" for name in type(loaded.config.data).model_fields if name not in DIVIDES}
    why = dict.fromkeys((*ignored, "output", "seed", "training"), "petkit predict reads words alone")
    folder = loaded.artifact.folder
    return _resolved(folder, folder / "config.yaml", settings, flags, why).data.columns()


def _words(name: str, columns: Columns) -> Sequence[tuple[tuple[str, ...], int | None]]:
    """The sentences of a file with their lines, or of a text that is no file's name."""
    from petkit.data.conll import read_word_column, read_words

    kinds = f"{LINES} (a sentence a line) or in {', '.join(COLUMNS)} (one word a line)"
    path = Path(name)
    if path.suffix.lower() == LINES:
        return read_words(path)
    if path.suffix.lower() in COLUMNS:
        return read_word_column(path, columns)
    # Unlike a Path's own method, it also takes a sentence that is too long to be a file's name.
    if os.path.isfile(name):
        # Sentences read as columns would lose all but their first words.
        raise ConfigError(
            f"{name} must end in {kinds}, got {path.suffix or 'no ending'}: rename it by what it holds"
        )
    return [(tuple(words_of(name, kinds.replace(" or in ", " or ")).split(" ")), None)]


def print_predictions(found: Iterator[Tagged], as_json: bool, as_lines: bool) -> None:
    """Print tags in columns, or as JSON.

    Args:
        found: the tagged sentences.
        as_json: one object for all.
        as_lines: one object a sentence, as they come.
    """
    if as_lines:
        for one in found:
            print(json.dumps({"schema_version": output.SCHEMA_VERSION, **one.payload()}), flush=True)
        return
    if as_json:
        output.print_result("", {"predictions": [one.payload() for one in found]}, True)
        return
    for position, one in enumerate(found):
        lines = [f"{word}{one.separator}{tag}" for word, tag in zip(one.words, one.tags, strict=True)]
        print("\n".join([*([""] if position else []), *lines]), flush=True)


def facts(artifact: TaggerArtifact) -> list[str]:
    """What `petkit inspect` says of a tagger above the table of its tensors.

    Args:
        artifact: the tagger.

    Returns:
        Lines.
    """
    from petkit.methods.crf_tagger.stored import stored_config

    manifest, config = artifact.manifest, stored_config(artifact)
    base = manifest.base
    shown = ", ".join(manifest.labels[:SHOWN_LABELS])
    more = len(manifest.labels) - SHOWN_LABELS
    head = f"{config.head.kind}, constraints {config.constrain}"
    return [
        f"{artifact.folder}: {manifest.kind}, schema version {manifest.schema_version}",
        f"base     {base.id}, sha256 {base.sha256}" if base else "base     none: a BiLSTM of its own",
        *([f"tuned    {config.model.tune}"] if base else []),
        f"head     {head if config.head.kind == 'crf' else config.head.kind}",
        f"scheme   {config.data.scheme}",
        f"labels   {shown}" + (f" and {more} more" if more > 0 else ""),
        *(f"lineage  petkit {step.command} ({step.version}, {step.created})" for step in manifest.lineage),
    ]


def recipe_checks(artifact: Path) -> list[Check]:
    """Check what the file format does not know: that this version understands the tagger's recipe.

    Args:
        artifact: the folder.

    Returns:
        One check; none where the artifact cannot be read at all, which other checks say.
    """
    from petkit.artifacts import Check
    from petkit.artifacts.tagger import read_tagger
    from petkit.methods.crf_tagger.stored import stored_config

    try:
        tagger = read_tagger(artifact)
    except (PetkitError, FileNotFoundError):
        return []
    try:
        config = stored_config(tagger)
    except ArtifactError as error:
        return [Check("recipe", False, str(error), error.exit_code)]
    return [Check("recipe", True, f"valid: {config.model.encoder} with {config.head.kind}")]


def result_rows(result: Mapping[str, Any], folder: str) -> list[tuple[str, str]]:
    """What a finished run of `petkit train tagger` prints.

    Args:
        result: the content of result.json.
        folder: the artifact.

    Returns:
        Names and texts.
    """
    from petkit.methods.crf_tagger.card import measured
    from petkit.report.rounding import significant

    rates = result["examples_per_second"]
    trained, evaluated = significant(rates["train"]), significant(rates["eval"])
    return [
        ("artifact", folder),
        ("status", result["status"] + (f", stopped by {result['stopped']}" if result["stopped"] else "")),
        ("test", measured(result)),
        ("steps", f"{result['steps']} of {result['total_steps']}"),
        ("bytes", _bytes(result["bytes"])),
        ("sentences/s", f"{trained} in training, {evaluated} in evaluation"),
        *([("processes", str(result["processes"]))] if result["processes"] > 1 else []),
    ]


def _bytes(sizes: Mapping[str, int]) -> str:
    return f"{sizes['adapter'] + sizes['head']:,}; all weights in float32 {sizes['full_model_fp32']:,}"


def plan_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `petkit train tagger --dry-run` prints.

    Args:
        plan: what the recipe's `plan` found.

    Returns:
        Names and texts.
    """
    from petkit.models.site_names import patterns_of

    steps, model = plan["steps"], plan["model"]
    counts = ", ".join(f"{count} {name}" for name, count in plan["sentences"].items() if count is not None)
    sha256 = f" (sha256 {model['sha256'][:12]})" if model["sha256"] else ""
    return [
        ("output", plan["output"]),
        ("model", model["id"] + sha256),
        ("device", f"{plan['device']}, {plan['processes']} process(es)"),
        ("sentences", counts),
        ("labels", ", ".join(plan["labels"])),
        *([("adapters", "\n".join(patterns_of(plan["adapters"])))] if plan["adapters"] else []),
        ("trainable", f"{plan['trainable_parameters']:,} parameters"),
        ("bytes", _bytes(plan["bytes"])),
        ("steps", f"{steps['total']} ({steps['per_epoch']} an epoch, {steps['warmup']} of warm-up)"),
    ]
