"""Completions drawn from a local language model in batches, each row by a seed of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from petkit.errors import InputError, PetkitError
from petkit.rollout.config import SamplingConfig
from petkit.rollout.sampler import Ending, end_tokens, left_padded
from petkit.rollout.stops import Stops

log = logging.getLogger(__name__)

Ids = Sequence[int]


@dataclass(frozen=True)
class Completion:
    """What follows a prompt.

    Args:
        prompt: ids.
        tokens: ids: those that were given, then those that were drawn, with the one that ended the text.
        prefix: how many of the tokens were given.
        finished: whether the text has ended, by a token or by a stop; else it was cut off.
        stopped: whether it was by a stop, whose tokens are still there.
        log_probs: of the tokens that were drawn, in nats, where a server told them; else none.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    prefix: int
    finished: bool
    stopped: bool = False
    log_probs: tuple[float, ...] = ()


class Draw:
    """A logits processor that leaves one token of each row: a draw from the softmax of its logits.

    Every row draws from a generator of its own, so that a batch's other rows change nothing.

    Args:
        seeds: of the rows.

    Source:
        Inversion: the first token at which the sum of probabilities exceeds a uniform number.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """0 at the token that was drawn and -inf elsewhere, (rows, vocab)."""
        uniform = [torch.rand(1, dtype=torch.float64, generator=one) for one in self._generators]
        # In float64, in which no sum over a vocabulary loses a token.
        sums = scores.double().softmax(-1).cumsum(-1)
        target = torch.stack(uniform).to(scores.device) * sums[:, -1:]
        # Impossible tokens add nothing to the sum, and so are never the first to exceed anything.
        drawn = torch.searchsorted(sums, target, right=True).clamp_max(scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


def sample(
    model: nn.Module,
    prompts: Sequence[Ids],
    seeds: Sequence[int],
    settings: SamplingConfig,
    padding: int,
    stops: Stops | None = None,
    prefixes: Sequence[Ids] | None = None,
    *,
    greedy: bool = False,
    vocab: int | None = None,
    name: str = "",
) -> list[Completion]:
    """Draw a completion of each prompt; a seed gives the same one whatever the other rows are.

    Args:
        model: a causal language model of transformers, also with adapters of petkit or of PEFT in it. Its own
            generation settings tell which tokens end a text, and nothing else.
        prompts: ids, at least one each.
        seeds: of the rows, each of 64 bits at most.
        settings: temperature, filters and lengths.
        padding: id that fills a batch up.
        stops: the texts of `settings.stop` and how ids are decoded; may be None only where there are none.
        prefixes: ids that each completion begins with, given and not drawn.
        greedy: take the likeliest token, for evaluation: neither seeds nor temperature and filters count.
        vocab: draw from the first so many ids alone; None from all. Models fill their tables up with rows
            that stand for nothing.
        name: of the model, for messages.

    Returns:
        The completions, in the order of the prompts. One may be an end token alone.

    Raises:
        InputError: a prompt without a token, with an id of another vocabulary or that fills the model's
            context; a prefix that holds an end token or a stop, or leaves nothing to draw; the message names
            the row.
        PetkitError: logits that are no distribution; the message names model and row.

    Source:
        `Draw`.
    """
    if (stops.texts if stops else ()) != settings.stop:
        raise InputError(f"stops must be those of the settings, {settings.stop}, got {stops and stops.texts}")
    given = list(prefixes) if prefixes is not None else [()] * len(prompts)
    ends, context = end_tokens(model), context_length(model)
    known = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    check_rows(prompts, seeds, given, ends, known)
    _check_stops(given, stops)
    rooms = rooms_of(prompts, given, settings.max_new_tokens, context)
    starts = [(*prompt, *prefix) for prompt, prefix in zip(prompts, given, strict=True)]
    drawing = _Drawing(model, settings, ends, padding, stops, greedy, vocab, name)
    found: dict[int, Completion] = {}
    with _evaluating(model):
        for rows in _batches([len(start) for start in starts], rooms, settings.batch_size, context):
            batch = [
                _Row(row, tuple(prompts[row]), tuple(given[row]), seeds[row], rooms[row]) for row in rows
            ]
            found |= zip(rows, drawing.draw(batch), strict=True)
    return [found[row] for row in range(len(prompts))]


def check_rows(
    prompts: Sequence[Ids], seeds: Sequence[int], prefixes: Sequence[Ids], ends: Sequence[int], vocab: int
) -> None:
    """Refuse rows that no completion can be drawn for.

    Args:
        prompts: ids.
        seeds: one for each prompt.
        prefixes: ids that completions begin with, likewise.
        ends: ids that end a text.
        vocab: how many ids there are.

    Raises:
        InputError: other numbers of seeds or prefixes than of prompts; an empty prompt, an id out of range,
            or a prefix with an end token; the message names the row.
    """
    for name, column in (("seed", seeds), ("prefix", prefixes)):
        if len(column) != len(prompts):
            raise InputError(f"expected one {name} for each of {len(prompts)} prompts, got {len(column)}")
    for row, (prompt, prefix) in enumerate(zip(prompts, prefixes, strict=True)):
        if not len(prompt):
            raise InputError(f"prompts[{row}] must hold at least one token, got none")
        for name, ids in (("prompts", prompt), ("prefixes", prefix)):
            check_ids(f"{name}[{row}]", ids, vocab)
        ended = next((place for place, token in enumerate(prefix) if token in ends), None)
        if ended is not None:
            raise InputError(
                f"prefixes[{row}] must hold no token that ends a text, got {prefix[ended]} at place {ended}: "
                "nothing can follow it"
            )


def check_ids(name: str, ids: Ids, vocab: int) -> None:
    """Refuse ids that a vocabulary does not have.

    Raises:
        InputError: an id below 0, or `vocab` or more.
    """
    for token in ids:
        if not 0 <= token < vocab:
            raise InputError(f"{name} must hold ids from 0 to {vocab - 1}, got {token}")


def rooms_of(
    prompts: Sequence[Ids], prefixes: Sequence[Ids], max_new_tokens: int, context: int | None
) -> list[int]:
    """How many tokens each row may draw.

    Args:
        prompts: ids.
        prefixes: ids that completions begin with; they count as new tokens.
        max_new_tokens: of a completion at most.
        context: tokens that the model can hold; None for any number.

    Returns:
        Tokens to draw at most, at least 1 for each row.

    Raises:
        InputError: a row without room for one; the message names it.
    """
    rooms = []
    for row, (prompt, prefix) in enumerate(zip(prompts, prefixes, strict=True)):
        left = max_new_tokens if context is None else min(max_new_tokens, context - len(prompt))
        if context is not None and left < 1:
            raise InputError(
                f"prompts[{row}] must leave room for a new token in the model's context of {context}, got "
                f"{len(prompt)} tokens: shorten it or leave it out"
            )
        if len(prefix) >= left:
            bound = "the model's context" if left < max_new_tokens else f"max_new_tokens {max_new_tokens}"
            raise InputError(
                f"prefixes[{row}] must leave a token to draw of the {left} that {bound} allows, got "
                f"{len(prefix)} tokens"
            )
        if left < max_new_tokens:
            _tell_capped(max_new_tokens, context)
        rooms.append(left - len(prefix))
    return rooms


def context_length(model: nn.Module) -> int | None:
    """Tokens that a model can hold, by its settings; None where they set no limit."""
    config: Any = model.config
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None


@dataclass(frozen=True)
class _Row:
    """One completion to draw: its number among all, what it begins with, and how much may follow."""

    number: int
    prompt: tuple[int, ...]
    prefix: tuple[int, ...]
    seed: int
    room: int


@dataclass(frozen=True)
class _Drawing:
    """What all batches share."""

    model: nn.Module
    settings: SamplingConfig
    ends: tuple[int, ...]
    padding: int
    stops: Stops | None
    greedy: bool
    vocab: int | None
    name: str

    def draw(self, rows: Sequence[_Row]) -> list[Completion]:
        """The completions of one batch."""
        starts = [(*row.prompt, *row.prefix) for row in rows]
        ids, mask = left_padded(starts, self.padding, next(self.model.parameters()).device)
        width = ids.shape[1]
        ending = Ending(self.stops, [row.prefix for row in rows], width, None) if self.stops else None
        progress = _Progress(rows, self.ends, width, ending)
        processors = [
            _First(self.vocab),
            _Finite(progress, self.name),
            *(() if self.greedy else self._draws(rows)),
        ]
        # Inference tensors that a module keeps, such as those of long contexts, could not be trained with.
        with _settings_in_place(self.model, self._generation(max(row.room for row in rows))), torch.no_grad():
            output = self.model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=mask,
                logits_processor=processors,
                stopping_criteria=[progress],
            )
        drawn = output[:, width:].tolist()
        stopped = ending.stopped if ending else [None] * len(rows)
        return [_completion(*columns, self.ends) for columns in zip(rows, drawn, stopped, strict=True)]

    def _draws(self, rows: Sequence[_Row]) -> list[Any]:
        """The filters as transformers has them, and then the draw."""
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        own, found = self.settings, list[Any]()
        if own.temperature != 1:
            found.append(TemperatureLogitsWarper(own.temperature))
        if own.top_k:
            found.append(TopKLogitsWarper(own.top_k))
        if own.top_p < 1:
            found.append(TopPLogitsWarper(own.top_p))
        return [*found, Draw([row.seed for row in rows])]

    def _generation(self, limit: int) -> Any:
        from transformers import GenerationConfig

        return GenerationConfig(
            max_new_tokens=limit,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=list(self.ends) or None,
            pad_token_id=self.padding,
        )


class _Progress:
    """A `StoppingCriteria`: rows end at an end token, at a stop, and where they have no room left.

    Args:
        rows: of the batch.
        ends: ids that end a text.
        width: of the batch before the first draw.
        ending: ends rows at stops; None where there are none.
    """

    def __init__(self, rows: Sequence[_Row], ends: Sequence[int], width: int, ending: Ending | None) -> None:
        self.rows, self._ends, self._width, self._ending = rows, frozenset(ends), width, ending
        self.ended = [False] * len(rows)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        drawn = input_ids.shape[1] - self._width
        last = input_ids[:, -1].tolist()
        for place, (row, token) in enumerate(zip(self.rows, last, strict=True)):
            self.ended[place] |= drawn >= row.room or token in self._ends
        found = torch.tensor(self.ended, device=input_ids.device)
        if self._ending is not None:
            found |= self._ending(input_ids, scores)
            self.ended = found.tolist()
        return found


class _First:
    """A logits processor that leaves the first ids alone possible.

    Args:
        vocab: how many; None all.
    """

    def __init__(self, vocab: int | None) -> None:
        self._vocab = vocab

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._vocab is None or self._vocab >= scores.shape[-1]:
            return scores
        return torch.cat(
            [scores[:, : self._vocab], torch.full_like(scores[:, self._vocab :], -torch.inf)], -1
        )


class _Finite:
    """A logits processor that changes nothing and refuses logits that are no distribution.

    Args:
        progress: of the batch; of rows that have ended nothing is asked.
        name: of the model, for the message.
    """

    def __init__(self, progress: _Progress, name: str) -> None:
        self._progress, self._of = progress, f" of {name}" if name else ""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # The maximum is nan with a nan, inf with an inf, and -inf where no token is possible.
        finite = scores.amax(-1).isfinite().tolist()
        for row, sound, ended in zip(self._progress.rows, finite, self._progress.ended, strict=True):
            if not sound and not ended:
                raise PetkitError(
                    f"the logits{self._of} after prompts[{row.number}] must be a distribution, got nan, inf "
                    "or nothing but -inf"
                )
        return scores


def _completion(row: _Row, drawn: list[int], stop: int | None, ends: Sequence[int]) -> Completion:
    """A completion of its row of the output, which goes on with padding behind the completion's end."""
    drawn = drawn[: row.room]
    end = next((place for place, token in enumerate(drawn) if token in ends), None)
    drawn = drawn if end is None else drawn[: end + 1]
    stopped = end is None and stop is not None and stop <= len(drawn)
    drawn = drawn[:stop] if stopped else drawn
    return Completion(row.prompt, (*row.prefix, *drawn), len(row.prefix), end is not None or stopped, stopped)


def _batches(
    lengths: Sequence[int], rooms: Sequence[int], size: int, context: int | None
) -> Iterator[list[int]]:
    """Rows that are written together: of like lengths, so that little is padded.

    A row that has ended goes on as padding until the last one has, and must stay in the model's context too.
    """
    batch, steps = list[int](), 0
    for row in sorted(range(len(lengths)), key=lambda row: (lengths[row], rooms[row])):
        steps = max(steps, rooms[row])
        if batch and (len(batch) == size or (context is not None and lengths[row] + steps > context)):
            # In the order of the prompts, so that an error names the first of those it is true of.
            yield sorted(batch)
            batch, steps = [], rooms[row]
        batch.append(row)
    if batch:
        yield sorted(batch)


def _check_stops(prefixes: Sequence[Ids], stops: Stops | None) -> None:
    for row, prefix in enumerate(prefixes if stops else ()):
        assert stops is not None
        text = stops.decode(prefix) if len(prefix) else ""
        if stops.cut(text) != text:
            raise InputError(
                f"prefixes[{row}] must hold none of the stops {list(stops.texts)}, got {text!r:.60}"
            )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; every module goes back to the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _settings_in_place(model: nn.Module, settings: Any) -> Iterator[None]:
    """Let `generate` find these settings alone: it fills what they leave open from the model's own.

    Penalties and filters that a model's author likes would draw from another policy.
    """
    # A wrapper, as PEFT has them, may have settings besides those of the model in it.
    owners = [module for module in model.modules() if "generation_config" in vars(module)]
    own = [module.generation_config for module in owners]
    for module in owners:
        module.generation_config = settings
    try:
        yield
    finally:
        for module, kept in zip(owners, own, strict=True):
            module.generation_config = kept


@lru_cache(maxsize=64)
def _tell_capped(max_new_tokens: int, context: int) -> None:
    log.warning(
        "max_new_tokens %d goes beyond the model's context of %d tokens after some prompts: their "
        "completions end there",
        max_new_tokens,
        context,
    )
