"""A router on disk: its settings and network, bound to the weights of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from petkit.artifacts.checks import Check
from petkit.artifacts.manifest import Base
from petkit.artifacts.provenance import step
from petkit.artifacts.reader import CONFIG, MANIFEST, small_file
from petkit.artifacts.router import NETWORK, RouterManifest, read_router, write_router
from petkit.configuration import load_yaml
from petkit.configuration.effects import effective
from petkit.errors import ArtifactError
from petkit.methods.edrm.calibration import Objective
from petkit.methods.edrm.config import RouterConfig
from petkit.methods.edrm.learned import MlpRouter, read_network
from petkit.methods.edrm.rule import Rule

MAX_NETWORK = 2**20


def save_router(
    folder: Path,
    base: Base,
    rule: Rule,
    objective: Objective,
    met: bool,
    data: Sequence[Path],
    files: Mapping[str, str],
) -> None:
    """Write a calibrated router, bound to the model's weights.

    Args:
        folder: to write, not there yet or empty.
        base: the model that it was calibrated with.
        rule: its settings, the fitted thresholds or the network among them.
        objective: what was fitted.
        met: whether its limit holds on the calibration's own questions.
        data: files of the questions.
        files: further files by name.

    Raises:
        InputError: the folder is not empty, or cannot be written.
    """
    own = effective(rule.config)
    lineage = step("route calibrate", {**own, "objective": vars(objective)}, {p.name: p for p in data})
    manifest = RouterManifest(base=base, lineage=(lineage,), router=own)
    check = Check("limit", met, f"{objective.kind} {objective.limit:g} on the calibration's questions")
    content = {name: text.encode() for name, text in files.items()}
    if rule.network is not None:
        content[NETWORK] = rule.network.to_bytes()
    write_router(folder, manifest, [check], content)


def check_model(folder: Path, name: str, sha256: str) -> None:
    """Refuse a router that was calibrated with another model.

    Args:
        folder: the router.
        name: of the model that will answer, for the message.
        sha256: of that model.

    Raises:
        ArtifactError: the router is broken, or was made for other weights.
        InputError: there is none.
    """
    base = read_router(folder).base
    if base.sha256 != sha256:
        raise ArtifactError(
            f"{folder} was calibrated for {base.id} with sha256 {base.sha256}, but {name} has {sha256}: "
            "calibrate a router for it"
        )


def stored_config(folder: Path) -> RouterConfig:
    """The settings that a router was calibrated with.

    Args:
        folder: the router.

    Returns:
        Its settings, as its `petkit.json` holds them.

    Raises:
        ArtifactError: the router is broken.
        InputError: there is none.
    """
    try:
        return RouterConfig.model_validate(read_router(folder).router)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"]))
        raise ArtifactError(f"{folder} has broken settings: {place}: {fault['msg']}") from error


def settings_file(folder: Path) -> Path:
    """The YAML file of a router's settings, for settings to be put upon.

    Args:
        folder: the router.

    Returns:
        Its `config.yaml`.

    Raises:
        ArtifactError: the router is broken, or the file says something else than its `petkit.json`.
        InputError: there is none.
    """
    stored_config(folder)
    path = folder / CONFIG
    if load_yaml(path).data != read_router(folder).router:
        raise ArtifactError(f"{folder} is broken: its {CONFIG} is not what its {MANIFEST} records")
    return path


def read_rule(folder: Path, config: RouterConfig) -> Rule:
    """The rule of a router, with its settings as they were read and perhaps changed.

    Args:
        folder: the router.
        config: its settings.

    Returns:
        The rule, with the network where `rule` is learned.

    Raises:
        ArtifactError: the network is broken, or missing.
    """
    return Rule(config, _network(folder) if config.rule == "learned" else None)


def _network(folder: Path) -> MlpRouter:
    try:
        content = small_file(folder, NETWORK, MAX_NETWORK)
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} must hold {NETWORK} for rule learned, got none: make one with `petkit route calibrate "
            "--learned`"
        ) from None
    return read_network(content, folder / NETWORK)
