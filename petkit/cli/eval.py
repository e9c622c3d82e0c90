"""`petkit eval`: measure an artifact on a split, optionally under weight noise, optionally against a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from petkit.cli import common, output
from petkit.cli.grouped import grouped
from petkit.cli.runs import SkipBadFlag
from petkit.cli.train import measured
from petkit.errors import ConfigError, GateError

if TYPE_CHECKING:
    import torch

    from petkit.artifacts import Artifact
    from petkit.methods.binary_adapter.config import BinaryAdapterConfig

NOISE_SEEDS = 3
BATCH_SIZE = 64
# Files of examples, which an adapter is measured on as a folder.
EXAMPLES = (".jsonl", ".csv", ".tsv")
Measured: TypeAlias = "tuple[dict[str, Any], list[tuple[str, str]]]"
"""What was found, for programs and as rows for people."""


class Split(str, Enum):
    """Which part of the data."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Mode(str, Enum):
    """How adapters compute: from the packed bits, or from dequantised weights."""

    PACKED = "packed"
    DENSE = "dense"


@dataclass(frozen=True)
class Examples:
    """What is measured."""

    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="RECIPE|FOLDER|FILE", help="Other data than the artifact's own recipe names."
        ),
    ] = None
    split: Annotated[Split, typer.Option("--split", help="Which part of the data.")] = Split.TEST
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set a key of the data, such as data.test_size=100; may be repeated.",
        ),
    ] = None
    skip_bad: SkipBadFlag = False


@dataclass(frozen=True)
class Weights:
    """How adapters compute."""

    mode: Annotated[Mode | None, typer.Option("--mode", help="packed by default; dense with --noise.")] = None
    noise: Annotated[
        list[float] | None,
        typer.Option(
            "--noise", metavar="R", help="Add N(0, (R sigma)^2) to adapter matrices; may be repeated."
        ),
    ] = None
    noise_seeds: Annotated[
        int | None,
        typer.Option("--noise-seeds", metavar="K", min=1, help="Draws of the noise to average (default 3)."),
    ] = None

    def chosen_mode(self) -> Mode:
        """The mode that is asked for, or that noise needs; flags that contradict each other are refused."""
        if self.noise and self.mode is Mode.PACKED:
            raise ConfigError(
                "--noise needs --mode dense, since packed bits cannot hold noise: leave --mode out"
            )
        if self.noise_seeds is not None and not self.noise:
            raise ConfigError("--noise-seeds needs --noise: without noise nothing is drawn")
        return self.mode or (Mode.DENSE if self.noise else Mode.PACKED)


@dataclass(frozen=True)
class Limits:
    """What the result must keep."""

    min_accuracy: Annotated[
        float | None,
        common.limit(
            "--min-accuracy", 0.0, 1.0, "Exit with 3 below this; of a tagger the accuracy of words."
        ),
    ] = None
    min_f1: Annotated[
        float | None,
        common.limit(
            "--min-f1", 0.0, 1.0, "Taggers of spans: exit with 3 where the F1 of spans is below this."
        ),
    ] = None
    min_bleu: Annotated[
        float | None,
        common.limit("--min-bleu", 0.0, 100.0, "Translators: exit with 3 below this BLEU."),
    ] = None
    min_reward: Annotated[
        float | None,
        common.limit(
            "--min-reward",
            0.0,
            1.0,
            "Language models on questions: exit with 3 below this reward.",
        ),
    ] = None
    max_loss: Annotated[
        float | None,
        common.limit("--max-loss", 0.0, None, "Nats an example, token or word; exit with 3 above."),
    ] = None

    def check(self, result: Mapping[str, Any]) -> None:
        """Fail when the result does not keep them."""
        faults = []
        accuracy, loss, reward = (result.get(name) for name in ("accuracy", "loss", "reward"))
        if self.min_accuracy is not None and accuracy is not None and accuracy < self.min_accuracy:
            faults.append(
                f"accuracy must be at least {self.min_accuracy:g} (--min-accuracy), got {accuracy:.4f}"
            )
        spans = result.get("spans")
        if self.min_f1 is not None and spans is not None and spans["f1"]["value"] < self.min_f1:
            found = spans["f1"]["value"]
            faults.append(f"F1 of spans must be at least {self.min_f1:g} (--min-f1), got {found:.4f}")
        bleu = result.get("bleu")
        if self.min_bleu is not None and bleu is not None and bleu["value"] < self.min_bleu:
            faults.append(f"BLEU must be at least {self.min_bleu:g} (--min-bleu), got {bleu['value']:.2f}")
        if self.min_reward is not None and reward is not None and reward < self.min_reward:
            faults.append(f"reward must be at least {self.min_reward:g} (--min-reward), got {reward:.4f}")
        # Written so that a loss that is no number fails too.
        if self.max_loss is not None and loss is not None and not loss <= self.max_loss:
            faults.append(f"loss must be at most {self.max_loss:g} nats (--max-loss), got {loss:.4f}")
        if faults:
            raise GateError("\n".join(faults))


@dataclass(frozen=True)
class Machine:
    """What the forward passes run on."""

    base: common.BaseOption = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            help="Examples per forward pass (default 64; of questions the recipe's sampling.batch_size).",
        ),
    ] = None
    device: common.DeviceOption = "auto"
    dtype: common.DtypeOption = common.Dtype.FLOAT32
    threads: common.ThreadsOption = None
    allow_code: common.AllowCodeFlag = False

    @property
    def examples(self) -> int:
        """Of a forward pass."""
        return BATCH_SIZE if self.batch_size is None else self.batch_size

    def place(self) -> torch.device:
        """The device, with the threads as asked for."""
        from petkit.training import device as devices

        devices.configure(self.threads, deterministic=False)
        return devices.resolve_device(self.device)


@dataclass(frozen=True)
class Request:
    """All that a measurement is made from."""

    artifact: Path
    examples: Examples
    weights: Weights
    limits: Limits
    machine: Machine
    place: torch.device
    mode: Mode


@grouped
def command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder of the artifact.")],
    examples: Examples,
    weights: Weights,
    limits: Limits,
    machine: Machine,
    as_json: common.JsonFlag = False,
) -> None:
    """Measure an artifact on a data set: accuracy with its 95 % interval, or perplexity, and the rate.

    A tagger gets the accuracy of its words, and unless its scheme is none the F1 of its spans.
    Its --data is a recipe, or a file in columns: a word and its tag a line, sentences apart by
    blank lines. Columns are those of its recipe, or what --set says: data.word_column=1,
    data.tag_column, data.separator, data.comment, data.docstart. --mode, --noise and --skip-bad
    have no effect on it.

    A translator gets BLEU and chrF. Its --data is a recipe, or a .jsonl file of source and target;
    --set also says how it translates: decode.candidates=9, decode.rescore=TEACHER, decode.beam=1.

    A language model gets the reward of its greedy answers, with the interval, in all and for each
    data set, where --data is a .jsonl file of questions with answers: a distilled one, a merged one
    and any adapter. A distilled one is asked as in its run, and without --data the questions that
    the run was validated by. --set takes data.validation_size, the keys of how questions are put
    (data.suffix, data.system, data.chat_template), sampling.max_new_tokens and sampling.stop.
    """
    from petkit.artifacts.kinds import kind_of
    from petkit.cli import answered

    kind = kind_of(artifact)
    mode, place = weights.chosen_mode(), machine.place()
    if limits.min_bleu is not None and kind != "translator":
        raise ConfigError("--min-bleu is for translators, which `petkit train nat` makes: leave it out")
    asks = answered.answers_questions(artifact, kind, examples.data, examples.split.value)
    if limits.min_reward is not None and not asks:
        raise ConfigError(
            "--min-reward is for the answers of language models to questions: name a file of them by --data, "
            "or leave it out"
        )
    if not asks:
        common.check_code(None, machine.allow_code)
    measures = {"tagger": _measure_tagger, "translator": _measure_translator}
    measure = _measure_answers if asks else measures.get(kind or "", _measure_adapter)
    result, rows = measure(Request(artifact, examples, weights, limits, machine, place, mode))
    output.print_result(output.table(("", ""), rows), result, as_json)
    limits.check(result)


def _measure_answers(request: Request) -> Measured:
    from petkit.artifacts.kinds import kind_of
    from petkit.cli import answered

    examples, weights, limits, machine = request.examples, request.weights, request.limits, request.machine
    flags: dict[str, Any] = {"--min-accuracy": limits.min_accuracy, "--min-f1": limits.min_f1}
    flags |= {"--max-loss": limits.max_loss, "--noise": weights.noise}
    if kind_of(request.artifact) in answered.WHOLE:
        flags |= {"--mode": weights.mode, "--base": machine.base}
    answered.refuse(flags)
    asked = answered.Asked(
        data=examples.data,
        split=examples.split.value,
        settings=examples.settings or (),
        skip_bad=examples.skip_bad,
        batch_size=machine.batch_size,
        base=machine.base,
        mode=request.mode.value,
        precision=machine.dtype.precision,
        allow_code=machine.allow_code,
    )
    result = {**answered.evaluate(request.artifact, asked, request.place), "dtype": machine.dtype.value}
    return result, answered.evaluation_rows(result)


def _measure_tagger(request: Request) -> Measured:
    from petkit.cli import tagged

    examples, weights, limits, machine = request.examples, request.weights, request.limits, request.machine
    skip_bad = examples.skip_bad or None
    tagged.refuse({"--mode": weights.mode, "--noise": weights.noise, "--skip-bad": skip_bad})
    if limits.min_f1 is not None:
        tagged.check_has_spans(request.artifact, "--min-f1")
    wanted = tagged.Wanted(machine.examples, str(request.place), machine.dtype.precision, machine.base)
    settings = examples.settings or ()
    result = tagged.evaluate(request.artifact, examples.data, examples.split.value, settings, wanted)
    return result, tagged.evaluation_rows(result)


def _measure_translator(request: Request) -> Measured:
    from petkit.cli import translated

    examples, weights, limits, machine = request.examples, request.weights, request.limits, request.machine
    skip_bad = examples.skip_bad or None
    flags: dict[str, Any] = {"--mode": weights.mode, "--noise": weights.noise, "--base": machine.base}
    flags |= {"--min-accuracy": limits.min_accuracy, "--min-f1": limits.min_f1}
    translated.refuse(flags)
    data = translated.Data(examples.data, examples.split.value, examples.settings or (), skip_bad)
    result = translated.evaluate(
        request.artifact, data, machine.examples, request.place, machine.dtype.precision
    )
    return result, translated.evaluation_rows(result)


def _measure_adapter(request: Request) -> Measured:
    from petkit.methods.binary_adapter import evaluation
    from petkit.methods.binary_adapter.recorded import read_checked
    from petkit.models.loading import load_adapted

    examples, weights, limits, machine = request.examples, request.weights, request.limits, request.machine
    split, dtype = examples.split, machine.dtype
    settings = examples.settings or ()
    config = data_config(read_checked(request.artifact), examples.data, settings, examples.skip_bad, split)
    if limits.min_f1 is not None:
        instead = "--max-loss" if config.task == "causal_lm" else "--min-accuracy"
        raise ConfigError(f"--min-f1 is for taggers, and this is for {config.task}: use {instead}")
    if limits.min_accuracy is not None and config.task == "causal_lm":
        raise ConfigError("--min-accuracy is for classifiers, and this is a language model: use --max-loss")
    adapted = load_adapted(request.artifact, request.place, request.mode.value, machine.base)
    dataset = evaluation.load_split(adapted, config.data, split.value, config.seed)

    def measure(relative: float = 0.0, seed: int = 0) -> dict[str, Any]:
        with evaluation.weight_noise(adapted.model, relative, seed):
            return evaluation.evaluate_adapted(
                adapted, dataset, request.place, machine.examples, config.data.workers, dtype.precision
            ).payload()

    settled = {"split": split.value, "mode": request.mode.value, "dtype": dtype.value}
    result = {"artifact": str(request.artifact), **settled, **measure()}
    if weights.noise:
        seeds = range(weights.noise_seeds or NOISE_SEEDS)
        result["noise"] = [_under_noise(r, [measure(r, k) for k in seeds]) for r in weights.noise]
    return result, _rows(result)


def data_config(
    artifact: Artifact,
    data: str | None,
    settings: Sequence[str],
    skip_bad: bool = False,
    split: Split | None = None,
) -> BinaryAdapterConfig:
    """Resolve where the examples are: as the artifact's recipe says, another recipe, or a folder.

    Args:
        artifact: its recipe, task and base fill in what the data does not say.
        data: value of `--data`; None takes the artifact's own data.
        settings: values of `--set`.
        skip_bad: leave unreadable files out.
        split: the only one that is read, if it is only one.

    Returns:
        The configuration whose `data` section holds.

    Raises:
        ConfigError: the artifact records no data, or a key is unknown, invalid or without effect.
    """
    from petkit.configuration import resolve
    from petkit.methods.binary_adapter.config import BinaryAdapterConfig

    manifest = artifact.manifest
    task = manifest.task.type if manifest.task else "image_classification"
    # Keys that an evaluation does not use are the artifact's, so that a recipe for another model serves too.
    flags: dict[str, Any] = {"output": str(artifact.folder), "task": task, "model.name": manifest.base.id}
    flags["data.skip_bad"] = skip_bad or None
    files: list[Path] = []
    if data is None:
        # What a distilled language model was asked are prompts, and no examples to be measured on.
        prompts = "student" in artifact.config and task == "causal_lm"
        if "data" not in artifact.config or prompts:
            raise ConfigError(
                f"{artifact.folder} does not record its data: pass --data RECIPE or --data FOLDER"
            )
        files = [artifact.folder / "config.yaml"]
    elif Path(data).is_dir():
        settings = [f"data.format={_format(Path(data), task)}", f"data.path={data}", *settings]
    elif Path(data).suffix in EXAMPLES:
        raise ConfigError(
            f"--data takes a recipe or the folder of the examples, got the file {data}: "
            f"{_folder_of(Path(data))}"
        )
    else:
        files = common.recipe_files([data], None)
    return resolve(BinaryAdapterConfig, files, settings, flags, ignored=_ignored(artifact, split)).config


def _folder_of(file: Path) -> str:
    """What to pass instead of a file of examples: its folder, where such a folder has a file of that name."""
    if file.stem in [split.value for split in Split]:
        return f"--data {file.parent}"
    return f"such a folder holds train{file.suffix} and test{file.suffix}"


def _ignored(artifact: Artifact, split: Split | None) -> dict[str, str]:
    """The keys of a recipe that do not change what is measured, each with the reason."""
    task = artifact.manifest.task
    ignored = dict.fromkeys(("model", "adapter", "task"), "the artifact says what it is")
    of_distillation = ("kind", "student", "teacher", "distillation")
    ignored |= dict.fromkeys(
        ("output", "training", *of_distillation), "petkit eval reads data and seed alone"
    )
    if task is not None and task.preprocess is not None:
        ignored |= dict.fromkeys(
            ("data.normalize", "data.interpolation"), "the artifact says how its pictures are prepared"
        )
    if task is not None and task.max_length is not None:
        ignored["data.max_length"] = "the artifact says how long its texts are"
    for key, part in (("data.train_size", Split.TRAIN), ("data.test_size", Split.TEST)):
        if split not in (None, part):
            ignored[key] = f"only the {split.value} split is read"
    return ignored


def _format(folder: Path, task: str) -> str:
    if task == "image_classification":
        return "vtab" if (folder / "test.txt").exists() else "image_folder"
    return "chat" if task == "causal_lm" else "text"


def _under_noise(relative: float, draws: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum the draws of one noise level up."""
    key = "loss" if draws[0].get("accuracy") is None else "accuracy"
    values = [float(draw[key]) for draw in draws]
    return {"noise": relative, key: sum(values) / len(values), "draws": values}


def _rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    from petkit.report.rounding import significant

    rows = [
        ("artifact", result["artifact"]),
        ("weights", f"{result['mode']}, computed in {result['dtype']}"),
        (result["split"], measured(result)),
        ("rate", f"{significant(result['examples_per_second'])} examples/s"),
    ]
    for point in result.get("noise", ()):
        rows.append((f"noise {point['noise']:g}", _noisy(point)))
    return rows


def _noisy(point: Mapping[str, Any]) -> str:
    draws = point["draws"]
    if "accuracy" in point:
        mean, low, high = (f"{value:.1%}" for value in (point["accuracy"], min(draws), max(draws)))
    else:
        mean, low, high = (f"{value:.4f}" for value in (point["loss"], min(draws), max(draws)))
    what = f"{mean} accuracy" if "accuracy" in point else f"loss {mean}"
    if len(draws) == 1:
        return f"{what}, of one draw"
    return f"{what}, mean of {len(draws)} draws; lowest {low}, highest {high}"
