"""One thread that decodes many conversations in batches, and tells each its tokens as they come."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from petkit.errors import PetkitError
from petkit.ops import token_statistics
from petkit.rollout.sampler import end_tokens, left_padded
from petkit.serving.chat.sampling import Sampling, draw

log = logging.getLogger(__name__)

WAIT = 0.005
JOIN_SECONDS = 30.0


@dataclass(frozen=True)
class Draw:
    """A token that was decoded.

    Args:
        token: id.
        log_prob: of it, in nats, at temperature 1.
        entropy: of the distribution it is from, in nats.
        top: ids and log-probabilities of the likeliest tokens.
        finish: `stop` when the token ends the text, `length` when it is the last that is allowed.
    """

    token: int
    log_prob: float
    entropy: float
    top: tuple[tuple[int, float], ...]
    finish: str | None


@dataclass(eq=False)
class Job:
    """A prompt to go on from.

    Args:
        prompt: token ids, at least one.
        limit: tokens to decode at most.
        sampling: how they are chosen.
        top: alternatives to tell at each token.
        tell: called from the engine's thread with each token, or with the error that ends the job.
        cancelled: set from any thread; nothing is told any more, and the row is free at the next step.
    """

    prompt: Sequence[int]
    limit: int
    sampling: Sampling
    top: int
    tell: Callable[[Draw | PetkitError], None]
    cancelled: bool = False


class Engine:
    """Gathers jobs into batches and decodes them, until `close`.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        padding: id that fills a batch up.
        batch_size: jobs decoded together at most.
        wait: seconds for which a first job waits for others.
    """

    def __init__(self, model: nn.Module, padding: int, batch_size: int = 16, wait: float = WAIT) -> None:
        self.model, self.padding, self.batch_size, self.wait = model, padding, batch_size, wait
        self.running: tuple[Job, ...] = ()
        self._waiting: deque[Job] = deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="petkit-engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue.

        Raises:
            PetkitError: the engine is closed.
        """
        with self._changed:
            if self._closed:
                raise PetkitError("the engine is closed")
            self._waiting.append(job)
            self._changed.notify_all()

    def close(self) -> None:
        """End all jobs, and the thread."""
        with self._changed:
            self._closed = True
            left = [*self._waiting, *self.running]
            self._waiting.clear()
            self._changed.notify_all()
        for job in left:
            _end(job, PetkitError("the engine is closed"))
        self._thread.join(JOIN_SECONDS)

    def _work(self) -> None:
        while True:
            batch = self._gathered()
            if batch is None:
                return
            jobs = [job for job in batch if not job.cancelled]
            if jobs:
                self._decode(jobs)

    def _gathered(self) -> list[Job] | None:
        """The next batch, as soon as it is full or its first job has waited; None when all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            until = time.monotonic() + self.wait
            while len(self._waiting) < self.batch_size and not self._closed:
                if not self._changed.wait(until - time.monotonic()):
                    break
            if self._closed:
                return None
            count = min(self.batch_size, len(self._waiting))
            self.running = tuple(self._waiting.popleft() for _ in range(count))
            return list(self.running)

    def _decode(self, jobs: Sequence[Job]) -> None:
        try:
            run_batch(self.model, jobs, self.padding)
        except Exception as error:
            # One batch that fails must not end the thread, on which all later ones depend.
            log.error("a batch of %d failed: %s: %s", len(jobs), type(error).__name__, error)
            for job in jobs:
                _end(job, PetkitError("the model failed on this batch"))
        finally:
            self.running = ()


def run_batch(model: nn.Module, jobs: Sequence[Job], padding: int) -> None:
    """Decode jobs together until every one has ended.

    Args:
        model: as for `Engine`.
        jobs: at least one.
        padding: as for `Engine`.
    """
    device = next(model.parameters()).device
    ids, mask = left_padded([job.prompt for job in jobs], padding, device)
    rows = _Rows(jobs, end_tokens(model))
    with torch.inference_mode():
        model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(job.limit for job in jobs),
            do_sample=False,
            num_beams=1,
            pad_token_id=padding,
            logits_processor=[_Chooser(rows)],
            stopping_criteria=[_Teller(rows)],
        )


class _Rows:
    """What is known of each row of a batch while it is decoded."""

    def __init__(self, jobs: Sequence[Job], ends: Sequence[int]) -> None:
        self.jobs, self.ends = jobs, ends
        self.open = [True] * len(jobs)
        self.counts = [0] * len(jobs)
        self.draws: list[Draw] = []

    def choose(self, scores: Tensor) -> list[int]:
        tokens = [draw(row, job.sampling) for row, job in zip(scores, self.jobs, strict=True)]
        top = min(max(job.top for job in self.jobs), scores.shape[-1])
        found = token_statistics(scores, torch.tensor(tokens, device=scores.device), top_k=top)
        assert found.log_prob is not None
        columns = (found.log_prob.tolist(), found.entropy.tolist(), self._tops(found, len(tokens)))
        self.draws = [
            Draw(token, log_prob, entropy, tops, self._finish(row, token))
            for row, (token, log_prob, entropy, tops) in enumerate(zip(tokens, *columns, strict=True))
        ]
        return tokens

    def tell(self) -> list[bool]:
        """Tell every open row its token; which rows have ended."""
        for row, (job, drawn) in enumerate(zip(self.jobs, self.draws, strict=True)):
            if self.open[row]:
                self.counts[row] += 1
                self.open[row] = self._told(job, drawn)
        return [not one for one in self.open]

    def _told(self, job: Job, drawn: Draw) -> bool:
        """Whether the job goes on."""
        if job.cancelled:
            return False
        if not math.isfinite(drawn.entropy):
            return _end(
                job, PetkitError("the model's logits are not finite: check its weights and precision")
            )
        try:
            job.tell(drawn)
        except RuntimeError:
            # The loop that listened is closed.
            return False
        return drawn.finish is None

    def _finish(self, row: int, token: int) -> str | None:
        if token in self.ends:
            return "stop"
        return "length" if self.counts[row] + 1 >= self.jobs[row].limit else None

    def _tops(self, found: Any, count: int) -> list[tuple[tuple[int, float], ...]]:
        if found.top_ids is None:
            return [()] * count
        pairs = zip(found.top_ids.tolist(), found.top_log_probs.tolist(), self.jobs, strict=True)
        return [tuple(zip(ids[: job.top], values, strict=False)) for ids, values, job in pairs]


class _Chooser:
    """A `LogitsProcessor` that leaves transformers' greedy search the token that a row's sampling chose."""

    def __init__(self, rows: _Rows) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = self.rows.choose(scores)
        forced = [row for row, job in enumerate(self.rows.jobs) if job.sampling.temperature]
        if forced:
            scores = scores.clone()
            scores[forced] = -math.inf
            scores[forced, [tokens[row] for row in forced]] = 0.0
        return scores


class _Teller:
    """A `StoppingCriteria`: each step's tokens are told, and rows whose job has ended stop."""

    def __init__(self, rows: _Rows) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.tensor(self.rows.tell(), device=input_ids.device)


def _end(job: Job, error: PetkitError) -> bool:
    """Tell a job that it failed; whether it goes on."""
    if not job.cancelled:
        job.cancelled = True
        # Perhaps nobody listens any more.
        with suppress(RuntimeError):
            job.tell(error)
    return False
