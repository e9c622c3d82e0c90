"""A student whose responses a server writes, which is given the student's weights as they change."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from petkit.methods.tropd.config import DistillConfig
from petkit.rollout.endpoint import api_key, parse_endpoint
from petkit.rollout.remote_sampling import RemoteSampler
from petkit.rollout.sampling import Completion
from petkit.rollout.scoring import Sequences
from petkit.rollout.weight_updates import RemoteWeights
from petkit.training.distributed import World
from petkit.training.sharding import Placement

log = logging.getLogger(__name__)

Ids = Sequence[int]
Write = Callable[[nn.Module, Path], None]


class ServedStudent:
    """Draws from the server, and keeps it up to date.

    Args:
        config: the recipe, with `rollout.model`.
        folder: where the server finds the weights.
        vocab: how many ids the student has.
        ends: ids that end a text.
        context: tokens that the student can hold.
        world: the first process writes and asks for all.
        write: writes the weights of a model into a folder, in the form that the server loads.

    Raises:
        ConfigError: the server cannot be given weights while it serves.
        ServerGone: it does not answer.
    """

    def __init__(
        self,
        config: DistillConfig,
        folder: Path,
        vocab: int,
        ends: Sequence[int],
        context: int | None,
        world: World,
        write: Write,
    ) -> None:
        own = config.rollout
        assert own.model is not None
        self.config, self._settings = own, config.sampling
        endpoint, section = parse_endpoint(own.model), "rollout.served"
        self._sampler = RemoteSampler(
            endpoint, own.served, vocab, ends, context, key=api_key(), section=section
        )
        self._folder, self._world, self._write = folder, world, write
        self._remote: RemoteWeights | None = None
        self._is_up_to_date = False
        if own.stale:
            log.warning(
                "rollout.stale: the server keeps its weights, and draws from another policy than the "
                "student's, more so with every step; server_drift in metrics.jsonl tells by how much"
            )
            return
        weights = config.student.tuning
        self._remote = RemoteWeights(endpoint, own.served, weights, key=api_key(), section=section)
        self._remote.probe()

    def begin(self, step: int, model: nn.Module, placement: Placement) -> None:
        """Give the server the student's weights, where it is time to; every process takes part.

        Args:
            step: that comes.
            model: the student.
            placement: of its weights.
        """
        if self._remote is None or (self._is_up_to_date and step % self.config.refresh_steps):
            return
        device = next(model.parameters()).device
        with placement.whole(model) as whole, self._world.together(device):
            if self._world.is_main:
                self._write(whole, self._folder)
                self._remote.load(self._folder)
        self._is_up_to_date = True

    def finished(self) -> None:
        """Remove the weights that were written beside the run's own folder, where nobody chose another."""
        if self._world.is_main and self._remote is not None and self.config.folder is None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def draw(
        self, prompts: Sequence[Ids], seeds: Sequence[int], prefixes: Sequence[Ids] | None
    ) -> list[Completion]:
        """Completions, with the server's log-probabilities of their tokens."""
        return self._sampler.sample(prompts, seeds, self._settings, prefixes, log_probs=True)


def sampled_log_probs(completions: Sequence[Completion], sequences: Sequences) -> Tensor | None:
    """What servers said of the tokens that they drew.

    Args:
        completions: of the batch.
        sequences: made of them.

    Returns:
        float32 (batch, tokens) in nats, 0 where nothing was drawn; None where no server drew.
    """
    if not any(one.log_probs for one in completions):
        return None
    found = torch.zeros(sequences.mask.shape)
    for row, one in enumerate(completions):
        found[row, one.prefix : len(one.tokens)] = torch.tensor(one.log_probs)
    return found.to(sequences.mask.device)
