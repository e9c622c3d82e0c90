"""Divergences of 512 rows over Qwen's vocabulary and their gradient, against TRL's own loss and torch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from petkit import ops
from petkit.benchmarks.harness import Case
from petkit.benchmarks.ops._compiled import compiled

log = logging.getLogger(__name__)

ROWS, VOCAB = 512, 152_064
TRL, COMPILED, PLAIN = "TRL's generalized_jsd_loss", "torch.compile", "plain torch"
GOALS = {torch.bfloat16: {TRL: 5.0}, torch.float32: {}}
# Tensors of the logits' size that TRL adds at its peak, loss and gradient, as measured. In place, an eighth
# of that has to do.
TRL_TENSORS = 15
Loss = Callable[[Tensor, Tensor], Tensor]


def cases() -> list[Case]:
    """Jensen-Shannon divergence, in a new tensor and in place, and both Kullback-Leibler divergences."""
    random = torch.Generator().manual_seed(0)
    wide = [torch.randn(ROWS, VOCAB, generator=random) * 3 for _ in range(2)]
    theirs = _trl_loss()
    made = []
    for dtype, goals in GOALS.items():
        # A copy, since the case in place writes over the student's.
        student, teacher = (part.to(dtype, copy=True) for part in wide)
        name = f"divergence {str(dtype)[6:]} {ROWS}x{VOCAB} and gradient"
        run = partial(_gradient, student, teacher)
        trl = {} if theirs is None else {TRL: partial(run, theirs)}
        peers = trl | _compiled_peer(run)
        jsd = partial(run, partial(_ours, 0.5))
        made.append(Case(f"{name}, beta 0.5", jsd, peers, goals=goals if trl else {}))
        for beta, what in ((0, "forward KL"), (1, "reverse KL")):
            plain = {PLAIN: partial(run, partial(_plain_kl, beta))}
            made.append(Case(f"{name}, {what}", partial(run, partial(_ours, beta)), plain))
        limit = TRL_TENSORS * student.nbytes // 8
        there = partial(_gradient_in_place, student, teacher)
        made.append(Case(f"{name}, beta 0.5 in place", there, trl, memory_limit=limit))
    return made


def _gradient(student: Tensor, teacher: Tensor, loss: Loss) -> Tensor:
    live = student.detach().requires_grad_()
    return torch.autograd.grad(loss(live, teacher), live)[0]


def _gradient_in_place(student: Tensor, teacher: Tensor) -> Tensor:
    """Later calls find gradients for logits, which cost the same."""
    logits: Tensor = _Made.apply(torch.zeros((), requires_grad=True), student)
    return torch.autograd.grad(_ours(0.5, logits, teacher, overwrite=True), logits)[0]


class _Made(torch.autograd.Function):
    """Logits as a model makes them, but of memory that is there already."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, values: Tensor) -> Tensor:
        return values.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None


def _ours(beta: float, student: Tensor, teacher: Tensor, overwrite: bool = False) -> Tensor:
    return ops.divergence(student, teacher, beta, overwrite=overwrite).loss.sum() / len(student)


def _trl_loss() -> Loss | None:
    """The static method of TRL's GKDTrainer; None where TRL is not installed."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    try:
        from trl.experimental.gkd import GKDTrainer
    except ImportError:
        log.warning("trl is not installed and is left out: pip install trl")
        return None
    return partial(GKDTrainer.generalized_jsd_loss, beta=0.5)


def _compiled_peer(run: Callable[[Loss], Tensor]) -> dict[str, Callable[[], object]]:
    small = torch.zeros(2, 3, requires_grad=True)
    made = compiled(_plain_jsd, small, small.detach())
    return {} if made is None else {COMPILED: partial(run, made)}


def _plain_jsd(student: Tensor, teacher: Tensor) -> Tensor:
    log_q, log_p = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    q, p = log_q.exp(), log_p.exp()
    log_m = ((p + q) / 2).log()
    return (p * (log_p - log_m) + q * (log_q - log_m)).sum() / (2 * len(student))


def _plain_kl(beta: int, student: Tensor, teacher: Tensor) -> Tensor:
    sides = [student.float().log_softmax(-1), teacher.float().log_softmax(-1)]
    other, own = sides if beta == 0 else reversed(sides)
    return torch.nn.functional.kl_div(other, own, reduction="batchmean", log_target=True)
