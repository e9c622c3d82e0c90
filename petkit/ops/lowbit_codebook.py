"""`lowbit_codebook`: the fixed levels that normalised weights are rounded to."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from petkit.errors import InputError

KINDS = ("normal_l1", "petl_vit")
BITS = (1, 2, 4, 8)


def lowbit_codebook(bits: int, kind: str = "normal_l1") -> Tensor:
    """Levels that minimise the mean absolute rounding error of a standard normal variable.

    Args:
        bits: 1, 2, 4 or 8 bits a code.
        kind: "normal_l1", the optimum; or "petl_vit", the table of the original checkpoints, which stops
            after 500 Lloyd steps from zero: at 8 bits far from the optimum (largest level 2.81 instead of
            3.79).

    Returns:
        Rising float32 levels (2**bits,), symmetric about zero.

    Raises:
        InputError: another number of bits or kind.

    Source:
        Jie, Wang, Deng, "Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision
        Redundancy" (ICCV 2023): each level is the conditional median of its cell, each threshold a midpoint.
    """
    levels: Tensor = levels_on(bits, kind, torch.device("cpu")).clone()
    return levels


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def levels_on(bits: int, kind: str, device: torch.device) -> Tensor:
    """The levels on a device; a shared tensor that callers must not write to."""
    if bits not in BITS:
        raise InputError(f"bits must be 1, 2, 4 or 8, got {bits!r}")
    if kind not in KINDS:
        raise InputError(f"kind must be {' or '.join(KINDS)}, got {kind!r}")
    return _levels(bits, kind, device)


@cache
def _levels(bits: int, kind: str, device: torch.device) -> Tensor:
    # A first call inside a compiler's trace or inference mode must not cache a fake or an inference tensor.
    with torch._subclasses.fake_tensor.unset_fake_temporarily(), torch.inference_mode(False):
        levels = _optimum(bits) if kind == "normal_l1" else _lloyd(bits, steps=500)
        return levels.to(device, torch.float32)


def _lloyd(bits: int, steps: int) -> Tensor:
    levels = torch.zeros(2**bits, dtype=torch.float64)
    for _ in range(steps):
        levels = torch.special.ndtri(_medians(levels))
    return (levels - levels.flip(0)) / 2


def _medians(levels: Tensor) -> Tensor:
    cumulative = torch.special.ndtr((levels[1:] + levels[:-1]) / 2)
    ends = levels.new_tensor([0.0]), levels.new_tensor([1.0])
    bounds = torch.cat([ends[0], cumulative, ends[1]])
    return (bounds[1:] + bounds[:-1]) / 2


def _optimum(bits: int) -> Tensor:
    # Lloyd's own iteration needs 10**5 steps at 8 bits, so Newton's method solves its fixed-point equations
    # instead. The start is Panter and Dite's asymptotic density, close enough for quadratic convergence.
    count = 2**bits
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    levels: Tensor = math.sqrt(2) * torch.special.ndtri(places)
    for _ in range(20):
        target = torch.special.ndtri(_medians(levels))
        slope = _density((levels[1:] + levels[:-1]) / 2) / 4
        moved = torch.diag(slope, 1) + torch.diag(slope, -1)
        moved[:-1, :-1] += torch.diag(slope)
        moved[1:, 1:] += torch.diag(slope)
        jacobian = torch.eye(count, dtype=torch.float64) - moved / _density(target)[:, None]
        levels = levels - torch.linalg.solve(jacobian, levels - target)
    return (levels - levels.flip(0)) / 2


def _density(x: Tensor) -> Tensor:
    density: Tensor = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    return density
