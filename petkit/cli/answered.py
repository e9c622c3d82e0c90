"""Distilled language models on the command line: `petkit eval` lets them answer questions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from petkit.cli import common
from petkit.cli.distill import measured_rows
from petkit.errors import ConfigError, PetkitError

if TYPE_CHECKING:
    import torch

    from petkit.training.config import Precision

WHOLE = "distilled"
RECIPES = (".yaml", ".yml")
ROWS = ".jsonl"


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
    """Whether an artifact is a distilled language model that is to be measured on questions.

    Args:
        artifact: its folder.
        kind: what its `petkit.json` states.
        data: value of `--data`: adapters are also measured on the loss of conversations.
        split: the file of a folder that would be read.

    Returns:
        Whether it is.

    Raises:
        ConfigError: the data holds questions, but not as a file of them.
    """
    whole = kind == WHOLE
    if not (whole or _is_adapter(artifact)):
        return False
    if data is None or (Path(data).suffix == ROWS and not Path(data).is_dir()):
        return True
    if Path(data).is_dir():
        file = Path(data) / f"{split}{ROWS}"
        if whole or _holds_questions(file):
            raise ConfigError(
                f"--data takes a {ROWS} file of questions, got the folder {data}: --data {file}"
            )
    elif whole or (Path(data).suffix in RECIPES and _is_distillation(Path(data))):
        raise ConfigError(
            f"--data takes a {ROWS} file of questions, got {data}: pass the file that a recipe names as "
            "data.validation"
        )
    return False


def refuse(flags: Mapping[str, Any]) -> None:
    """Refuse flags that are given and have no effect on the reward.

    Args:
        flags: values by name; None where a flag was not given.

    Raises:
        ConfigError: names the flag.
    """

    def why(name: str) -> str:
        instead = ", or use --min-reward" if name.startswith(("--min", "--max")) else ""
        return f" on the reward of a distilled language model: leave it out{instead}"

    common.refuse_flags(flags, why)


def evaluate(artifact: Path, asked: Asked, place: torch.device) -> dict[str, Any]:
    """Measure the reward of a distilled language model.

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
    """Whether the folder holds a language model's adapter that was distilled; a broken one is none."""
    from petkit.artifacts.reader import read_config, read_manifest

    try:
        task = read_manifest(artifact).task
        return task is not None and task.type == "causal_lm" and "student" in read_config(artifact)
    except PetkitError:
        return False


def _holds_questions(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8") as lines:
            row = json.loads(next(lines, ""))
    except (OSError, ValueError):
        return False
    return isinstance(row, dict) and "question" in row


def _is_distillation(file: Path) -> bool:
    from petkit.configuration.peeking import peek

    return peek("student", [file], environment={}) is not None
