"""`petkit train nat`: from a recipe to an artifact. Start reading at `run`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from petkit.artifacts import Check, atomic_write, staged_in_run, step, write_checks, write_json
from petkit.artifacts.model_folder import VOCABULARY
from petkit.artifacts.translator import TranslatorManifest, write_translator
from petkit.configuration.effects import effective
from petkit.data.parallel import SentencePair
from petkit.data.subwords import Subwords, train_subwords
from petkit.errors import ConfigError
from petkit.methods.nart_crf.card import translator_card
from petkit.methods.nart_crf.config import VOCABULARY_SIZE, TranslatorConfig
from petkit.methods.nart_crf.decoding import Translator
from petkit.methods.nart_crf.distillation import DistilledFile, distil
from petkit.methods.nart_crf.evaluation import (
    TranslationEvaluation,
    check_sacrebleu,
    evaluate_translator,
)
from petkit.methods.nart_crf.inputs import PairDataset, short_enough
from petkit.methods.nart_crf.model import Nart, Teacher, training_step
from petkit.methods.nart_crf.splits import Splits, load_splits, pairs_sha256, told
from petkit.methods.nart_crf.stored import (
    Stored,
    assemble,
    load_teacher,
    load_translator,
    rescorer_of,
    start_from,
    tensors_of,
    translator_of,
    vocabulary_sha256,
)
from petkit.training.checkpoint import check_drift, lasting_settings
from petkit.training.context import RunContext
from petkit.training.evaluate import to_device
from petkit.training.fit import Fitted, fit
from petkit.training.optim import trainable_parameters
from petkit.training.outcome import compare_logits
from petkit.training.run import (
    HISTORY,
    claim_folder,
    history_file,
    planned_steps,
    raise_failed,
    run_facts,
)
from petkit.training.sampler import plan_batches

log = logging.getLogger(__name__)

COMMAND = "train nat"
CHECKED_EXAMPLES = 32


def run(config: TranslatorConfig, context: RunContext) -> dict[str, Any] | None:
    """Train a translator, write its artifact, load that again and measure it.

    Args:
        config: the validated recipe.
        context: folder, device, processes.

    Returns:
        The content of result.json; None on processes other than the first.

    Raises:
        GateError: the reloaded artifact does not score like the trained model.
        PetkitError: whatever else stops the run, by kind.

    Source:
        Sun, Li, Wang, He, Lin and Deng. Fast structured decoding for sequence models. NeurIPS 2019,
        arXiv:1910.11555.
    """
    ready = prepare(config, context)
    with claim_folder(context) as directory:
        train = _training_pairs(ready, context)
        fitted = fit(
            ready.model,
            training_step,
            PairDataset(train, ready.vocabulary),
            ready.config.training,
            context,
            seed=config.seed,
            identity=_identity(ready, context),
            validate=_validation_of(ready, context),
        )
        if directory is None:
            return None
        manifest = _describe(ready, train)
        with staged_in_run(directory) as folder:
            files = {VOCABULARY: ready.vocabulary.to_json(), HISTORY: history_file(config.training, fitted)}
            write_translator(folder, manifest, tensors_of(ready.model), files)
            reloaded = load_translator(folder, context.device)
            checks = [_same_behaviour(ready, reloaded, train, context)]
            write_checks(folder, checks)
            log.info("translating the test split with the reloaded artifact")
            evaluation = _evaluate(ready, translator_of(reloaded, device=context.device), ready.splits.test)
            result = _summary(ready, context, fitted, evaluation, checks)
            atomic_write(folder / "README.md", translator_card(manifest, ready.config, result).encode())
            write_json(folder / "result.json", result)
    raise_failed(checks, context)
    return result


def plan(config: TranslatorConfig, context: RunContext) -> dict[str, Any]:
    """Do everything that a run does before its teacher's first translation, and say what would follow.

    Args:
        config: the validated recipe.
        context: folder, device, processes.

    Returns:
        JSON-ready values: model, data, sizes, steps.

    Raises:
        PetkitError: what would stop the run, too.
    """
    ready = prepare(config, context)
    splits, own = ready.splits, ready.config
    to_translate = 0 if ready.distilled is None else len(ready.distilled.missing(_sources(ready.train)))
    # Translations that are too long are left out, which is known as soon as all are there.
    train = ready.train if to_translate else _training_pairs(ready, context)
    parts = {"train": train, "validation": splits.validation, "test": splits.test}
    return {
        "status": "plan",
        "output": str(context.folder),
        "device": str(context.device),
        "processes": context.world.size,
        "task": "translation",
        "model": {"kind": own.model.kind, "vocabulary": len(ready.vocabulary), "offset": own.lengths.offset},
        "start": own.start,
        "teacher": own.teacher.model if own.distills else None,
        "sentences_to_distil": to_translate,
        "sentences": {name: None if part is None else len(part) for name, part in parts.items()},
        "trainable_parameters": sum(p.numel() for p in trainable_parameters(ready.model).values()),
        "bytes": _bytes(ready.model),
        "steps": planned_steps(own.training, len(train), own.seed, context.world.size),
    }


@dataclass(frozen=True)
class Ready:
    """A model and its sentences, before its teacher's first translation."""

    config: TranslatorConfig
    """The recipe, with the length offset that it left open."""

    splits: Splits
    train: list[SentencePair]
    """The training pairs that are short enough, with the data's own targets."""

    vocabulary: Subwords
    model: Nart | Teacher
    teacher: Stored | None
    start: Stored | None
    distilled: DistilledFile | None
    rescorer: Teacher | None


def prepare(config: TranslatorConfig, context: RunContext) -> Ready:
    """Read and check the sentences, put the model together, and see that it can be trained.

    Args:
        config: the validated recipe.
        context: device and processes.

    Returns:
        All of it; the model is on the device.

    Raises:
        PetkitError: sentences, teacher or start cannot be used, by kind.
    """
    check_sacrebleu()
    splits = load_splits(config)
    start = None if config.start is None else load_translator(Path(config.start))
    teacher = _teacher(config, context, start)
    vocabulary = _vocabulary(config, splits, teacher, start)
    train = short_enough(splits.train, vocabulary, config.data.max_length)
    config = _with_offset(config, train, vocabulary)
    plan_batches(config.training, len(train), config.seed, context.world.size)
    for name, part in (("validation", splits.validation), ("test", splits.test)):
        # What is measured is never left out, and is measured after hours of training.
        if part is not None:
            dataset = PairDataset(part, vocabulary)
            dataset.check_positions(config.model.max_positions, f" of {told(config.data, name)}")
    model = assemble(config, vocabulary)
    _begin(model, start, config)
    distilled = _distilled(config, teacher, train, context)
    rescorer = rescorer_of(config.decode, Translator(model, vocabulary, config.decode), context.device)
    model.to(context.device)
    ready = Ready(config, splits, train, vocabulary, model, teacher, start, distilled, rescorer)
    if context.resume is not None:
        check_drift(context.resume, _identity(ready, context))
    return ready


def _teacher(config: TranslatorConfig, context: RunContext, start: Stored | None) -> Stored | None:
    if config.is_teacher or config.teacher.model is None:
        return None
    vocabulary = None if start is None else start.vocabulary
    return load_teacher(Path(config.teacher.model), context.device, vocabulary, "teacher.model")


def _vocabulary(
    config: TranslatorConfig, splits: Splits, teacher: Stored | None, start: Stored | None
) -> Subwords:
    size, given = config.vocabulary.size, teacher or start
    if given is None:
        texts = (text for pair in splits.train for text in (pair.source, pair.target))
        return train_subwords(texts, size or VOCABULARY_SIZE)
    found = len(given.vocabulary)
    if size not in (None, found):
        raise ConfigError(
            f"vocabulary.size must be {found}, that of {given.folder}, got {size}: leave it out"
        )
    return given.vocabulary


def _with_offset(
    config: TranslatorConfig, train: Sequence[SentencePair], vocabulary: Subwords
) -> TranslatorConfig:
    """The recipe with the mean difference in length, where it asks for an offset and gives none."""
    lengths = config.lengths
    if config.is_teacher or lengths.kind != "offset" or lengths.offset is not None:
        return config
    items = PairDataset(train, vocabulary).items
    offset = round(sum(len(target) - len(source) for source, target in items) / len(items))
    log.info("lengths.offset is %d subwords, the mean of the training pairs", offset)
    return config.model_copy(update={"lengths": lengths.model_copy(update={"offset": offset})})


def _begin(model: Nart | Teacher, start: Stored | None, config: TranslatorConfig) -> None:
    if start is not None:
        new = start_from(model, start, config)
        log.info(
            "%s gives the weights, %d of %d tensors are new", start.folder, len(new), len(tensors_of(model))
        )
    elif isinstance(model, Nart) and model.crf is not None:
        log.warning(
            "a CRF learns slowly beside a decoder that begins at random, whose candidates are: train with "
            "model.kind=nart first and name its folder with start"
        )


def _distilled(
    config: TranslatorConfig, teacher: Stored | None, train: Sequence[SentencePair], context: RunContext
) -> DistilledFile | None:
    if teacher is None or not config.distills:
        return None
    found = DistilledFile(Path(config.distilled_file), teacher.tensors_sha256, config.teacher.beam)
    missing = found.missing(_sources(train))
    if missing and context.world.size > 1:
        raise ConfigError(
            f"{found.path} lacks {len(missing)} translations of the teacher, and several processes must not "
            "write it at once: run once with one process and training.max_steps=1"
        )
    return found


def _training_pairs(ready: Ready, context: RunContext) -> list[SentencePair]:
    """The pairs to learn from: the data's own, or those that the teacher translated."""
    if ready.distilled is None or ready.teacher is None:
        return ready.train
    config = ready.config
    missing = ready.distilled.missing(_sources(ready.train))
    decode = ready.teacher.config.decode.model_copy(update={"beam": config.teacher.beam})
    teacher = Translator(ready.teacher.model, ready.vocabulary, decode)
    with context.stage("distilling", len(missing)) as advance:
        made = distil(ready.train, teacher, ready.distilled, config.training.batch_size, advance)
    return short_enough(made, ready.vocabulary, config.data.max_length, str(ready.distilled.path))


def _sources(pairs: Sequence[SentencePair]) -> list[str]:
    return [pair.source for pair in pairs]


def _validation_of(ready: Ready, context: RunContext) -> Callable[[], TranslationEvaluation] | None:
    validation = ready.splits.validation
    if validation is None:
        return None
    translator = Translator(ready.model, ready.vocabulary, ready.config.decode, ready.rescorer)
    return lambda: _evaluate(ready, translator, validation, resamples=0)


def _evaluate(
    ready: Ready, translator: Translator, pairs: Sequence[SentencePair], resamples: int = 1000
) -> TranslationEvaluation:
    """Evaluate with the recipe's batch size, in the precision of its training while it trains."""
    training = ready.config.training
    return evaluate_translator(
        translator,
        pairs,
        batch_size=training.batch_size,
        precision=training.precision if translator.model is ready.model else "fp32",
        resamples=resamples,
    )


@torch.no_grad()
def _same_behaviour(
    ready: Ready, reloaded: Stored, train: Sequence[SentencePair], context: RunContext
) -> Check:
    """Compare the scores of the trained model and of its reloaded artifact on training sentences."""
    dataset = PairDataset(train[:CHECKED_EXAMPLES], ready.vocabulary)
    batch = to_device(dataset.collate(dataset.items), context.device)
    mask = batch["target_mask"]
    return compare_logits(*(model.eval()(batch)[mask] for model in (ready.model, reloaded.model)))


def _identity(ready: Ready, context: RunContext) -> dict[str, Any]:
    """List the settings that a resumed run must share with the run it goes on from."""
    found = {
        "data.training_examples": len(ready.train),
        "data.sha256": pairs_sha256(ready.train),
        "vocabulary.sha256": vocabulary_sha256(ready.vocabulary),
        "teacher.sha256": None if ready.teacher is None else ready.teacher.tensors_sha256,
        "start.sha256": None if ready.start is None else ready.start.tensors_sha256,
        "processes": context.world.size,
    }
    return lasting_settings(ready.config) | found


def _describe(ready: Ready, train: Sequence[SentencePair]) -> TranslatorManifest:
    """Write down what the artifact is."""
    own = effective(ready.config)
    inputs = {"pairs": pairs_sha256(train)}
    for name, stored in (("teacher", ready.teacher), ("start", ready.start)):
        if stored is not None:
            inputs[name] = stored.tensors_sha256
    return TranslatorManifest(
        lineage=(step(COMMAND, own, inputs),),
        translator=own,
        vocabulary_sha256=vocabulary_sha256(ready.vocabulary),
    )


def _bytes(model: Nart | Teacher) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(model).values())


def _summary(
    ready: Ready,
    context: RunContext,
    fitted: Fitted,
    evaluation: TranslationEvaluation,
    checks: list[Check],
) -> dict[str, Any]:
    """Sum a run up for result.json."""
    measured = evaluation.payload()
    rate = {"train": fitted.examples_per_second, "eval": measured.pop("examples_per_second")}
    return {
        **run_facts(context, ready.config.seed, fitted, checks),
        "task": "translation",
        "kind": ready.config.model.kind,
        "split": "test",
        "evaluated": "artifact, reloaded",
        **measured,
        "examples_per_second": rate,
        "vocabulary": len(ready.vocabulary),
        "bytes": _bytes(ready.model),
    }
