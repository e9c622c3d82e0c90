"""Inputs of the CRF ops and how to read a row of them for the reference."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.reference import crf as reference


class Inputs(NamedTuple):
    emissions: Tensor
    mask: Tensor
    transitions: Tensor
    start: Tensor
    end: Tensor


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Batch, time and tags: small enough to enumerate, around vector widths, with more tags than a byte can count.
SMALL = [(1, 1, 1), (2, 1, 3), (3, 4, 2), (6, 5, 3), (2, 6, 1), (0, 3, 2)]
LARGE = [(5, 33, 16), (9, 17, 17), (3, 70, 63), (2, 9, 65), (6, 12, 130), (2, 5, 300)]

# Bounds of the ops: forward variables are float32 numbers of up to some tens, a step rounds them by about
# 1e-7 of their size, and errors of many steps partly cancel.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6, torch.float64: 1e-12}


def inputs(batch, time, tags, dtype=torch.float32, seed=0, gaps=True, scale=1.0) -> Inputs:
    """Random scores and masks: the first row full, the others with holes and short."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    emissions, transitions = normal(batch, time, tags).to(dtype), normal(tags, tags).to(wide)
    start, end = normal(tags).to(wide), normal(tags).to(wide)
    mask = torch.rand((batch, time), generator=generator) < 0.7
    if not gaps:
        lengths = torch.randint(1, time + 1, (batch, 1), generator=generator)
        mask = torch.arange(time) < lengths
    mask[:, :1] = True
    mask[:1] = True
    return Inputs(emissions, mask, transitions, start, end)


def rows(arguments: Inputs):
    """Emissions (time, tags) of the set positions and parameters of each row, as the reference wants them."""
    emissions, mask, *parameters = arguments
    exact = tuple(part.detach().double().numpy() for part in parameters)
    for row, valid in zip(emissions.detach().double().numpy(), mask.numpy(), strict=True):
        yield row[valid], exact


@functools.cache
def long_case(time):
    """A long row and the reference's answer to it."""
    arguments = inputs(1, time, 4)
    return arguments, reference.recursed(*next(rows(arguments)))


def close(found: Tensor, expected, dtype, scale=1.0):
    """Compare within the tolerance of the dtype, relative to the size of what is compared."""
    expected = np.asarray(expected)
    tolerance = TOLERANCE[dtype] * scale
    np.testing.assert_allclose(found.detach().double().numpy(), expected, rtol=tolerance, atol=tolerance)
