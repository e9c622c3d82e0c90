"""Language models on the command line: `petkit eval` lets them answer questions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from petkit.cli import common
from petkit.cli.distill import measured_rows
from petkit.errors import ConfigError, PetkitError

if TYPE_CHECKING:
    import torch

    from petkit.training.config import Precision

MERGED = "merged"
WHOLE = ("distilled", MERGED)
RECIPES = (".yaml", ".yml")
ROWS = ".jsonl"
# Rows to look at for a question: the first ones may be faulty.
LOOKED_AT = 20


@dataclass(frozen=True)
class Asked:
    """What the flags ask for."""

    data: str | None
    split: str
    settings: Sequence[str]
    skip_bad: bool
    batch_size: int | None
    base: str | None
    mode: Literal["packed", "dense"]
    precision: Precision
    allow_code: bool


def answers_questions(artifact: Path, kind: str | None, data: str | None, split: str) -> bool:
    """Whether an artifact is a language model that is to be measured on questions.

    Args:
        artifact: its folder.
        kind: what its `petkit.json` states.
        data: value of `--data`: adapters are also measured on the loss of conversations.
        split: the file of a folder that would be read.

    Returns:
        Whether it is.

    Raises:
        ConfigError: the data holds questions, but not as a file of them; or it does not hold what such an
            artifact is measured on.
    """
    whole = kind in WHOLE
    if not (whole or _is_adapter(artifact)):
        return False
    if data is not None:
        return _holds(artifact, whole, Path(data), split)
    if kind == MERGED:
        raise ConfigError(
            f"{artifact} is a merged model, which records no data: pass --data QUESTIONS.jsonl for the "
            "reward of a language model's answers"
        )
    return whole or _has_student(artifact)


def _holds(artifact: Path, whole: bool, data: Path, split: str) -> bool:
    """Whether the data are questions, to be answered; other data are for adapters alone."""
    if data.is_dir():
        file = data / f"{split}{ROWS}"
        if whole or _holds_questions(file):
            raise ConfigError(
                f"--data takes a {ROWS} file of questions, got the folder {data}: --data {file}"
            )
        return False
    if data.suffix == ROWS:
        # Whose recipe is one of questions is told of faulty ones by their lines.
        if whole or _has_student(artifact) or _holds_questions(data):
            return True
        raise ConfigError(_no_questions(data, split))
    if whole or (data.suffix in RECIPES and _is_distillation(data)):
        raise ConfigError(
            f"--data takes a {ROWS} file of questions, got {data}: pass the file that a recipe names as "
            "data.validation"
        )
    return False


def _no_questions(file: Path, split: str) -> str:
    takes = "--data takes a recipe, a folder of conversations or a .jsonl file of questions with answers"
    if not file.is_file():
        return f"{takes}, and there is no file {file}"
    found = f"{takes}, got {file}, whose rows have no question"
    if file.name == f"{split}{ROWS}":
        return f"{found}: for conversations --data {file.parent}"
    return f"{found}: conversations go into a folder as train{ROWS} and test{ROWS}"


def refuse(flags: Mapping[str, Any]) -> None:
    """Refuse flags that are given and have no effect on the reward.

    Args:
        flags: values by name; None where a flag was not given.

    Raises:
        ConfigError: names the flag.
    """

    def why(name: str) -> str:
        instead = ", or use --min-reward" if name.startswith(("--min", "--max")) else ""
        return f" on the reward of answers to questions: leave it out{instead}"

    common.refuse_flags(flags, why)


def evaluate(artifact: Path, asked: Asked, place: torch.device) -> dict[str, Any]:
    """Measure the reward of a language model.

    Args:
        artifact: its folder.
        asked: flags.
        place: where it computes.

    Returns:
        The payload of its evaluation, with what was measured.

    Raises:
        PetkitError: the artifact, its base or the questions cannot be used, by kind.
    """
    from petkit.methods.tropd.measuring import measure, measured_recipe

    if asked.split == "train" or (asked.data is not None and asked.split != "test"):
        raise ConfigError(
            f"--split {asked.split} has no effect on questions: name their file by --data, or leave both out "
            "for the validation of the run"
        )
    flags = {"data.skip_bad": asked.skip_bad or None, "sampling.batch_size": asked.batch_size}
    config = measured_recipe(artifact, asked.data, asked.settings, flags)
    common.check_code(config.reward.function, asked.allow_code)
    whole = config.student.tuning == "full"
    found = measure(artifact, config, place, mode=asked.mode, base=asked.base, precision=asked.precision)
    known = {name: value for name, value in found.payload().items() if not name.endswith("_kl")}
    for one in known.get("datasets", {}).values():
        for name in ("forward_kl", "reverse_kl"):
            one.pop(name)
    rate = found.n / found.seconds
    return {
        "artifact": str(artifact),
        "data": config.data.validation,
        "tuning": config.student.tuning,
        "mode": "whole" if whole else asked.mode,
        **known,
        "examples_per_second": rate,
    }


def evaluation_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The table of an evaluation."""
    from petkit.report.rounding import significant

    rates = [significant(result[name]) for name in ("examples_per_second", "tokens_per_second")]
    return [
        ("artifact", result["artifact"]),
        ("weights", f"{result['mode']}, computed in {result['dtype']}"),
        ("questions", str(result["data"])),
        *measured_rows("answers", result),
        ("rate", f"{rates[0]} answers/s, {rates[1]} tokens/s"),
    ]


def _is_adapter(artifact: Path) -> bool:
    """Whether the folder holds a language model's adapter; a broken one is none."""
    from petkit.artifacts.reader import read_manifest

    try:
        task = read_manifest(artifact).task
    except PetkitError:
        return False
    return task is not None and task.type == "causal_lm"


def _has_student(artifact: Path) -> bool:
    from petkit.methods.tropd.measuring import has_student

    return has_student(artifact)


def _holds_questions(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8") as lines:
            return any(_is_question(line) for line in islice(lines, LOOKED_AT))
    except (OSError, ValueError):
        return False


def _is_question(line: str) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "question" in row


def _is_distillation(file: Path) -> bool:
    from petkit.configuration.peeking import peek

    return peek("student", [file], environment={}) is not None
