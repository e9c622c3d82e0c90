"""`petkit distill cache`: responses to all prompts with what the teacher says of them, a shard at a time."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from petkit.artifacts import atomic_write
from petkit.errors import ConfigError
from petkit.methods.tropd.cache import (
    CachedBy,
    CachedDraws,
    CachedRow,
    CacheManifest,
    Writer,
    begin,
    check_folder,
    chunked,
    log_tail,
    pack_rows,
    shard_name,
    vocabulary_sha256,
    write_manifest,
)
from petkit.methods.tropd.config import DistillConfig, RolloutConfig
from petkit.methods.tropd.prompts import Prompt
from petkit.methods.tropd.recipe import Ready, prepare
from petkit.methods.tropd.step import Rollout
from petkit.methods.tropd.teachers import recordable
from petkit.rollout.sampling import Completion, sample
from petkit.training.context import RunContext
from petkit.training.seeds import derive

log = logging.getLogger(__name__)

# Prompts whose responses are in one file, and are lost together when the process is killed.
SHARD_PROMPTS = 64


def fill(
    config: DistillConfig, context: RunContext, folder: Path, writer: Writer, top_k: int | None
) -> dict[str, Any]:
    """Write responses to every prompt of a recipe, and what the teacher says of each of their tokens.

    Args:
        config: the recipe; its objective and training have no effect here but for the default of `top_k`.
        context: device and observers.
        folder: of the cache; one of the same settings is gone on with.
        writer: who writes the responses.
        top_k: the teacher's likeliest tokens to keep; None as many as the objective needs, or 64.

    Returns:
        JSON-ready values: numbers of responses and tokens.

    Raises:
        InputError: the folder holds something else than a cache.
        ConfigError: the folder is a cache of other settings, or the recipe's teacher is one itself.
        PetkitError: whatever else stops it; shards that are finished stay.
    """
    if config.teacher.cache:
        raise ConfigError("teacher.model or teacher.domains must name who is asked, got teacher.cache")
    check_folder(folder)
    # Nobody but the models here and the teacher writes.
    ready = prepare(config.model_copy(update={"rollout": RolloutConfig()}), context)
    vocab = ready.step.head.vocab
    if top_k is not None and vocab is not None and top_k > vocab:
        raise ConfigError(
            f"--top-k must be at most {vocab}, the tokens that student and teacher share, got {top_k}"
        )
    manifest = begin(folder, _manifest(config, ready, writer, top_k))
    prompts = list(enumerate(ready.train.prompts))
    shards = dict(manifest.shards)
    missing = [one for one in chunked(prompts, SHARD_PROMPTS) if shard_name(one[0]) not in shards]
    if not missing:
        log.info("%s is full: nobody is asked", folder)
    with context.stage("asking the teacher", sum(len(part) for _, part in missing)) as advance:
        for index, part in missing:
            content = pack_rows(_rows(config, ready, writer, manifest.top_k, part))
            atomic_write(folder / shard_name(index), content)
            shards[shard_name(index)] = hashlib.sha256(content).hexdigest()
            manifest = manifest.model_copy(update={"shards": shards})
            write_manifest(folder, manifest)
            advance(len(part))
    return {
        "status": "completed",
        "folder": str(folder),
        "teacher": manifest.teacher,
        "writer": writer,
        "top_k": manifest.top_k,
        "prompts": len(prompts),
        "responses": len(prompts) * config.samples,
        "bytes": sum((folder / name).stat().st_size for name in shards),
    }


def _manifest(config: DistillConfig, ready: Ready, writer: Writer, top_k: int | None) -> CacheManifest:
    return CacheManifest(
        schema_version=2,
        teachers={key: CachedBy(**facts) for key, facts in ready.teachers.facts().items()},
        writer=writer,
        student_sha256=ready.loaded.base_sha256 if writer == "student" else None,
        vocabulary_sha256=vocabulary_sha256(ready.loaded.tokenizer),
        prompts_sha256=ready.train.sha256,
        sampling=CachedDraws(**config.sampling.model_dump(exclude={"batch_size"})),
        top_k=top_k or config.objective.teacher_tokens or recordable(ready.step.head.vocab),
        samples=config.samples,
        seed=config.seed,
    )


@torch.no_grad()
def _rows(
    config: DistillConfig, ready: Ready, writer: Writer, top_k: int, part: Sequence[tuple[int, Prompt]]
) -> list[CachedRow]:
    asked = [(number, prompt, draw) for number, prompt in part for draw in range(config.samples)]
    seeds = [derive(config.seed, "cache", number, draw) for number, _, draw in asked]
    prompts = [prompt for _, prompt, _ in asked]
    completions = _written(config, ready, writer, prompts, seeds)
    size = config.sampling.batch_size
    rows: list[CachedRow] = []
    for start in range(0, len(asked), size):
        chosen = slice(start, start + size)
        rollout = Rollout(prompts[chosen], completions[chosen])
        sequences = ready.step.pack(rollout)
        datasets = [prompt.question.dataset for prompt in rollout.prompts]
        scores = ready.teachers.scores(sequences, datasets, top_k, config.sampling.temperature)
        assert scores.top_ids is not None
        assert scores.top_log_probs is not None
        entropy = torch.zeros_like(scores.log_probs) if scores.entropy is None else scores.entropy
        for place, one in enumerate(rollout.completions):
            kept = sequences.mask[place]
            top = scores.top_log_probs[place][kept].cpu()
            rows.append(
                CachedRow(
                    asked[start + place][0],
                    one.finished,
                    torch.tensor(one.prompt),
                    torch.tensor(one.tokens),
                    scores.log_probs[place][kept].cpu(),
                    entropy[place][kept].cpu(),
                    scores.top_ids[place][kept].cpu(),
                    top,
                    log_tail(top),
                )
            )
    return rows


def _written(
    config: DistillConfig, ready: Ready, writer: Writer, prompts: Sequence[Prompt], seeds: Sequence[int]
) -> list[Completion]:
    own = ready.step
    if writer == "student":
        return sample(
            ready.model,
            [prompt.ids for prompt in prompts],
            seeds,
            config.sampling,
            own.writer.padding,
            own.writer.stops,
            vocab=own.head.vocab,
            name=own.student,
        )
    found: dict[int, Completion] = {}
    for dataset in dict.fromkeys(prompt.question.dataset for prompt in prompts):
        rows = [row for row, prompt in enumerate(prompts) if prompt.question.dataset == dataset]
        teacher = ready.teachers.of(dataset)
        answers = teacher.write(
            [prompts[row].ids for row in rows],
            [seeds[row] for row in rows],
            config.sampling,
            own.writer.stops,
        )
        found |= zip(rows, answers, strict=True)
    return [found[row] for row in range(len(prompts))]
