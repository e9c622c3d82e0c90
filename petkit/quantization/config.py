"""The settings of `petkit quantize`. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from petkit.configuration import Config, applies_to
from petkit.models.config import Codebook


class QuantizationConfig(Config):
    """How 32-bit matrices become codes, shift and scale."""

    bits: Literal[1, 2, 4, 8]
    """Bits per weight."""

    method: Literal["nearest", "least_squares"] = "nearest"
    """nearest: shift and scale are the mean and standard deviation; least_squares: refitted to the codes."""

    codebook: Codebook = "normal_l1"
    """Quantiser levels: converged L1-Lloyd levels, or the 500-iteration table of PETL-ViT's files."""

    rounds: int = Field(default=0, ge=0, le=100, json_schema_extra=applies_to(method=("least_squares",)))
    """How often codes are chosen anew, with shift and scale refitted after that."""
