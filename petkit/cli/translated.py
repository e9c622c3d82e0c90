"""Translators on the command line: what `train`, `eval`, `inspect` and `verify` say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petkit.cli import common, output
from petkit.errors import ArtifactError, ConfigError, PetkitError

if TYPE_CHECKING:
    import torch

    from petkit.artifacts import Check
    from petkit.artifacts.translator import TranslatorArtifact
    from petkit.methods.nart_crf.config import TranslatorConfig
    from petkit.training.config import Precision

ROWS = (".jsonl",)


def teacher_recipe(config: TranslatorConfig, folder: Path | None) -> TranslatorConfig:
    """The recipe of the teacher that a student's recipe names.

    Args:
        config: the student's recipe.
        folder: of `--output`, which wins over the recipe.

    Returns:
        The same data, sizes and training for an autoregressive model.

    Raises:
        ConfigError: nothing says where the teacher goes.
    """
    from petkit.methods.nart_crf.config import TEACHER, TeacherConfig

    if config.is_teacher:
        return config
    output = str(folder) if folder else config.teacher.model
    if output is None:
        raise ConfigError(
            "--teacher needs a folder for the teacher: set teacher.model in the recipe, or give -o"
        )
    return config.model_copy(
        update={
            "output": output,
            "start": None,
            "teacher": TeacherConfig(),
            "model": config.model.model_copy(update={"kind": TEACHER}),
        }
    )


@dataclass(frozen=True)
class Data:
    """What is measured: a recipe, a file or the artifact's own data; of which split; by which settings."""

    source: str | None
    split: str
    settings: Sequence[str]
    skip_bad: bool | None


def refuse(flags: Mapping[str, Any]) -> None:
    """Refuse flags that are given and have no effect on a translator.

    Args:
        flags: values by name; None where a flag was not given.

    Raises:
        ConfigError: names the flag.
    """
    common.refuse_flags(flags, lambda _: ", since the artifact is a translator: leave it out")


def evaluate(
    artifact: Path, data: Data, batch_size: int, device: torch.device, precision: Precision
) -> dict[str, Any]:
    """Measure a translator.

    Args:
        artifact: its folder.
        data: what is measured.
        batch_size: sentences at once.
        device: where it runs.
        precision: of the loss.

    Returns:
        The payload of its evaluation, with what was measured.

    Raises:
        PetkitError: the artifact or the data cannot be used, by kind.
    """
    from petkit.methods.nart_crf.evaluation import check_sacrebleu, evaluate_translator
    from petkit.methods.nart_crf.splits import measured_split, told
    from petkit.methods.nart_crf.stored import load_translator, translator_of

    check_sacrebleu()
    stored = load_translator(artifact, device)
    config = _resolved(artifact, data)
    pairs = measured_split(config, data.split)
    translator = translator_of(stored, config.decode, device)
    with output.progress("eval", len(pairs), "sentences") as advance:
        evaluation = evaluate_translator(
            translator,
            pairs,
            batch_size=batch_size,
            precision=precision,
            advance=advance,
            whose=f" of {told(config.data, data.split)}",
        )
    decode = config.decode.model_dump(mode="json")
    return {
        "artifact": str(artifact), "split": data.split, "data": data.source, "decode": decode,
        **evaluation.payload(),
    }  # fmt: skip


def _resolved(artifact: Path, data: Data) -> TranslatorConfig:
    """The recipe that says where sentences are and how they are translated; the artifact says what it is."""
    from petkit.configuration import resolve
    from petkit.methods.nart_crf.config import TranslatorConfig

    ignored = dict.fromkeys(
        ("model", "crf", "vocabulary", "lengths", "loss"), "the artifact says what it is"
    ) | dict.fromkeys(
        ("output", "training", "teacher", "start"), "petkit eval reads data, decode and seed alone"
    )
    flags: dict[str, Any] = {"output": str(artifact), "data.skip_bad": data.skip_bad}
    files = [artifact / "config.yaml"]
    if data.source is not None and Path(data.source).suffix in ROWS:
        if data.split != "test":
            raise ConfigError("--split has no effect, since --data names one file: leave it out")
        flags |= {"data.format": "jsonl", "data.train": data.source, "data.test": data.source}
    elif data.source is not None and Path(data.source).suffix not in ("", ".yaml", ".yml"):
        raise ConfigError(f"--data must be a recipe (.yaml) or end in .jsonl, got {data.source}")
    elif data.source is not None:
        files += common.recipe_files([data.source], None)
    return resolve(TranslatorConfig, files, data.settings, flags, ignored=ignored).config


def facts(artifact: TranslatorArtifact) -> list[str]:
    """What `petkit inspect` says of a translator above the table of its tensors.

    Args:
        artifact: the translator.

    Returns:
        Lines.
    """
    from petkit.methods.nart_crf.stored import stored_config, stored_vocabulary

    manifest = artifact.manifest
    config, subwords = stored_config(manifest, artifact.folder), stored_vocabulary(artifact)
    shape, crf = config.model, config.crf
    return [
        f"{artifact.folder}: {manifest.kind}, schema version {manifest.schema_version}",
        f"model    {shape.kind}, hidden {shape.hidden}",
        f"layers   {shape.encoder_layers} that read, {shape.decoder_layers} that write",
        *([f"crf      rank {crf.rank}, beam {crf.beam}"] if "crf" in shape.kind else []),
        *([] if config.is_teacher else [f"lengths  {_lengths(config)}"]),
        f"subwords {len(subwords):,}, shared by source and target",
        *([f"teacher  {config.teacher.model}"] if config.distills else []),
        *(f"lineage  petkit {step.command} ({step.version}, {step.created})" for step in manifest.lineage),
    ]


def _lengths(config: TranslatorConfig) -> str:
    lengths = config.lengths
    return lengths.kind if lengths.kind == "predictor" else f"the source's and {lengths.offset}"


def recipe_checks(artifact: Path) -> list[Check]:
    """Check what the file format does not know: that this version understands the translator's recipe.

    Args:
        artifact: the folder.

    Returns:
        One check; none where the artifact cannot be read at all, which other checks say.
    """
    from petkit.artifacts import Check
    from petkit.artifacts.translator import read_translator
    from petkit.methods.nart_crf.stored import stored_config, stored_vocabulary

    try:
        translator = read_translator(artifact)
    except (PetkitError, FileNotFoundError):
        return []
    try:
        config = stored_config(translator.manifest, artifact)
        stored_vocabulary(translator)
    except ArtifactError as error:
        return [Check("recipe", False, str(error), error.exit_code)]
    return [Check("recipe", True, f"valid: {config.model.kind}")]


def result_rows(result: Mapping[str, Any], folder: str) -> list[tuple[str, str]]:
    """What a finished run of `petkit train nat` prints.

    Args:
        result: the content of result.json.
        folder: the artifact.

    Returns:
        Names and texts.
    """
    from petkit.methods.nart_crf.card import measured
    from petkit.report.rounding import significant

    rates = result["examples_per_second"]
    trained, evaluated = significant(rates["train"]), significant(rates["eval"])
    return [
        ("artifact", folder),
        ("model", result["kind"]),
        ("status", result["status"] + (f", stopped by {result['stopped']}" if result["stopped"] else "")),
        ("test", measured(result)),
        ("steps", f"{result['steps']} of {result['total_steps']}"),
        ("bytes", f"{result['bytes']:,}"),
        ("sentences/s", f"{trained} in training, {evaluated} in translation"),
        *([("processes", str(result["processes"]))] if result["processes"] > 1 else []),
    ]


def plan_rows(plan: Mapping[str, Any], folder: str) -> list[tuple[str, str]]:
    """What `petkit train nat --dry-run` prints.

    Args:
        plan: what the recipe's `plan` found.
        folder: where the artifact would go.

    Returns:
        Names and texts.
    """
    steps, model = plan["steps"], plan["model"]
    counts = ", ".join(f"{count:,} {name}" for name, count in plan["sentences"].items() if count is not None)
    to_distil = f"{plan['sentences_to_distil']:,} sentences to translate first"
    return [
        ("output", folder),
        ("model", f"{model['kind']}, {model['vocabulary']:,} subwords"),
        *([("start", plan["start"])] if plan["start"] else []),
        *([("teacher", f"{plan['teacher']}, {to_distil}")] if plan["teacher"] else []),
        ("device", f"{plan['device']}, {plan['processes']} process(es)"),
        ("sentences", counts),
        *([("lengths", f"the source's and {model['offset']}")] if model["offset"] is not None else []),
        ("trainable", f"{plan['trainable_parameters']:,} parameters"),
        ("bytes", f"{plan['bytes']:,}"),
        ("steps", f"{steps['total']:,} ({steps['per_epoch']:,} an epoch, {steps['warmup']:,} of warm-up)"),
    ]


def evaluation_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `petkit eval` prints.

    Args:
        result: the payload of an evaluation, with what was measured.

    Returns:
        Names and texts.
    """
    from petkit.methods.nart_crf.card import measured
    from petkit.report.rounding import significant

    return [
        ("artifact", result["artifact"]),
        (result["data"] or result["split"], measured(result)),
        ("loss", f"{result['loss']:.4f}"),
        ("signature", result["sacrebleu"]),
        ("rate", f"{significant(result['examples_per_second'])} sentences/s"),
    ]
