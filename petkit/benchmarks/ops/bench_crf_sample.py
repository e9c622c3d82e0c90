"""Tag sequences drawn from a linear-chain CRF, against the same in plain torch."""

from __future__ import annotations

from functools import partial

import torch

from petkit import ops
from petkit.benchmarks.harness import Case
from petkit.benchmarks.ops._crf_inputs import BATCH, TIME, inputs
from petkit.ops import _library

SAMPLES = 16


def cases() -> list[Case]:
    """16 tags."""
    arguments = inputs(16).arguments
    uniforms = torch.rand(SAMPLES, BATCH, TIME, dtype=torch.float64)
    default = _library.default_of("crf_sample")
    return [
        Case(
            f"crf_sample {BATCH}x{TIME}, 16 tags, {SAMPLES} samples",
            partial(ops.crf_sample, *arguments, SAMPLES),
            {"plain torch": partial(default, *arguments, uniforms)},
        )
    ]
