"""`petkit train tagger`: from a recipe to an artifact. Start reading at `run`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from petkit.artifacts import (
    Base,
    Check,
    atomic_write,
    staged_in_run,
    step,
    write_checks,
    write_json,
)
from petkit.artifacts.model_folder import VOCABULARY
from petkit.artifacts.tagger import TaggerManifest, write_tagger
from petkit.configuration.effects import effective
from petkit.methods.crf_tagger.card import tagger_card
from petkit.methods.crf_tagger.config import TaggerConfig
from petkit.methods.crf_tagger.evaluation import TaggerEvaluation, evaluate_tagger, tagging_step
from petkit.methods.crf_tagger.inputs import TaggedSentences, Vocabulary, warn_of_divided
from petkit.methods.crf_tagger.model import Tagger
from petkit.methods.crf_tagger.splits import Splits, load_splits
from petkit.methods.crf_tagger.stored import Assembled, assemble, load_tagger, tensors_of
from petkit.nn import CRF
from petkit.training.checkpoint import check_drift, lasting_settings
from petkit.training.context import RunContext
from petkit.training.evaluate import to_device
from petkit.training.fit import Fitted, fit
from petkit.training.optim import trainable_parameters
from petkit.training.outcome import RELATIVE_TOLERANCE, compare_logits, size_ledger
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

COMMAND = "train tagger"
CHECKED_EXAMPLES = 32


def run(config: TaggerConfig, context: RunContext) -> dict[str, Any] | None:
    """Train a tagger, write its artifact, load that again and measure it.

    Args:
        config: the validated recipe.
        context: folder, device, processes.

    Returns:
        The content of result.json; None on processes other than the first.

    Raises:
        GateError: the reloaded artifact does not tag like the trained model.
        PetkitError: whatever else stops the run, by kind.

    Source:
        Huang, Xu and Yu 2015 (arXiv 1508.01991) and Lample et al. 2016 (arXiv 1603.01360) for the BiLSTM with
        a CRF; Devlin et al. 2019 (arXiv 1810.04805), section 5.3, for tags at the first piece of a word.
    """
    ready = prepare(config, context)
    with claim_folder(context) as directory:
        fitted = fit(
            ready.model,
            tagging_step,
            ready.train,
            config.training,
            context,
            seed=config.seed,
            identity=_identity(config, ready, context),
            validate=_validation_of(config, ready, context),
        )
        if directory is None:
            return None
        packed, dense = tensors_of(ready.model, config)
        manifest = _describe(config, ready)
        with staged_in_run(directory) as folder:
            write_tagger(folder, manifest, packed, dense, _files(config, ready, fitted))
            reloaded = load_tagger(folder, context.device).model
            checks = _same_behaviour(ready, reloaded, context.device)
            write_checks(folder, checks)
            log.info("evaluating the reloaded artifact on the test split")
            evaluation = _evaluate(config, ready, reloaded, ready.test, context)
            sizes = size_ledger(packed, dense, ready.full_model_bytes)
            result = _summary(config, context, fitted, evaluation, checks) | {"bytes": sizes}
            atomic_write(folder / "README.md", tagger_card(manifest, config, result).encode())
            write_json(folder / "result.json", result)
    raise_failed(checks, context)
    return result


def plan(config: TaggerConfig, context: RunContext) -> dict[str, Any]:
    """Do everything that a run does before its first step, and say what would follow.

    Args:
        config: the validated recipe.
        context: folder, device, processes.

    Returns:
        JSON-ready values: model, data, sizes, steps.

    Raises:
        PetkitError: what would stop the run, too.
    """
    ready = prepare(config, context)
    base = ready.assembled.base
    parts = {"train": ready.train, "validation": ready.validation, "test": ready.test}
    return {
        "status": "plan",
        "output": str(context.folder),
        "device": str(context.device),
        "processes": context.world.size,
        "task": "tagging",
        "model": {"id": config.model.encoder, "sha256": None if base is None else base.base_sha256},
        "sentences": {name: None if part is None else len(part) for name, part in parts.items()},
        "labels": list(ready.splits.labels),
        "adapters": [site.name for site in ready.assembled.sites],
        "trainable_parameters": sum(p.numel() for p in trainable_parameters(ready.model).values()),
        "bytes": size_ledger(*tensors_of(ready.model, config), ready.full_model_bytes),
        "steps": planned_steps(config.training, len(ready.train), config.seed, context.world.size),
    }


@dataclass(frozen=True)
class Ready:
    """A tagger and its sentences, before the first step."""

    assembled: Assembled
    splits: Splits
    vocabulary: Vocabulary | None
    train: TaggedSentences
    validation: TaggedSentences | None
    test: TaggedSentences

    @property
    def model(self) -> Tagger:
        """The tagger."""
        return self.assembled.model

    @property
    def full_model_bytes(self) -> int:
        """Float32 bytes of all weights, those of a frozen encoder included."""
        return 4 * sum(parameter.numel() for parameter in self.model.parameters())


def prepare(config: TaggerConfig, context: RunContext) -> Ready:
    """Read and check the sentences, put the tagger together, and see that it can be trained.

    Args:
        config: the validated recipe.
        context: device and processes.

    Returns:
        All of it; the model is on the device.

    Raises:
        PetkitError: sentences or encoder cannot be used, by kind.
    """
    # Before an encoder is fetched, for minutes perhaps, in vain.
    splits = load_splits(config)
    vocabulary = None
    if not config.is_pretrained:
        words = [sentence.words for sentence in splits.train]
        vocabulary = Vocabulary.of(words, config.model.min_count, config.model.character_size > 0)
    assembled = assemble(config, splits.labels, vocabulary)
    parts = [
        TaggedSentences(part, splits.labels, assembled.reader)
        for part in (splits.train, splits.validation or [], splits.test)
    ]
    ready = Ready(assembled, splits, vocabulary, parts[0], parts[1] if splits.validation else None, parts[2])
    plan_batches(config.training, len(ready.train), config.seed, context.world.size)
    trainable_parameters(ready.model)
    ready.model.to(context.device)
    _report(ready)
    if context.resume is not None:
        check_drift(context.resume, _identity(config, ready, context))
    return ready


def _report(ready: Ready) -> None:
    log.info("%d labels: %s", len(ready.splits.labels), ", ".join(ready.splits.labels[:12]))
    if ready.assembled.sites:
        log.info("adapters at %d modules", len(ready.assembled.sites))
    splits = ready.splits
    for name, part in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        warn_of_divided(name, [sentence.words for sentence in part or ()], ready.assembled.reader)


def _validation_of(
    config: TaggerConfig, ready: Ready, context: RunContext
) -> Callable[[], TaggerEvaluation] | None:
    validation = ready.validation
    if validation is None:
        return None
    return lambda: _evaluate(config, ready, ready.model, validation, context)


def _evaluate(
    config: TaggerConfig, ready: Ready, model: Tagger, split: TaggedSentences, context: RunContext
) -> TaggerEvaluation:
    """Evaluate with the recipe's batch size, in the precision of its training while it trains."""
    return evaluate_tagger(
        model,
        split,
        ready.splits.labels,
        config.data.scheme,
        batch_size=config.training.batch_size,
        device=context.device,
        precision=config.training.precision if model is ready.model else "fp32",
    )


def _same_behaviour(ready: Ready, reloaded: Tagger, device: torch.device) -> list[Check]:
    """Compare emissions and tags of the trained model and its reloaded artifact on training sentences."""
    items = [ready.train[index] for index in range(min(CHECKED_EXAMPLES, len(ready.train)))]
    batch = to_device(ready.train.collate(items), device)
    with torch.no_grad():
        emissions = [model.eval()(batch) for model in (ready.model, reloaded)]
    checks = [compare_logits(*(scores[batch["mask"]] for scores in emissions))]
    if ready.model.crf is not None and reloaded.crf is not None:
        crfs = (ready.model.crf, reloaded.crf)
        checks.append(_same_paths(crfs, emissions, batch["mask"]))
    return checks


@torch.no_grad()
def _same_paths(crfs: tuple[CRF, CRF], emissions: Sequence[Tensor], mask: Tensor) -> Check:
    """Compare the tags that two CRFs choose; others are forgiven where they are as likely within rounding."""
    pairs = zip(crfs, emissions, strict=True)
    ours, theirs = (crf.decode(scores, mask, as_tensor=True) for crf, scores in pairs)
    likelihoods = [crfs[0](emissions[0], path.clamp(min=0), mask, "none") for path in (ours, theirs)]
    lost = float((likelihoods[0] - likelihoods[1]).max())
    allowed = RELATIVE_TOLERANCE * max(1.0, float(emissions[0].abs().max()))
    differing = int((ours != theirs).any(1).sum())
    found = f"{differing} of {len(ours)} sentences get other tags"
    detail = f"{found}, {lost:.3g} nats less likely, {allowed:.3g} allowed"
    return Check("reloaded artifact gives the same tags", differing == 0 or lost <= allowed, detail)


def _identity(config: TaggerConfig, ready: Ready, context: RunContext) -> dict[str, Any]:
    """List the settings that a resumed run must share with the run it goes on from."""
    base = ready.assembled.base
    found = {
        "model.sha256": None if base is None else base.base_sha256,
        "data.training_examples": len(ready.train),
        "data.sha256": ready.splits.sha256(),
        "processes": context.world.size,
    }
    return lasting_settings(config) | found


def _describe(config: TaggerConfig, ready: Ready) -> TaggerManifest:
    """Write down what the artifact is."""
    base, own = ready.assembled.base, effective(config)
    inputs = {"sentences": ready.splits.sha256()} | ({"base": base.base_sha256} if base else {})
    return TaggerManifest(
        base=Base(id=base.base_id, revision=base.revision, sha256=base.base_sha256) if base else None,
        lineage=(step(COMMAND, own, inputs),),
        labels=ready.splits.labels,
        tagger=own,
    )


def _files(config: TaggerConfig, ready: Ready, fitted: Fitted) -> dict[str, bytes]:
    """The vocabulary, and the run's history in the shape of trainer_state.json."""
    files = {HISTORY: history_file(config.training, fitted)}
    if ready.vocabulary is not None:
        files[VOCABULARY] = ready.vocabulary.to_json()
    return files


def _summary(
    config: TaggerConfig,
    context: RunContext,
    fitted: Fitted,
    evaluation: TaggerEvaluation,
    checks: list[Check],
) -> dict[str, Any]:
    """Sum a run up for result.json."""
    measured = evaluation.payload()
    rate = {"train": fitted.examples_per_second, "eval": measured.pop("examples_per_second")}
    return {
        **run_facts(context, config.seed, fitted, checks),
        "task": "tagging",
        "split": "test",
        "evaluated": "artifact, reloaded",
        **measured,
        "examples_per_second": rate,
    }
