"""The ten best tag sequences of a linear-chain CRF, against list Viterbi in plain torch."""

from __future__ import annotations

from functools import partial

from petkit import ops
from petkit.benchmarks.harness import Case
from petkit.benchmarks.ops._crf_inputs import BATCH, TIME, inputs
from petkit.ops import _library

K = 10


def cases() -> list[Case]:
    """16 tags."""
    arguments = inputs(16).arguments
    default = _library.default_of("crf_kbest")
    return [
        Case(
            f"crf_kbest {BATCH}x{TIME}, 16 tags, {K} best",
            partial(ops.crf_kbest, *arguments, K),
            {"plain torch": partial(default, *arguments, K)},
        )
    ]
