"""The `model` and `adapter` sections of an artifact, held against the recipe's own rules. Torch-free.

`petkit.artifacts` checks the fields that the file format relies on; it stands below the sections' models, so
that their other rules are checked here: unknown methods and keys, types, bounds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from petkit.artifacts import Artifact, Manifest, read_artifact
from petkit.artifacts.reader import MANIFEST
from petkit.configuration import Config, messages
from petkit.errors import ArtifactError
from petkit.models.config import AdapterConfig, ModelConfig


class _Sections(Config):
    """The sections of a recipe that an artifact keeps."""

    model: ModelConfig
    adapter: AdapterConfig


def section_faults(manifest: Manifest) -> list[str]:
    """List what a recipe with these `model` and `adapter` sections would be refused for.

    Args:
        manifest: `petkit.json`.

    Returns:
        One sentence for each unknown key and invalid value; empty when the sections are sound.
    """
    # An artifact may leave out what has a default, and name its model under `base` alone.
    content = {"model": {"name": manifest.base.id, **manifest.model}, "adapter": manifest.adapter}
    try:
        # By way of JSON, because strict JSON takes a list for a tuple and strict Python does not.
        _Sections.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        return list(_sentences(error))
    return []


def check_sections(manifest: Manifest, folder: Path) -> None:
    """Refuse an artifact whose sections no recipe could have.

    Args:
        manifest: its `petkit.json`.
        folder: for the message.

    Raises:
        ArtifactError: one line with every fault.
    """
    faults = section_faults(manifest)
    if faults:
        raise ArtifactError(f"{folder / MANIFEST} is broken: {'; '.join(faults)}")


def read_checked(folder: Path) -> Artifact:
    """Read an artifact and check its sections too.

    Args:
        folder: the artifact.

    Returns:
        The artifact.

    Raises:
        ArtifactError: it is damaged, or its sections hold what no recipe could.
        SafetyError: a pickle, or a path that leaves the folder.
    """
    artifact = read_artifact(folder)
    check_sections(artifact.manifest, folder)
    return artifact


def _sentences(error: ValidationError) -> Iterator[str]:
    for fault in error.errors(include_url=False):
        path = tuple(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            yield messages.unknown(_Sections, path, "")
        else:
            yield messages.invalid(fault, _nowhere, _Sections)


def _nowhere(path: tuple[str, ...]) -> None:
    # A manifest has no lines that a message could name.
    return None
