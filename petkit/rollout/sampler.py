"""Greedy decoding of many prompts, with the uncertainty of every token on record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from petkit.errors import InputError
from petkit.rollout.entropy import EntropyTracker, Trajectory
from petkit.rollout.stops import Stops


@dataclass(frozen=True)
class Written:
    """What a model wrote after one prompt.

    Args:
        tokens: ids, without the one that ended the text; those of a stop are still there.
        trajectory: uncertainty of each token that was drawn, the ending one included.
        finished: whether the text has ended, by a token or by a stop.
        stopped: whether it was by a stop.
    """

    tokens: tuple[int, ...]
    trajectory: Trajectory
    finished: bool
    stopped: bool = False

    @property
    def cost(self) -> int:
        """Tokens that were decoded, the ending one included."""
        return len(self.tokens) + (self.finished and not self.stopped)


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    padding: int,
    batch_size: int = 16,
    tracked: bool = True,
    names: Sequence[str] = (),
    stops: Stops | None = None,
    answered: Sequence[int] = (),
    advance: Callable[..., None] = lambda count=1, note="": None,
) -> list[Written]:
    """Continue prompts greedily, in batches padded on the left.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        prompts: token ids; none may be empty.
        max_new_tokens: tokens to write after each prompt at most, at least 1.
        padding: id that fills a batch up.
        batch_size: prompts decoded together.
        tracked: record the uncertainty; the trajectories are empty otherwise.
        names: of the prompts, for messages.
        stops: texts that end what is written too.
        answered: how many ids at the end of each prompt are the answer's beginning, in which a stop may
            begin; none where it is empty.
        advance: told how many prompts are done.

    Returns:
        What was written, in the order of the prompts.

    Raises:
        InputError: a prompt without a token.
        PetkitError: logits that are no distribution; the message names the prompt.
    """
    if not all(len(prompt) for prompt in prompts):
        raise InputError("every prompt must hold at least one token, got an empty one")
    # Prompts of like lengths go together, so that little is padded.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    written: dict[int, Written] = {}
    for start in range(0, len(order), batch_size):
        # In the order of the prompts, so that an error names the first of those it is true of.
        rows = sorted(order[start : start + batch_size])
        tracker = EntropyTracker(end_tokens(model), names=[names[row] for row in rows] if names else ())
        own = [prompts[row] for row in rows]
        begun = [prompts[row][len(prompts[row]) - answered[row] :] if answered else () for row in rows]
        ending = Ending(stops, begun, max(map(len, own)), tracker if tracked else None)
        found = _batch(model, own, max_new_tokens, padding, ending)
        written |= zip(rows, found, strict=True)
        advance(len(rows))
    return [written[index] for index in range(len(prompts))]


def end_tokens(model: nn.Module) -> tuple[int, ...]:
    """Ids that end a text, by the model's own generation settings."""
    settings: Any = model.generation_config
    ids = settings.eos_token_id
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)


def left_padded(
    prompts: Sequence[Sequence[int]], padding: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Put prompts of different lengths into one batch that ends where new tokens begin.

    Args:
        prompts: token ids; none may be empty.
        padding: id that fills a row up.
        device: where to.

    Returns:
        Ids and their mask, int64 (batch, tokens).
    """
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), padding, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(prompt, device=device)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def _batch(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    padding: int,
    ending: Ending,
) -> list[Written]:
    ids, mask = left_padded(prompts, padding, next(model.parameters()).device)
    tracker = ending.tracker
    with torch.inference_mode():
        output = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=padding,
            logits_processor=[tracker] if tracker else [],
            stopping_criteria=[ending] if ending.stops else [],
        )
    trajectories = tracker.trajectories() if tracker else [Trajectory()] * len(prompts)
    rows = output[:, ids.shape[1] :].tolist()
    columns = zip(rows, trajectories, ending.stopped, strict=True)
    return [_written(row, end_tokens(model), trace, stopped) for row, trace, stopped in columns]


class Ending:
    """A `StoppingCriteria`: rows end where their answers hold a stop.

    Args:
        stops: the texts; None ends nothing.
        begun: ids of each row's answer that are in its prompt.
        width: of the prompts.
        tracker: told of rows that have ended.
    """

    def __init__(
        self,
        stops: Stops | None,
        begun: Sequence[Sequence[int]],
        width: int,
        tracker: EntropyTracker | None,
    ) -> None:
        self.stops, self.begun, self.width, self.tracker = stops, begun, width, tracker
        # Behind how many new tokens each row was stopped.
        self.stopped: list[int | None] = [None] * len(begun)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Which rows have ended, bool (batch,)."""
        assert self.stops is not None
        for row, tokens in enumerate(input_ids[:, self.width :].tolist()):
            if self.stopped[row] is None and self.stops.complete([*self.begun[row], *tokens]):
                self.stopped[row] = len(tokens)
        ended = [length is not None for length in self.stopped]
        if self.tracker is not None:
            self.tracker.end([row for row, one in enumerate(ended) if one])
        return torch.tensor(ended, device=input_ids.device)


def _written(row: list[int], ends: Sequence[int], trajectory: Trajectory, stopped: int | None) -> Written:
    row = row[:stopped]
    end = next((place for place, token in enumerate(row) if token in ends), None)
    if end is None and stopped is not None:
        return Written(tuple(row), trajectory, finished=True, stopped=True)
    return Written(tuple(row[:end]), trajectory, end is not None)
