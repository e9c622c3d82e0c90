"""Greedy decoding of many prompts, with the uncertainty of every token on record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from petkit.errors import InputError
from petkit.rollout.entropy import EntropyTracker, Trajectory


@dataclass(frozen=True)
class Written:
    """What a model wrote after one prompt.

    Args:
        tokens: ids, without the one that ended the text.
        trajectory: uncertainty of each token that was drawn, the ending one included.
        finished: whether the model ended the text itself.
    """

    tokens: tuple[int, ...]
    trajectory: Trajectory
    finished: bool

    @property
    def cost(self) -> int:
        """Tokens that were decoded, the ending one included."""
        return len(self.tokens) + self.finished


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    padding: int,
    batch_size: int = 16,
    tracked: bool = True,
    names: Sequence[str] = (),
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
        rows = order[start : start + batch_size]
        tracker = EntropyTracker(end_tokens(model), names=[names[row] for row in rows] if names else ())
        found = _batch(
            model, [prompts[row] for row in rows], max_new_tokens, padding, tracker if tracked else None
        )
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
    tracker: EntropyTracker | None,
) -> list[Written]:
    ids, mask = left_padded(prompts, padding, next(model.parameters()).device)
    ends = end_tokens(model)
    with torch.inference_mode():
        output = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=padding,
            logits_processor=[tracker] if tracker else [],
        )
    trajectories = tracker.trajectories() if tracker else [Trajectory()] * len(prompts)
    rows = output[:, ids.shape[1] :].tolist()
    return [_written(row, ends, trace) for row, trace in zip(rows, trajectories, strict=True)]


def _written(row: list[int], ends: Sequence[int], trajectory: Trajectory) -> Written:
    end = next((place for place, token in enumerate(row) if token in ends), None)
    return Written(tuple(row if end is None else row[:end]), trajectory, end is not None)
