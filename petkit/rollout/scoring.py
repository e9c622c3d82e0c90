"""How likely a model finds the tokens of responses: one function for students and for teachers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from petkit.errors import InputError, PetkitError
from petkit.losses.head import chunks, head_divergence, head_log_probs
from petkit.ops.divergence import Divergence, divergence
from petkit.ops.selected_log_probs import SelectedLogProbs, selected_log_probs
from petkit.ops.token_statistics import token_statistics

log = logging.getLogger(__name__)

# More than any cap of logits lets through.
LARGE = 1000.0


@dataclass(frozen=True)
class Sequences:
    """Prompts with responses, padded on the right; on one device."""

    input_ids: Tensor
    """int64 (batch, length)."""

    attention_mask: Tensor
    """int64 (batch, length)."""

    starts: Tensor
    """int64 (batch,): where the responses begin."""

    token_ids: Tensor
    """int64 (batch, tokens): the responses alone."""

    mask: Tensor
    """bool (batch, tokens): tokens of responses."""

    prefix_mask: Tensor
    """bool (batch, tokens): those of them that were given and not sampled."""

    def choose(self, rows: Tensor) -> Sequences:
        """The sequences with these numbers, as wide as they were."""
        return Sequences(
            self.input_ids[rows],
            self.attention_mask[rows],
            self.starts[rows],
            self.token_ids[rows],
            self.mask[rows],
            self.prefix_mask[rows],
        )


def pack(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    prefixes: Sequence[int],
    padding: int,
    device: torch.device,
) -> Sequences:
    """Put prompts and responses of different lengths into one batch.

    Args:
        prompts: token ids, at least one each.
        responses: token ids, at least one each.
        prefixes: how many tokens at the beginning of each response were given.
        padding: id that fills the batch up.
        device: where to.

    Returns:
        The sequences.

    Raises:
        InputError: a prompt or a response without a token.
    """
    for name, rows in (("prompt", prompts), ("response", responses)):
        empty = [place for place, row in enumerate(rows) if not len(row)]
        if empty:
            raise InputError(f"every {name} must hold at least one token, got none in number {empty[0]}")
    whole = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    input_ids, attention_mask = _padded(whole, padding)
    token_ids, mask = _padded(responses, padding)
    given = torch.arange(mask.shape[1])[None] < torch.tensor(list(prefixes))[:, None]
    starts = torch.tensor([len(prompt) for prompt in prompts])
    parts = (input_ids, attention_mask.long(), starts, token_ids, mask, mask & given)
    return Sequences(*(part.to(device) for part in parts))


@dataclass(frozen=True)
class TeacherScores:
    """What a teacher says of the tokens of responses: float32 in nats, without gradients."""

    log_probs: Tensor
    """(batch, tokens); 0 where there is no token, and so everywhere here."""

    entropy: Tensor | None
    """(batch, tokens); None where nothing is known of other tokens."""

    top_ids: Tensor | None = None
    """int64 (batch, tokens, k); None with k = 0."""

    top_log_probs: Tensor | None = None
    """(batch, tokens, k)."""


class Head:
    """A causal language model whose logits are computed for a few tokens at a time, where that can be.

    Args:
        model: of transformers.
        vocab: tokens that count, the first so many; None all.
    """

    def __init__(self, model: nn.Module, vocab: int | None = None) -> None:
        self.model, self.vocab = model, vocab
        self.linear = _plain_head(model)

    @property
    def weight(self) -> Tensor:
        """Of the head, (vocab, width)."""
        assert self.linear is not None
        return self.linear.weight[: self.vocab]

    @property
    def bias(self) -> Tensor | None:
        """Of the head, (vocab,)."""
        assert self.linear is not None
        return None if self.linear.bias is None else self.linear.bias[: self.vocab]

    @property
    def is_plain(self) -> bool:
        """Whether logits are hidden states times a weight and nothing else."""
        return self.linear is not None

    def states(self, sequences: Sequences) -> Tensor:
        """Hidden states, or logits where the head is no plain one, that predict the responses' tokens.

        Args:
            sequences: the batch.

        Returns:
            (batch, tokens, width or vocab).
        """
        inputs = {"input_ids": sequences.input_ids, "attention_mask": sequences.attention_mask}
        hidden: Tensor
        if self.is_plain:
            hidden = _body(self.model)(**inputs, use_cache=False).last_hidden_state
        else:
            hidden = self.model(**inputs, use_cache=False).logits[..., : self.vocab]
        places = sequences.starts[:, None] - 1 + torch.arange(sequences.mask.shape[1], device=hidden.device)
        places = places.clamp_max(hidden.shape[1] - 1)
        return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))

    def log_probs(
        self, states: Tensor, token_ids: Tensor, mask: Tensor, temperature: float
    ) -> SelectedLogProbs:
        """Log-probabilities (batch, tokens, k) of given tokens, with a gradient, and entropies."""
        if self.linear is None:
            return selected_log_probs(states, token_ids, mask, temperature, overwrite=states.requires_grad)
        return head_log_probs(states, self.weight, token_ids, self.bias, mask, temperature)

    def logits(self, states: Tensor) -> Tensor:
        """Logits of hidden states."""
        return states if self.linear is None else nn.functional.linear(states, self.weight, self.bias)

    def divergence(
        self,
        states: Tensor,
        teacher: Head,
        teacher_states: Tensor,
        mask: Tensor,
        beta: float,
        temperature: float,
    ) -> Divergence:
        """Divergences (batch, tokens) between this student's distributions and a teacher's."""
        if self.linear is not None and teacher.linear is not None:
            return head_divergence(
                states,
                self.weight,
                teacher_states,
                teacher.weight,
                beta,
                mask,
                temperature,
                student_bias=self.bias,
                teacher_bias=teacher.bias,
            )
        with torch.no_grad():
            other = teacher.logits(teacher_states)
        return divergence(self.logits(states), other, beta, mask, temperature)


def student_log_probs(
    head: Head,
    sequences: Sequences,
    token_ids: Tensor | None = None,
    temperature: float = 1.0,
    states: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Log-probabilities of responses under a model, as it samples at a temperature from all tokens.

    This is what the rollout records and what the training differentiates.

    Args:
        head: of the model.
        sequences: the batch.
        token_ids: further tokens, int64 (batch, tokens, k), such as a teacher's likeliest ones.
        temperature: of the softmax.
        states: what `head.states` made of the batch, where that is known.

    Returns:
        Log-probabilities (batch, tokens) and (batch, tokens, k), with gradients, and entropies (batch,
        tokens) without; None where no further tokens were given. All are 0 where there is no token.
    """
    ids = sequences.token_ids[..., None]
    if token_ids is not None:
        ids = torch.cat([ids, token_ids], -1)
    if states is None:
        states = head.states(sequences)
    found = head.log_probs(states, ids, sequences.mask, temperature)
    further = None if token_ids is None else found.log_probs[..., 1:]
    return found.log_probs[..., 0], further, found.entropy


def without_dropout(model: nn.Module) -> None:
    """Make a model in training mode what it is in evaluation mode: the policy that samples.

    Args:
        model: changed in place; of adapters that are inserted later nothing changes.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Attention that is computed at once takes its rate as a number.
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


@torch.no_grad()
def teacher_scores(
    head: Head, sequences: Sequences, top_k: int, temperature: float = 1.0, name: str = ""
) -> TeacherScores:
    """What a model says of responses.

    Args:
        head: of the model.
        sequences: the batch.
        top_k: how many of its likeliest tokens to name at each token, 0 for none.
        temperature: of the softmax.
        name: of the model, for messages.

    Returns:
        The scores.

    Raises:
        PetkitError: logits that are no distribution.
    """
    states, mask = head.states(sequences), sequences.mask
    chosen, ids = states[mask], sequences.token_ids[mask]
    parts = []
    for at in _chunks(chosen, head):
        parts.append(token_statistics(head.logits(chosen[at]).contiguous(), ids[at], top_k, temperature))
    if any(bool(part.entropy.isnan().any()) for part in parts):
        raise not_finite(f"the teacher {name}".strip())

    def whole(columns: Sequence[Tensor]) -> Tensor:
        values = torch.cat(list(columns))
        spread = values.new_zeros((*mask.shape, *values.shape[1:]))
        spread[mask] = values
        return spread

    return TeacherScores(
        whole([part.log_prob for part in parts if part.log_prob is not None]),
        whole([part.entropy for part in parts]),
        whole([part.top_ids for part in parts if part.top_ids is not None]) if top_k else None,
        whole([part.top_log_probs for part in parts if part.top_log_probs is not None]) if top_k else None,
    )


def not_finite(model: str) -> PetkitError:
    """Say whose logits are no distribution."""
    return PetkitError(f"the logits of {model} must be finite, got nan or inf")


def _chunks(states: Tensor, head: Head) -> Iterator[slice]:
    yield from chunks(len(states), states.shape[-1] if head.linear is None else len(head.weight), states)


def _padded(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(rows), max(map(len, rows))), padding)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.as_tensor(row)
        mask[place, : len(row)] = True
    return ids, mask


def _body(model: nn.Module) -> Callable[..., Any]:
    body: Callable[..., Any] = model.base_model  # type: ignore[assignment]
    return body


def _plain_head(model: nn.Module) -> nn.Linear | None:
    """The model's output layer, if its logits are that layer of its hidden states and nothing else."""
    find = getattr(model, "get_output_embeddings", None)
    linear = find() if find is not None else None
    if type(linear) is nn.Linear and getattr(model, "base_model", model) is not model:
        # An adapter of petkit is a hook, which adds little or nothing before it has learnt.
        hooked = linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear)
        if not hooked and _says_logits(linear, model):
            return linear
    log.info("the model's logits are more than its head's output: they are computed whole, in more memory")
    return None


@torch.no_grad()
def _says_logits(linear: nn.Linear, model: nn.Module) -> bool:
    """Prove that a layer sees the model's last hidden states, and that the model changes nothing behind it.

    Some models scale or cap their logits. Whether a cap shows depends on how large they are, which training
    changes: so the layer is made to say large numbers.
    """
    ids = torch.arange(8, device=linear.weight.device)[None] % linear.weight.shape[0]
    seen: list[tuple[Tensor, Tensor]] = []

    def say(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        large = torch.linspace(-LARGE, LARGE, output.numel(), device=output.device)
        seen.append((inputs[0], large.reshape(output.shape).to(output.dtype)))
        return seen[-1][1]

    modes = {module: module.training for module in model.modules()}
    hook = linear.register_forward_hook(say)
    try:
        model.eval()
        own = model(input_ids=ids, use_cache=False).logits
        hidden = getattr(_body(model)(input_ids=ids, use_cache=False), "last_hidden_state", None)
    finally:
        hook.remove()
        for module, training in modes.items():
            module.training = training
    if hidden is None or len(seen) != 1:
        return False
    return _equal(hidden, seen[0][0]) and _equal(own, seen[0][1])


def _equal(first: Tensor, second: Tensor) -> bool:
    # Where a model's states are nan its head is none the less what it is.
    sizes = {"rtol": 1e-5, "atol": 1e-5}
    return first.shape == second.shape and torch.allclose(
        first.float(), second.float(), **sizes, equal_nan=True
    )
