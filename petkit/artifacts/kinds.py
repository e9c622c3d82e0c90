"""The `petkit.json` of artifacts other than adapters: the kind it states, and its content. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from petkit.artifacts.manifest import MAX_MANIFEST
from petkit.artifacts.reader import MANIFEST, small_file
from petkit.artifacts.strict_json import parse_json
from petkit.errors import ArtifactError, InputError, PetkitError

Content = TypeVar("Content", bound=BaseModel)


def kind_of(folder: str | os.PathLike[str]) -> str | None:
    """The kind that a folder's `petkit.json` states, sound or not; None where it states none."""
    try:
        content = parse_json(small_file(Path(folder), MANIFEST, MAX_MANIFEST))
    except (OSError, PetkitError, ValueError, RecursionError):
        return None
    kind = content.get("kind") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) else None


def read_kind(folder: Path, kind: str, model: type[Content]) -> Content:
    """Read a `petkit.json` of one kind.

    Args:
        folder: the artifact.
        kind: that it must state.
        model: what it must hold.

    Returns:
        Its content.

    Raises:
        ArtifactError: it is broken, of another kind or of a later version.
        InputError: there is none.
    """
    try:
        content: Any = parse_json(small_file(folder, MANIFEST, MAX_MANIFEST))
    except FileNotFoundError:
        raise InputError(f"{folder} is no {kind}: it has no {MANIFEST}") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{folder / MANIFEST} is not valid JSON: {str(error)[:200]}") from error
    found = content.get("kind") if isinstance(content, dict) else None
    if found != kind:
        raise ArtifactError(f"{folder} must hold a {kind}, its {MANIFEST} says kind {str(found)[:40]!r}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"]))
        raise ArtifactError(f"{folder / MANIFEST} is broken: {place}: {fault['msg']}") from error
