"""`token_statistics`: entropy, its spread, log-partition and likely tokens of rows of logits in one read."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops import _library
from petkit.ops._checks import check_float, check_tensor
from petkit.ops._rows import called

# Rows that the pure-torch default widens at a time.
CHUNK_ROWS = 16
# Also those of numpy and of a compiler's trace.
WHOLE: tuple[Any, ...] = (int, torch.SymInt, Integral)
NUMBERS: tuple[Any, ...] = (float, torch.SymFloat, Real)
# The kernels compute in float32 with the temperature's inverse. Between these limits the inverse is a number
# of float32, and so is what it makes of any logit up to 1e8.
LEAST_TEMPERATURE, LARGEST_TEMPERATURE = 1e-30, 1e30


class TokenStatistics(NamedTuple):
    """What `token_statistics` gives: float32 tensors in nats, of the logits' shape without the vocabulary."""

    log_z: Tensor
    """log(sum(exp(logits / temperature)))."""
    entropy: Tensor
    """-sum(p log p)."""
    varentropy: Tensor
    """Variance of log p under p, in squared nats."""
    max_prob: Tensor
    """Probability of the likeliest token."""
    log_prob: Tensor | None
    """Log-probability of the given tokens; None when none were given."""
    top_log_probs: Tensor | None
    """(..., top_k), the largest first; None with top_k 0."""
    top_ids: Tensor | None
    """int64 (..., top_k), of equal logits the lower id first; None with top_k 0."""


def token_statistics(
    logits: Tensor, token_ids: Tensor | None = None, top_k: int = 0, temperature: float = 1.0
) -> TokenStatistics:
    """Statistics of softmax(logits / temperature), row by row, without a temporary of the vocabulary's width.

    Args:
        logits: (..., vocab) float32, bfloat16 or float16. -inf means an impossible token. A row with nan or
            +inf gives nan throughout, a row of nothing but -inf a log_z of -inf and nan elsewhere.
        token_ids: integers (...), each in [0, vocab); None leaves `log_prob` out.
        top_k: how many of the likeliest tokens to name, 0 to vocab.
        temperature: 1e-30 to 1e30; every result is that of the divided logits.

    Returns:
        The statistics. `log_z`, `entropy` and `log_prob` have a gradient, of the logits' dtype, but no second
        one.

    Raises:
        InputError: another dtype, no vocabulary, shapes, ids, top_k or a temperature out of range; in a
            backward pass, a gradient of the gradient; a gradient of torch.func or of forward mode, of which
            torch knows nothing here.

    Source:
        One pass with a running maximum m over (sum e, sum d e, sum d^2 e), e = exp(d), d = x - m: centred, so
        that large logits lose no digits. d entropy / d x = -p (log p + entropy).
    """
    check_float("logits", logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise InputError(f"logits must be (..., vocab) with vocab >= 1, got {tuple(logits.shape)}")
    shape, vocab = logits.shape[:-1], logits.shape[-1]
    _check_top_k(top_k, vocab)
    check_temperature(temperature)
    ids = _checked_ids(token_ids, logits)
    found = called("token_statistics", logits.reshape(-1, vocab), ids, top_k, float(temperature))
    log_z, entropy, varentropy, max_prob, log_prob, top_log_probs, top_ids, _, _ = found
    return TokenStatistics(
        log_z.reshape(shape),
        entropy.reshape(shape),
        varentropy.reshape(shape),
        max_prob.reshape(shape),
        log_prob.reshape(shape) if token_ids is not None else None,
        top_log_probs.reshape(*shape, top_k) if top_k else None,
        top_ids.reshape(*shape, top_k) if top_k else None,
    )


def _check_top_k(top_k: Any, vocab: int) -> None:
    if not isinstance(top_k, WHOLE) or not 0 <= top_k <= vocab:
        raise InputError(f"top_k must be a whole number between 0 and {vocab}, got {top_k!r}")


def check_temperature(temperature: Any) -> None:
    """Refuse what `token_statistics` takes for no temperature, for those who will call it later.

    Raises:
        InputError: no number, or one out of range.
    """
    if not isinstance(temperature, NUMBERS):
        raise InputError(f"temperature must be a number, got {temperature!r:.60}")
    if not LEAST_TEMPERATURE <= temperature <= LARGEST_TEMPERATURE:
        raise InputError(
            f"temperature must lie between {LEAST_TEMPERATURE:g} and {LARGEST_TEMPERATURE:g}, got "
            f"{temperature}: for a temperature of 0, take the largest logit itself"
        )


def _checked_ids(token_ids: Tensor | None, logits: Tensor) -> Tensor:
    shape, vocab = logits.shape[:-1], logits.shape[-1]
    if token_ids is None:
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    check_tensor("token_ids", token_ids)
    if token_ids.is_floating_point() or token_ids.dtype == torch.bool or token_ids.shape != shape:
        raise InputError(
            f"token_ids must be integers {tuple(shape)} for logits {tuple(logits.shape)}, "
            f"got {token_ids.dtype} {tuple(token_ids.shape)}"
        )
    ids = token_ids.to(torch.int64).reshape(-1)
    # Reading ids of a device would stall it, and a compiler's trace has no ids to read.
    if not torch.compiler.is_compiling() and ids.device.type == "cpu" and ids.numel():
        low, high = (int(end) for end in ids.aminmax())
        if low < 0 or high >= vocab:
            raise InputError(
                f"token_ids must lie between 0 and {vocab - 1}, got {low if low < 0 else high}: "
                "leave masked positions out before the call"
            )
    return ids


def _default(logits: Tensor, token_ids: Tensor, top_k: int, temperature: float) -> tuple[Tensor, ...]:
    parts = [
        _default_rows(
            logits[at : at + CHUNK_ROWS].float(), token_ids[at : at + CHUNK_ROWS], top_k, temperature
        )
        for at in range(0, max(len(logits), 1), CHUNK_ROWS)
    ]
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def _default_rows(x: Tensor, token_ids: Tensor, top_k: int, temperature: float) -> tuple[Tensor, ...]:
    maximum = x.amax(-1)
    # Of +inf, and of a row of nothing but -inf, the differences are nan; so is everything made of them.
    d = (x - maximum[:, None]) / temperature
    weight = d.exp()
    log_sum = weight.sum(-1).log()
    p = weight / weight.sum(-1, keepdim=True)
    # 0 log 0 is 0.
    mean = (p * d.clamp_min(-100.0)).sum(-1)
    centred = (d - mean[:, None]).clamp_min(-100.0)
    log_z = torch.where(maximum == -torch.inf, maximum, maximum / temperature + log_sum)
    chosen = x[: len(token_ids)].gather(-1, token_ids[:, None])[:, 0] if len(token_ids) else x[:0, 0]
    log_prob = (chosen - maximum[: len(chosen)]) / temperature - log_sum[: len(chosen)]
    # A stable sort: of equal logits the lower id comes first.
    top, top_ids = (part[:, :top_k].contiguous() for part in x.sort(dim=-1, descending=True, stable=True))
    if top_k == 0:
        top, top_ids = x.new_empty((len(x), 0)), token_ids.new_empty((len(x), 0))
    top_log_probs = (top - maximum[:, None]) / temperature - log_sum[:, None]
    return (
        log_z,
        log_sum - mean,
        (p * centred * centred).sum(-1),
        (-log_sum).exp(),
        log_prob,
        top_log_probs,
        top_ids,
        maximum,
        log_sum,
    )


def _fake(logits: Tensor, token_ids: Tensor, top_k: int, temperature: float) -> tuple[Tensor, ...]:
    rows = logits.shape[0]

    def column() -> Tensor:
        return logits.new_empty((rows,), dtype=torch.float32)

    log_prob = logits.new_empty((token_ids.shape[0],), dtype=torch.float32)
    top = logits.new_empty((rows, top_k), dtype=torch.float32)
    top_ids = logits.new_empty((rows, top_k), dtype=torch.int64)
    return column(), column(), column(), column(), log_prob, top, top_ids, column(), column()


def _backward_default(
    logits: Tensor,
    token_ids: Tensor,
    maximum: Tensor,
    log_sum: Tensor,
    entropy: Tensor,
    grad_log_z: Tensor,
    grad_entropy: Tensor,
    grad_log_prob: Tensor,
    temperature: float,
) -> Tensor:
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    for at in range(0, len(logits), CHUNK_ROWS):
        rows = slice(at, at + CHUNK_ROWS)
        token = grad_log_prob[rows] if len(token_ids) else torch.zeros_like(grad_log_z[rows])
        log_p = (logits[rows].float() - maximum[rows, None]) / temperature - log_sum[rows, None]
        plain, uncertain = grad_log_z[rows] - token, grad_entropy[rows]
        # 0 log 0 is 0.
        part = plain[:, None] - uncertain[:, None] * (log_p.clamp_min(-100.0) + entropy[rows, None])
        part = log_p.exp() * part
        if len(token_ids):
            part.scatter_add_(-1, token_ids[rows, None], token[:, None])
        gradient[rows] = part / temperature
    return gradient


def _backward_fake(logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, token_ids, _, ctx.temperature = inputs
    _, entropy, varentropy, max_prob, _, top_log_probs, top_ids, maximum, log_sum = output
    ctx.mark_non_differentiable(varentropy, max_prob, top_log_probs, top_ids, maximum, log_sum)
    ctx.save_for_backward(logits, token_ids, maximum, log_sum, entropy)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
    logits, token_ids, maximum, log_sum, entropy = ctx.saved_tensors
    wanted = (grads[0], grads[1], grads[4])
    gradient: Tensor = torch.ops.petkit.token_statistics_backward(
        logits, token_ids, maximum, log_sum, entropy, *wanted, ctx.temperature
    )
    return gradient, None, None, None


_library.define(
    "token_statistics(Tensor logits, Tensor token_ids, int top_k, float temperature) -> (Tensor log_z, "
    "Tensor entropy, Tensor varentropy, Tensor max_prob, Tensor log_prob, Tensor top_log_probs, "
    "Tensor top_ids, Tensor maximum, Tensor log_sum)",
    _default,
    _fake,
)
_library.define(
    "token_statistics_backward(Tensor logits, Tensor token_ids, Tensor maximum, Tensor log_sum, "
    "Tensor entropy, Tensor grad_log_z, Tensor grad_entropy, Tensor grad_log_prob, float temperature) "
    "-> Tensor",
    _backward_default,
    _backward_fake,
)
torch.library.register_autograd("petkit::token_statistics", _backward, setup_context=_setup_context)
_library.differentiable_once("token_statistics", "compute from torch.log_softmax(logits, -1)")
