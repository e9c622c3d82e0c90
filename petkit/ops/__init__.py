"""Operators: each file is one op with its public function, fake, autograd and pure-torch default.

Names load on first use, so that importing this package does not import torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petkit.ops._library import backend
    from petkit.ops.adapter_bank import AdapterBank, adapter_bank
    from petkit.ops.beam_crf_log_partition import beam_crf_log_partition
    from petkit.ops.beam_crf_viterbi import beam_crf_viterbi
    from petkit.ops.crf_kbest import crf_kbest
    from petkit.ops.crf_log_partition import crf_log_partition
    from petkit.ops.crf_marginals import crf_marginals
    from petkit.ops.crf_sample import crf_sample
    from petkit.ops.crf_viterbi import crf_viterbi
    from petkit.ops.divergence import Divergence, divergence
    from petkit.ops.finite_rows import finite_rows
    from petkit.ops.lowbit_codebook import lowbit_codebook
    from petkit.ops.lowbit_dequantize import lowbit_dequantize
    from petkit.ops.lowbit_fake_quantize import lowbit_fake_quantize
    from petkit.ops.lowbit_linear import lowbit_linear
    from petkit.ops.lowbit_quantize import lowbit_quantize
    from petkit.ops.magnitude_counts import magnitude_counts
    from petkit.ops.magnitudes_within import magnitudes_within
    from petkit.ops.merge_deltas import merge_deltas
    from petkit.ops.merge_linear import merge_linear
    from petkit.ops.selected_log_probs import SelectedLogProbs, selected_log_probs
    from petkit.ops.token_statistics import TokenStatistics, token_statistics

__all__ = [
    "AdapterBank",
    "Divergence",
    "SelectedLogProbs",
    "TokenStatistics",
    "adapter_bank",
    "backend",
    "beam_crf_log_partition",
    "beam_crf_viterbi",
    "crf_kbest",
    "crf_log_partition",
    "crf_marginals",
    "crf_sample",
    "crf_viterbi",
    "divergence",
    "finite_rows",
    "lowbit_codebook",
    "lowbit_dequantize",
    "lowbit_fake_quantize",
    "lowbit_linear",
    "lowbit_quantize",
    "magnitude_counts",
    "magnitudes_within",
    "merge_deltas",
    "merge_linear",
    "selected_log_probs",
    "token_statistics",
]

_HOMES = {
    "AdapterBank": "adapter_bank",
    "Divergence": "divergence",
    "SelectedLogProbs": "selected_log_probs",
    "TokenStatistics": "token_statistics",
    "backend": "_library",
}


class _Operators(ModuleType):
    """A package whose attribute `f` is the function f, although a submodule has the same name.

    The import system sets a submodule as an attribute of its package; where both share a name the function
    must win, whatever is imported first.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in __all__:
            value = getattr(value, name)
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'petkit.ops' has no attribute {name!r}")
    return getattr(import_module(f"petkit.ops.{_HOMES.get(name, name)}"), name)


def __dir__() -> list[str]:
    return __all__


sys.modules[__name__].__class__ = _Operators
