"""Entropy of 256 rows of logits over Qwen's vocabulary, against TRL's chunks and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from petkit import ops
from petkit.benchmarks.harness import Case
from petkit.benchmarks.ops._compiled import compiled

ROWS, VOCAB = 256, 152_064
TRL, COMPILED = "TRL's entropy_from_logits", "torch.compile"
GOALS = {
    torch.float32: {TRL: 25.0, COMPILED: 10.0, "bandwidth": 0.75},
    torch.bfloat16: {TRL: 15.0, COMPILED: 8.0},
}


def cases() -> list[Case]:
    """Statistics alone and with the top 20, in float32 and bfloat16."""
    logits = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    made = []
    for dtype, goals in GOALS.items():
        x = logits.to(dtype)
        peers: dict[str, Callable[[], object]] = {TRL: partial(_chunked_entropy, x)}
        fused = compiled(_entropy, torch.zeros(2, 3))
        if fused is not None:
            peers[COMPILED] = partial(fused, x)
        name = f"token_statistics {str(dtype)[6:]} {ROWS}x{VOCAB}"
        made.append(Case(name, partial(ops.token_statistics, x), peers, x.nbytes, goals))
        top = {"torch.topk of log_softmax": partial(_top, x)}
        made.append(Case(f"{name}, top 20", partial(ops.token_statistics, x, None, 20), top, x.nbytes, {}))
    return made


def _chunked_entropy(logits: Tensor) -> Tensor:
    """What TRL 1.16 does off CUDA: 128 rows at a time, in the logits' own dtype."""
    parts = []
    for chunk in torch.split(logits, 128):
        log_p = torch.log_softmax(chunk, dim=-1)
        parts.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(parts)


def _entropy(logits: Tensor) -> Tensor:
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def _top(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), dim=-1).topk(20).values
