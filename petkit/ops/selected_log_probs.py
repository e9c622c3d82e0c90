"""`selected_log_probs`: log-probabilities of a few tokens of each row of logits, from one read."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops import _library
from petkit.ops._checks import check_float, check_tensor
from petkit.ops._rows import called, called_overwriting, row_mask, row_slices, rows_of
from petkit.ops.token_statistics import check_temperature


class SelectedLogProbs(NamedTuple):
    """What `selected_log_probs` gives: float32 tensors in nats."""

    log_probs: Tensor
    """(..., k); it has a gradient."""

    entropy: Tensor
    """(...), that of the whole row, without a gradient."""


def selected_log_probs(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    overwrite: bool = False,
) -> SelectedLogProbs:
    """Log-probabilities of given tokens under softmax(logits / temperature).

    Args:
        logits: (..., vocab) float32, bfloat16 or float16; -inf means an impossible token.
        token_ids: integers (..., k) in [0, vocab); a token may stand twice.
        mask: (...); rows where it is 0 are not read, their results are 0 and so is their gradient.
        temperature: 1e-30 to 1e30.
        overwrite: let the backward pass write the gradient into the logits instead of into a new tensor of
            their size. They hold no logits any more then: a second backward pass is refused, and torch
            refuses that of whatever else has saved them. Under torch.compile it has no effect.

    Returns:
        The log-probabilities and the rows' entropies. A row with nan or +inf, or with nothing but -inf, gives
        nan throughout, in its gradient too.

    Raises:
        InputError: dtypes, shapes, ids or a temperature out of range; logits to be overwritten that are a
            leaf or not contiguous; a gradient of torch.func or of forward mode; in a backward pass, a
            gradient of the gradient.

    Source:
        One pass as in `token_statistics`; d log p(token) / d x = ([x is the token] - p) / temperature.
    """
    check_float("logits", logits)
    check_temperature(temperature)
    rows = rows_of("logits", logits, overwrite)
    wanted = row_mask(mask, logits)
    ids = _checked_ids(token_ids, logits, wanted)
    inputs = (rows, ids, wanted, float(temperature))
    if overwrite:
        found = called_overwriting("selected_log_probs", _setup_context, *inputs)
    else:
        found = called("selected_log_probs", *inputs)
    log_probs, entropy, _, _ = found
    return SelectedLogProbs(log_probs.reshape(token_ids.shape), entropy.reshape(logits.shape[:-1]))


def _checked_ids(token_ids: Tensor, logits: Tensor, wanted: Tensor) -> Tensor:
    check_tensor("token_ids", token_ids)
    kind_fits = not token_ids.is_floating_point() and token_ids.dtype != torch.bool
    if not kind_fits or token_ids.shape[:-1] != logits.shape[:-1] or token_ids.dim() != logits.dim():
        raise InputError(
            f"token_ids must be integers {tuple(logits.shape[:-1])} and one dimension more for logits "
            f"{tuple(logits.shape)}, got {token_ids.dtype} {tuple(token_ids.shape)}"
        )
    ids = token_ids.to(torch.int64).reshape(logits.shape[:-1].numel(), token_ids.shape[-1])
    # Reading ids of a device would stall it, and a compiler's trace has no ids to read.
    if not torch.compiler.is_compiling() and ids.device.type == "cpu":
        read = ids[wanted] if len(wanted) else ids
        if read.numel() and not 0 <= int(read.min()) <= int(read.max()) < logits.shape[-1]:
            odd = next(one for one in (int(read.min()), int(read.max())) if not 0 <= one < logits.shape[-1])
            raise InputError(f"token_ids must lie between 0 and {logits.shape[-1] - 1}, got {odd}")
    return ids


def _default(logits: Tensor, token_ids: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, ...]:
    parts = []
    for rows in row_slices(logits):
        kept = mask[rows] if len(mask) else None
        ids = token_ids[rows] if kept is None else torch.where(kept[:, None], token_ids[rows], 0)
        found = _default_rows(logits[rows].float(), ids, temperature)
        if kept is not None:
            found = tuple(torch.where(kept if p.dim() == 1 else kept[:, None], p, 0.0) for p in found)
        parts.append(found)
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def _default_rows(x: Tensor, token_ids: Tensor, temperature: float) -> tuple[Tensor, ...]:
    maximum = x.amax(-1)
    d = (x - maximum[:, None]) / temperature
    weight = d.exp()
    total = weight.sum(-1)
    log_sum = total.log()
    log_probs = (x.gather(-1, token_ids) - maximum[:, None]) / temperature - log_sum[:, None]
    # 0 log 0 is 0.
    entropy = log_sum - torch.where(weight == 0, 0.0, weight * d).sum(-1) / total
    return log_probs, entropy, maximum, log_sum


def _fake(logits: Tensor, token_ids: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, ...]:
    rows = logits.shape[0]
    columns = [logits.new_empty((rows,), dtype=torch.float32) for _ in range(3)]
    return (logits.new_empty((rows, token_ids.shape[1]), dtype=torch.float32), *columns)


def _backward_default_(logits: Tensor, *rest: Any) -> None:
    _write_gradient(logits, logits, *rest)


def _backward_default(logits: Tensor, *rest: Any) -> Tensor:
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    _write_gradient(gradient, logits, *rest)
    return gradient


def _write_gradient(
    target: Tensor,
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    maximum: Tensor,
    log_sum: Tensor,
    upstream: Tensor,
    temperature: float,
) -> None:
    for rows in row_slices(logits):
        log_p = (logits[rows].float() - maximum[rows, None]) / temperature - log_sum[rows, None]
        part = -log_p.exp() * upstream[rows].sum(-1, keepdim=True)
        ids = token_ids[rows] if not len(mask) else torch.where(mask[rows, None], token_ids[rows], 0)
        part.scatter_add_(-1, ids, upstream[rows])
        part /= temperature
        target[rows] = torch.where(mask[rows, None], part, 0.0) if len(mask) else part


def _backward_fake(logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _nothing(*_: Any) -> None:
    return None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, token_ids, mask, *ctx.settings = inputs
    _, entropy, maximum, log_sum = output
    ctx.mark_non_differentiable(entropy, maximum, log_sum)
    ctx.save_for_backward(logits, token_ids, mask, maximum, log_sum)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
    logits, *saved = ctx.saved_tensors
    gradient: Tensor = torch.ops.petkit.selected_log_probs_backward(logits, *saved, grads[0], *ctx.settings)
    return gradient, None, None, None


_ARGUMENTS = (
    "Tensor token_ids, Tensor mask, Tensor maximum, Tensor log_sum, Tensor upstream, float temperature"
)
_library.define(
    "selected_log_probs(Tensor logits, Tensor token_ids, Tensor mask, float temperature) -> (Tensor "
    "log_probs, Tensor entropy, Tensor maximum, Tensor log_sum)",
    _default,
    _fake,
)
_library.define(
    f"selected_log_probs_backward(Tensor logits, {_ARGUMENTS}) -> Tensor", _backward_default, _backward_fake
)
_library.define(
    f"selected_log_probs_backward_(Tensor(a!) logits, {_ARGUMENTS}) -> ()", _backward_default_, _nothing
)
torch.library.register_autograd("petkit::selected_log_probs", _backward, setup_context=_setup_context)
_library.differentiable_once("selected_log_probs", "compute from torch.log_softmax(logits, -1)")
