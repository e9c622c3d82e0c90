"""A language model, distilled or not, measured: the reward of its answers to questions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from petkit.artifacts.reader import CONFIG, read_config
from petkit.artifacts.whole_model import check_files, check_weights, is_whole, read_whole
from petkit.configuration import messages, resolve
from petkit.configuration.sections import leaves
from petkit.errors import ConfigError, PetkitError
from petkit.methods.tropd.config import DistillConfig
from petkit.methods.tropd.evaluation import RewardEvaluation, evaluate_student
from petkit.methods.tropd.judging import judge_of
from petkit.methods.tropd.prompts import load_prompts
from petkit.methods.tropd.recipe import writer_of
from petkit.methods.tropd.step import DistillationStep
from petkit.methods.tropd.teachers import Teachers, known_tokens, vocabulary_size
from petkit.models.config import ModelConfig
from petkit.models.loading import load_adapted, load_model
from petkit.rollout.sampler import end_tokens
from petkit.rollout.sampling import context_length
from petkit.rollout.scoring import Head
from petkit.training.config import Precision
from petkit.training.evaluate import autocast

# The keys of a recipe that greedy answers and their reward depend on.
SETTABLE = (
    "data.validation_size",
    "data.chat_template",
    "data.system",
    "data.suffix",
    "sampling.max_new_tokens",
    "sampling.stop",
    "sampling.batch_size",
    "reward.function",
    "reward.timeout",
)
SIZE = "data.validation_size"


def measured_recipe(
    folder: Path, questions: str | None, settings: Sequence[str], flags: Mapping[str, Any]
) -> DistillConfig:
    """The recipe that a student is measured by: its own, with other questions or settings where asked.

    What was merged, or learnt in another way, has no recipe of a student: it is asked by the defaults.

    Args:
        folder: of the artifact, of an adapter or a whole model.
        questions: JSONL file of questions with answers; None takes the recipe's own validation.
        settings: values of `--set`.
        flags: dotted key to value of a named flag; None where it was not given.

    Returns:
        The recipe; `data.validation` names the questions.

    Raises:
        ArtifactError: the artifact has no recipe.
        ConfigError: no questions are known, or a key has no effect or cannot be had.
    """
    keys = [text.partition("=")[0].strip() for text in settings]
    _check_settable(keys)
    given = {"data.validation": questions, **flags}
    if questions is not None and not has_student(folder):
        return resolve(DistillConfig, [], settings, {**_nobodys(folder, questions), **given}).config
    data = read_config(folder).get("data")
    recorded = data.get("validation") if isinstance(data, Mapping) else None
    if questions is None and recorded is None:
        raise ConfigError(
            f"{folder} does not record questions with answers (data.validation): pass --data FILE.jsonl"
        )
    if questions is None and not Path(str(recorded)).is_file():
        raise ConfigError(
            f"{folder} records its questions as {recorded}, and there is no such file: pass --data FILE.jsonl"
        )
    config = resolve(DistillConfig, [folder / CONFIG], settings, given).config
    if questions is None or SIZE in keys:
        return config
    # How many of its own questions the run took says nothing of others.
    every = config.data.model_copy(update={"validation_size": None})
    return config.model_copy(update={"data": every})


def has_student(folder: Path) -> bool:
    """Whether an artifact's recipe says how its student is asked; a broken one says nothing."""
    try:
        return "student" in read_config(folder)
    except PetkitError:
        return False


def _nobodys(folder: Path, questions: str) -> dict[str, str]:
    """What a recipe must hold and an evaluation does not look at, and whether the model is whole."""
    tuning = "full" if is_whole(folder) else "adapter"
    names = dict.fromkeys(("output", "student.model.name", "teacher.model"), str(folder))
    return {**names, "student.tuning": tuning, "data.train": questions}


def _check_settable(keys: Sequence[str]) -> None:
    known = {messages.dotted(path) for path, _, _ in leaves(DistillConfig)}
    for key in keys:
        if key in SETTABLE:
            continue
        near = None if key in known else messages.nearest(key, SETTABLE)
        hint = f"; did you mean {near}?" if near else f": it takes {', '.join(SETTABLE)}"
        raise ConfigError(f"--set {key} has no effect on the reward of greedy answers{hint}")


def measure(
    folder: Path,
    config: DistillConfig,
    device: torch.device,
    *,
    mode: Literal["packed", "dense"] = "packed",
    base: str | None = None,
    precision: Precision = "fp32",
) -> RewardEvaluation:
    """Let a language model answer questions greedily.

    Args:
        folder: of the artifact.
        config: as `measured_recipe` gives it.
        device: where the student computes.
        mode: of adapters: from the packed bits, or from dequantised weights.
        base: of adapters: the student before in another place.
        precision: of the forward passes.

    Returns:
        The evaluation, without divergences, for which the teachers would be needed.

    Raises:
        PetkitError: artifact, base or questions cannot be used, by kind.
    """
    if config.student.tuning == "full":
        model, tokenizer = _whole(folder)
    else:
        adapted = load_adapted(folder, device, mode, base)
        model, tokenizer = adapted.model, adapted.tokenizer
    model.eval().to(device)
    assert config.data.validation is not None
    longest = (context_length(model) or sys.maxsize) - 1
    size = config.data.validation_size
    labelled = config.reward.function is None
    prompts = load_prompts(config.data.validation, size, config.data, tokenizer, longest, labelled)
    # Rows that fill a table up stand for nothing.
    vocab = min(vocabulary_size(model), known_tokens(tokenizer))
    writer, ends = writer_of(config, tokenizer), end_tokens(model)
    step = DistillationStep(config, Head(model, vocab), Teachers({}), writer, 1, ends, None, judge_of(config))
    with autocast(device, precision):
        return evaluate_student(step, prompts)


def _whole(folder: Path) -> tuple[nn.Module, Any]:
    """A model all of whose weights have learnt, or were merged, with its tokenizer."""
    manifest = read_whole(folder)
    check_files(folder, manifest)
    check_weights(folder, manifest)
    loaded = load_model(ModelConfig(name=str(folder)), "causal_lm")
    return loaded.model, loaded.tokenizer
