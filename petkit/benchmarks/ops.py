"""The cases of `petkit bench ops`: every low-bit op against what a user would write or install instead."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from petkit import ops
from petkit.benchmarks.harness import Case, Run


def quantize_cases() -> list[Case]:
    """Quantize and pack, and unpack, one 64 MiB float32 matrix."""
    weight = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0))
    cases = []
    for bits in (1, 2, 4, 8):
        packed, shift, scale = ops.lowbit_quantize(weight, bits)
        arguments = (packed, shift, scale, bits, weight.shape[1])
        goals = {"bandwidth": 0.4} if bits == 1 else {}
        # The moments must be known before the first code is: two reads. Unpacking writes what it makes.
        cases.append(
            Case(
                f"lowbit_quantize {bits} bit 4096x4096",
                lambda bits=bits: ops.lowbit_quantize(weight, bits),
                {"torch bucketize + pack": _torch_quantize(weight, bits)},
                2 * weight.nbytes + packed.nbytes,
                goals,
            )
        )
        cases.append(
            Case(
                f"lowbit_dequantize {bits} bit 4096x4096",
                lambda arguments=arguments: ops.lowbit_dequantize(*arguments),
                {"torch unpack + index": _torch_dequantize(*arguments)},
                weight.nbytes + packed.nbytes,
                goals,
            )
        )
    return cases


def _torch_quantize(weight: Tensor, bits: int) -> Run:
    levels = ops.lowbit_codebook(bits)
    edges = (levels[1:] + levels[:-1]) / 2
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)

    def run() -> Tensor:
        std, mean = torch.std_mean(weight)
        codes = torch.bucketize((weight - mean) / (std + 1e-5), edges).to(torch.uint8)
        return (codes.view(weight.shape[0], -1, 8 // bits) << shifts).sum(-1, dtype=torch.uint8)

    return run


def _torch_dequantize(packed: Tensor, shift: Tensor, scale: Tensor, bits: int, in_features: int) -> Run:
    table = shift + scale * ops.lowbit_codebook(bits)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    mask = (1 << bits) - 1

    def run() -> Tensor:
        codes = (packed.unsqueeze(-1) >> shifts) & mask
        return table[codes.flatten(1)[:, :in_features].int()]

    return run


def linear_cases() -> list[Case]:
    """A packed 4096x4096 matrix times 1 and 32 rows, against float32 `F.linear`."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4096, 4096, generator=generator)
    cases = []
    for bits in (1, 2, 4, 8):
        packed, shift, scale = ops.lowbit_quantize(weight, bits)
        for rows in (1, 32):
            x = torch.randn(rows, 4096, generator=generator)
            goals = {"F.linear float32": 8.0 if rows == 1 else 1.0} if bits == 1 else {}
            cases.append(
                Case(
                    f"lowbit_linear {bits} bit 4096x4096, {rows} rows",
                    lambda x=x, p=packed, s=shift, c=scale, bits=bits: ops.lowbit_linear(x, p, s, c, bits),
                    {"F.linear float32": lambda x=x: linear(x, weight)},
                    packed.nbytes + x.nbytes + rows * 4096 * 4,
                    goals,
                )
            )
    return cases


def bank_cases() -> list[Case]:
    """256 samples, each with its own adapter (768 wide, bottleneck 8), against two ways in torch."""
    generator = torch.Generator().manual_seed(0)
    adapters, hidden, width = 256, 8, 768
    down = torch.randn(adapters, hidden, width, generator=generator) * 0.03
    up = torch.randn(adapters, width, hidden, generator=generator) * 0.03
    scaling = torch.ones(adapters)
    order = torch.randperm(adapters, generator=generator)
    cases = []
    for tokens in (1, 197):
        x = torch.randn(adapters * tokens, width, generator=generator)
        ids = order.repeat_interleave(tokens)
        for bits in (1, 4):
            bank = ops.AdapterBank.from_dense(down, up, scaling, bits, activation="identity")
            goals = {}
            if bits == 1:
                goals = {"peft's loop": 10.0} if tokens == 1 else {"gather + bmm": 3.0}
            cases.append(
                Case(
                    f"adapter_bank {bits} bit, 256 samples x {tokens} tokens of 256 adapters",
                    lambda x=x, ids=ids, bank=bank: ops.adapter_bank(x, ids, bank),
                    {
                        "peft's loop": _peft_loop(x.view(adapters, tokens, width), order, down, up),
                        "gather + bmm": _gather_bmm(x.view(adapters, tokens, width), order, down, up),
                    },
                    2 * x.nbytes,
                    goals,
                )
            )
    return cases


def _peft_loop(x: Tensor, order: Tensor, down: Tensor, up: Tensor) -> Run:
    """What peft 0.21 does with `adapter_names`: for each adapter index, two linears, indexed add."""
    groups: dict[int, list[int]] = {}
    for row, adapter in enumerate(order.tolist()):
        groups.setdefault(adapter, []).append(row)
    out = torch.zeros_like(x)

    def run() -> Tensor:
        for adapter, rows in groups.items():
            out[rows] += linear(linear(x[rows], down[adapter]), up[adapter])
        return out

    return run


def _gather_bmm(x: Tensor, order: Tensor, down: Tensor, up: Tensor) -> Run:
    def run() -> Tensor:
        hidden = torch.bmm(x, down[order].transpose(1, 2))
        return torch.bmm(hidden, up[order].transpose(1, 2))

    return run


def fake_quantize_cases() -> list[Case]:
    """The quantiser inside a training step, forward and backward, on one adapter matrix of a ViT-B."""
    weight = torch.randn(32, 768, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gradient = torch.ones(32, 768)
    cases = []
    for bits in (1, 8):
        levels = ops.lowbit_codebook(bits)
        edges = (levels[1:] + levels[:-1]) / 2

        def ours(bits: int = bits) -> None:
            ops.lowbit_fake_quantize(weight, bits).backward(gradient)

        def eager(levels: Tensor = levels, edges: Tensor = edges) -> None:
            std, mean = torch.std_mean(weight)
            normal = (weight - mean) / (std + 1e-5)
            quantized = levels[torch.bucketize(normal.detach(), edges)]
            (mean + std * (normal + (quantized - normal).detach())).backward(gradient)

        cases.append(Case(f"lowbit_fake_quantize {bits} bit 32x768, both ways", ours, {"torch eager": eager}))
    return cases


GROUPS: dict[str, Callable[[], list[Case]]] = {
    "lowbit_quantize": quantize_cases,
    "lowbit_linear": linear_cases,
    "lowbit_fake_quantize": fake_quantize_cases,
    "adapter_bank": bank_cases,
}
"""Op group to its cases. A new op adds one line."""
