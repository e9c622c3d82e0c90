"""A plain expression compiled by inductor, as a peer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

log = logging.getLogger(__name__)


def compiled(expression: Callable[..., Any], *example: Any) -> Callable[..., Any] | None:
    """Compile an expression; None, and a warning, where no compiler is at hand.

    Args:
        expression: a function of tensors.
        example: small arguments to try it with.
    """
    made: Callable[..., Any] = torch.compile(expression)
    try:
        made(*example)
    except Exception as error:
        # Inductor fails in many ways, most often for want of a C++ compiler.
        log.warning("torch.compile does not work here and is left out: %s", type(error).__name__)
        return None
    return made
