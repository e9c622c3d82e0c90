"""Modules on top of the operators, for models of one's own.

Names load on first use, so that importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petkit.nn.beam_crf import BeamCRF
    from petkit.nn.constraints import Constraints, bio_constraints
    from petkit.nn.crf import CRF

__all__ = ["CRF", "BeamCRF", "Constraints", "bio_constraints"]

_HOMES = {
    "BeamCRF": "beam_crf",
    "CRF": "crf",
    "Constraints": "constraints",
    "bio_constraints": "constraints",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'petkit.nn' has no attribute {name!r}")
    return getattr(import_module(f"petkit.nn.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
