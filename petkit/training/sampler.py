"""Which examples each step sees: a function of the seed, the step and the process, with no state to save."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from petkit.errors import ConfigError
from petkit.training.config import TrainingConfig
from petkit.training.seeds import stream

# Batches among which examples are sorted by length: enough for little padding, few enough to stay mixed.
STRETCH = 50


@dataclass(frozen=True)
class BatchPlan:
    """The order of a run: epoch permutations cut into global batches, processes and micro-batches."""

    examples: int
    batch_size: int
    micro_batches: int
    processes: int
    epochs: int
    drop_last: bool
    seed: int
    lengths: tuple[int, ...] | None = None
    """Of the examples, where batches hold examples of like length."""

    @property
    def global_batch(self) -> int:
        """Examples per optimiser step over all processes."""
        return self.batch_size * self.processes

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one epoch."""
        full, rest = divmod(self.examples, self.global_batch)
        return full + (1 if rest and not self.drop_last else 0)

    @property
    def total_steps(self) -> int:
        """Optimiser steps in the run, without limits."""
        return self.steps_per_epoch * self.epochs

    def step_examples(self, step: int) -> int:
        """Count the examples of one step over all processes."""
        start = step % self.steps_per_epoch * self.global_batch
        return min(self.global_batch, self.examples - start)

    def _order(self, epoch: int) -> tuple[int, ...]:
        if self.lengths is None:
            return _permutation(self.seed, epoch, self.examples)
        return _by_length(self.seed, epoch, self.lengths, self.global_batch)

    def step_indices(self, step: int, rank: int) -> list[list[int]]:
        """List the micro-batches of one step on one process.

        Args:
            step: optimiser step, 0 first.
            rank: process number.

        Returns:
            Lists of example indices, none of them empty; no list at all when a short last batch leaves this
            process without examples. Processes side by side hold what one process with their joint batch
            size would hold.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)
        start = position * self.global_batch
        stop = min(start + self.global_batch, self.examples)
        mine = order[
            min(start + rank * self.batch_size, stop) : min(start + (rank + 1) * self.batch_size, stop)
        ]
        size = -(-self.batch_size // self.micro_batches)
        return [list(mine[at : at + size]) for at in range(0, len(mine), size)]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, examples: int) -> tuple[int, ...]:
    order: list[int] = torch.randperm(examples, generator=stream(seed, "data", epoch)).tolist()
    return tuple(order)


@lru_cache(maxsize=2)
def _by_length(seed: int, epoch: int, lengths: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """A permutation whose batches are sorted by length within stretches of some batches.

    Batches stand in random order; a short last batch stays the last.
    """
    order = _permutation(seed, epoch, len(lengths))
    shuffle = stream(seed, "data", "batches", epoch)
    found: list[int] = []
    for start in range(0, len(order), batch * STRETCH):
        stretch = sorted(order[start : start + batch * STRETCH], key=lambda row: lengths[row])
        full = len(stretch) // batch
        for place in torch.randperm(full, generator=shuffle).tolist():
            found += stretch[place * batch : (place + 1) * batch]
        found += stretch[full * batch :]
    return tuple(found)


class MicroBatches:
    """Every micro-batch of a run from one step on: the `batch_sampler` of a DataLoader."""

    def __init__(self, plan: BatchPlan, rank: int, first_step: int, last_step: int) -> None:
        self.plan = plan
        self.rank = rank
        self.steps = range(first_step, last_step)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield from self.plan.step_indices(step, self.rank)


def plan_batches(
    config: TrainingConfig,
    examples: int,
    seed: int,
    processes: int = 1,
    lengths: Sequence[int] | None = None,
) -> BatchPlan:
    """Plan the batches of a run.

    Args:
        config: the `training:` section.
        examples: length of the training split.
        seed: root seed; the order uses its stream `data`.
        processes: number of processes that share a step.
        lengths: of the examples, for batches of like lengths.

    Returns:
        The plan.

    Raises:
        ConfigError: no full batch fits into the split.
    """
    plan = BatchPlan(
        examples,
        config.batch_size,
        config.gradient_accumulation,
        processes,
        config.epochs,
        config.drop_last,
        seed,
        None if lengths is None else tuple(lengths),
    )
    if plan.steps_per_epoch == 0:
        raise ConfigError(
            f"training.batch_size x processes must be at most the {examples} training examples while "
            f"training.drop_last is true, got {config.batch_size} x {processes}: lower batch_size or set "
            "drop_last false"
        )
    return plan
