"""Log-probabilities of 65 tokens of 512 rows over Qwen's vocabulary, against log_softmax and gather."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from petkit import ops
from petkit.benchmarks.harness import Case

ROWS, VOCAB, TOKENS = 512, 152_064, 65
PLAIN = "log_softmax and gather"
LogProbs = Callable[[Tensor, Tensor], Tensor]


def cases() -> list[Case]:
    """Alone and with the gradient, in bfloat16 and float32."""
    random = torch.Generator().manual_seed(0)
    wide = torch.randn(ROWS, VOCAB, generator=random) * 3
    ids = torch.randint(VOCAB, (ROWS, TOKENS), generator=random)
    made = []
    for dtype in (torch.bfloat16, torch.float32):
        logits = wide.to(dtype)
        name = f"selected_log_probs {str(dtype)[6:]} {ROWS}x{VOCAB}, {TOKENS} tokens"
        plain = {PLAIN: partial(_plain, logits, ids)}
        made.append(Case(name, partial(_ours, logits, ids), plain, logits.nbytes))
        plain = {PLAIN: partial(_gradient, logits, ids, _plain)}
        made.append(Case(f"{name} and gradient", partial(_gradient, logits, ids, _ours), plain))
    return made


def _ours(logits: Tensor, ids: Tensor) -> Tensor:
    return ops.selected_log_probs(logits, ids).log_probs


def _plain(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.float().log_softmax(-1).gather(-1, ids)


def _gradient(logits: Tensor, ids: Tensor, log_probs: LogProbs) -> Tensor:
    live = logits.detach().requires_grad_()
    return torch.autograd.grad(log_probs(live, ids).mean(), live)[0]
