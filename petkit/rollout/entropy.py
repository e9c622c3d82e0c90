"""How sure a language model is of every token that it writes, recorded while it writes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from petkit.errors import InputError, PetkitError
from petkit.ops import token_statistics
from petkit.ops.token_statistics import check_temperature

# How far the sum of a row's rounded probabilities may be from 1, in nats.
SUM_TOLERANCE = 1e-3
NO_BEAMS = "beam search, whose rows change places, cannot be tracked; set num_beams=1"


@dataclass(frozen=True)
class Trajectory:
    """One sequence's uncertainty, a number for each token that was drawn; of equal lengths."""

    entropy: tuple[float, ...] = ()
    """-sum(p log p) in nats, over the whole vocabulary."""

    varentropy: tuple[float, ...] = ()
    """Variance of log p, in squared nats."""

    max_prob: tuple[float, ...] = ()
    """Probability of the likeliest token."""

    bias: tuple[float, ...] = ()
    """How much larger the true entropies may be, in nats; empty where they are exact."""

    def __len__(self) -> int:
        return len(self.entropy)


@dataclass
class _Row:
    entropy: list[float] = field(default_factory=list)
    varentropy: list[float] = field(default_factory=list)
    max_prob: list[float] = field(default_factory=list)
    ended: bool = False


class EntropyTracker:
    """Records the uncertainty of every token of a batch; a `LogitsProcessor` for transformers' `generate`.

    Rows of a batch may end at different tokens: what a model computes for a row behind its end is left out.
    Left padding does not matter, since only new tokens are looked at. One tracker serves one call of
    `generate`; beam search, whose rows change places, is refused.

    Args:
        eos_token_ids: tokens that end a sequence; the entropy of drawing such a token is still recorded.
            None, as generation settings may have it, stands for no such token.
        max_tokens: record the first so many tokens of each sequence only, at least 1; None records all.
        temperature: of the distribution that is recorded, above 0; the logits themselves are passed on
            unchanged.
        names: of the rows, for messages; numbers where there are none.

    Raises:
        InputError: no token to record, or a temperature that is none.

    Source:
        EDRM (arXiv 2605.22873) section 2 uses the entropies of the first 64 tokens.
    """

    def __init__(
        self,
        eos_token_ids: int | Collection[int] | Tensor | None = (),
        max_tokens: int | None = None,
        temperature: float = 1.0,
        names: Sequence[str] = (),
    ) -> None:
        if isinstance(eos_token_ids, Tensor):
            eos_token_ids = eos_token_ids.flatten().tolist()
        elif eos_token_ids is None:
            eos_token_ids = ()
        ids = (eos_token_ids,) if isinstance(eos_token_ids, int) else tuple(eos_token_ids)
        self.eos_token_ids, self.max_tokens, self.temperature = frozenset(ids), max_tokens, temperature
        if max_tokens is not None and max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, or None for all, got {max_tokens}")
        check_temperature(temperature)
        self._names = tuple(names)
        self._before: Tensor | None = None
        self._rows: list[_Row] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Record one step and pass the logits on.

        Args:
            input_ids: (batch, tokens so far).
            scores: logits (batch, vocab) of the next token.

        Returns:
            `scores` itself.

        Raises:
            InputError: another batch size than at the first step, not one token more than at the last, or
                rows that do not go on from the last step's, as beam search has them.
            PetkitError: a row without a distribution; the message names it.
        """
        if not self._rows:
            self._rows = [_Row() for _ in range(len(scores))]
        elif len(self._rows) != len(scores):
            raise InputError(
                f"a tracker serves one batch: expected {len(self._rows)} rows, got {len(scores)}; make a "
                "new one for each call of generate"
            )
        if self._before is None:
            _check_no_beams(input_ids, scores)
        else:
            _check_goes_on(self._before, input_ids)
            self._end(input_ids[:, -1].tolist())
        # A copy: what was kept of a buffer that is written to in place would change with it.
        self._before = input_ids.clone()
        open_rows = [index for index, row in enumerate(self._rows) if self._wanted(row)]
        if open_rows:
            self._record(open_rows, scores if len(open_rows) == len(scores) else scores[open_rows])
        return scores

    def end(self, rows: Collection[int]) -> None:
        """Record no more of rows that have ended by something else than a token, such as a stop."""
        for row in rows:
            self._rows[row].ended = True

    def trajectories(self) -> list[Trajectory]:
        """What was recorded so far, a trajectory for each row of the batch."""
        return [
            Trajectory(tuple(row.entropy), tuple(row.varentropy), tuple(row.max_prob)) for row in self._rows
        ]

    def _wanted(self, row: _Row) -> bool:
        return not row.ended and (self.max_tokens is None or len(row.entropy) < self.max_tokens)

    def _end(self, last_tokens: Sequence[int]) -> None:
        for row, token in zip(self._rows, last_tokens, strict=True):
            row.ended = row.ended or token in self.eos_token_ids

    @torch.no_grad()
    def _record(self, rows: Sequence[int], scores: Tensor) -> None:
        found = token_statistics(scores, temperature=self.temperature)
        columns = (found.entropy.tolist(), found.varentropy.tolist(), found.max_prob.tolist())
        for index, entropy, varentropy, max_prob in zip(rows, *columns, strict=True):
            if not math.isfinite(entropy):
                name = self._names[index] if self._names else f"row {index}"
                raise PetkitError(
                    f"the logits of {name} must be finite (or -inf) for an entropy, got nan or inf at "
                    f"its token {len(self._rows[index].entropy)}: check the model's weights and precision"
                )
            row = self._rows[index]
            row.entropy.append(entropy)
            row.varentropy.append(varentropy)
            row.max_prob.append(max_prob)


def _check_no_beams(input_ids: Tensor, scores: Tensor) -> None:
    """Refuse the first step of a beam search, by its scores.

    It hands processors log-probabilities in place of logits, for each prompt in several rows. The rows may
    change places behind the last step too, where no later step would show it.
    """
    repeated = len(input_ids) > 1 and bool((input_ids[1:] == input_ids[:-1]).all(dim=1).any())
    if repeated and bool((scores.float().logsumexp(dim=-1).abs() < SUM_TOLERANCE).all()):
        raise InputError(f"the scores are log-probabilities of equal rows: {NO_BEAMS}")


def _check_goes_on(before: Tensor, input_ids: Tensor) -> None:
    width = before.shape[1]
    if input_ids.shape[1] != width + 1:
        raise InputError(
            f"a tracker serves one call of generate: expected {width + 1} tokens a row, got "
            f"{input_ids.shape[1]}; make a new one for each call"
        )
    if not torch.equal(input_ids[:, :width], before):
        row = int((input_ids[:, :width] != before).any(dim=1).nonzero()[0])
        raise InputError(
            f"every row must go on from its tokens at the last step, row {row} does not: {NO_BEAMS}"
        )


@dataclass(frozen=True)
class BoundedEntropy:
    """The entropy of a token of which only the likeliest alternatives are known, in nats."""

    estimate: float
    """Entropy with all unknown tokens counted as one: never above the true one."""

    bias: float
    """The true entropy is at most this much larger."""


def bias_summary(biases: Sequence[float]) -> dict[str, float]:
    """How much too low a trajectory's estimates may be: the largest and the mean of at least one bound."""
    return {"largest": max(biases), "mean": sum(biases) / len(biases)}


def pooled_bias(summaries: Sequence[Mapping[str, float]], tokens: Sequence[int]) -> dict[str, float]:
    """The bounds of several trajectories as one.

    Args:
        summaries: of each, as `bias_summary` gives them; at least one.
        tokens: of each.

    Returns:
        The largest, and the mean over the tokens of all: a long trajectory counts for more than a short one.
    """
    total = sum(one["mean"] * count for one, count in zip(summaries, tokens, strict=True))
    return {"largest": max(one["largest"] for one in summaries), "mean": total / max(sum(tokens), 1)}


def entropy_from_top(top_log_probs: Sequence[float], vocab: int) -> BoundedEntropy:
    """Bound the entropy of a token from the log-probabilities that an API returns.

    Args:
        top_log_probs: of the likeliest tokens, in nats, in any order; at least one. -inf is allowed.
        vocab: size of the vocabulary, at least as many.

    Returns:
        The estimate, and how far the truth may lie above it.

    Raises:
        InputError: no log-probability, one above 0 or nan, more of them than tokens, or a sum of more than 1.

    Source:
        Grouping: H = H(top, rest as one) + P(rest) H(rest), and 0 <= H(rest) <= log(vocab - k).
    """
    if not top_log_probs or not all(value <= 1e-6 for value in top_log_probs):
        raise InputError(f"top_log_probs must hold log-probabilities (at most 0), got {list(top_log_probs)}")
    if len(top_log_probs) > vocab:
        raise InputError(f"vocab must be at least {len(top_log_probs)}, got {vocab}")
    known = math.fsum(math.exp(value) for value in top_log_probs)
    # Servers round: a little more than 1 is 1.
    if known > 1 + 1e-3:
        raise InputError(f"top_log_probs must be of different tokens: their probabilities add up to {known}")
    rest = max(0.0, 1 - known)
    estimate = -math.fsum(math.exp(value) * value for value in top_log_probs if value > -math.inf)
    unknown = vocab - len(top_log_probs)
    if rest == 0 or unknown == 0:
        return BoundedEntropy(estimate, 0.0)
    return BoundedEntropy(estimate - rest * math.log(rest), rest * math.log(unknown))
