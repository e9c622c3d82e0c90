"""Recipes: the YAML reader, the precedence of settings, and errors with line numbers. Torch-free."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of every configuration section: frozen, closed to unknown keys, documented field by field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


def applies_to(**conditions: tuple[Any, ...]) -> dict[str, Any]:
    """Field metadata: the key has an effect only while sibling fields hold one of the given values."""
    return {"applies_to": {name: list(values) for name, values in conditions.items()}}
