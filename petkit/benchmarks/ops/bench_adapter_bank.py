"""256 samples, each with its own adapter (768 wide, bottleneck 8), against peft's way and gather + bmm."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from petkit import ops
from petkit.benchmarks.harness import Case

LOOP, BMM = "peft's loop", "gather + bmm"


def cases() -> list[Case]:
    """One token a sample, as in decoding, and 197, as in a ViT.

    The add-on alone, without the base layer: added to that layer's output, and as a new tensor.
    """
    generator = torch.Generator().manual_seed(0)
    adapters, hidden, width = 256, 8, 768
    down = torch.randn(adapters, hidden, width, generator=generator) * 0.03
    up = torch.randn(adapters, width, hidden, generator=generator) * 0.03
    order = torch.randperm(adapters, generator=generator)
    made = []
    for tokens, goal in ((1, {LOOP: 10.0}), (197, {BMM: 3.0})):
        x = torch.randn(adapters, tokens, width, generator=generator)
        flat, y, ids = x.view(-1, width), torch.zeros_like(x), order.repeat_interleave(tokens)
        peers = {
            LOOP: partial(_peft_loop, x, _groups(order), down, up, y),
            BMM: partial(_gather_bmm, x, order, down, up, y),
        }
        for bits in (1, 4):
            bank = ops.AdapterBank.from_dense(down, up, torch.ones(adapters), bits, activation="identity")
            name = f"adapter_bank {bits} bit, 256 samples x {tokens} tokens of 256 adapters"
            add = partial(ops.adapter_bank, flat, ids, bank, add_to=y.view(-1, width))
            made.append(Case(f"{name}, added", add, peers, 3 * x.nbytes, goal if bits == 1 else {}))
        new = partial(_gather_bmm, x, order, down, up, None)
        bank = ops.AdapterBank.from_dense(down, up, torch.ones(adapters), 1, activation="identity")
        name = f"adapter_bank 1 bit, 256 samples x {tokens} tokens of 256 adapters, new tensor"
        made.append(Case(name, partial(ops.adapter_bank, flat, ids, bank), {BMM: new}, 2 * x.nbytes))
    return made


def _groups(order: Tensor) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for row, adapter in enumerate(order.tolist()):
        groups.setdefault(adapter, []).append(row)
    return groups


def _peft_loop(x: Tensor, groups: dict[int, list[int]], down: Tensor, up: Tensor, out: Tensor) -> Tensor:
    """What peft 0.21 does with `adapter_names`: index, two linears and an indexed add for each adapter."""
    for adapter, rows in groups.items():
        out[rows] += linear(linear(x[rows], down[adapter]), up[adapter])
    return out


def _gather_bmm(x: Tensor, order: Tensor, down: Tensor, up: Tensor, add_to: Tensor | None) -> Tensor:
    result = torch.bmm(torch.bmm(x, down[order].transpose(1, 2)), up[order].transpose(1, 2))
    return result if add_to is None else add_to.add_(result)
