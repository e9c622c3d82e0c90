"""A router on disk: its settings and network, bound to the weights of a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from petkit.artifacts.checks import CHECKS, MAX_CHECKS, Check, parse_checks
from petkit.artifacts.manifest import Base
from petkit.artifacts.provenance import step
from petkit.artifacts.reader import CONFIG, MANIFEST, small_file
from petkit.artifacts.router import NETWORK, RouterManifest, read_router, write_router
from petkit.configuration import load_yaml
from petkit.configuration.effects import effective
from petkit.configuration.messages import shown_apart
from petkit.errors import ArtifactError, ConfigError, InputError
from petkit.methods.edrm.calibration import Reached
from petkit.methods.edrm.config import RouterConfig
from petkit.methods.edrm.learned import MlpRouter, read_network
from petkit.methods.edrm.rule import Rule

log = logging.getLogger(__name__)

MAX_NETWORK = 2**20
# What the fitted numbers hold for: sums over other probes, prompts or estimates lie elsewhere.
FITTED_WITH = (
    "level",
    "dataset_point",
    "chat_template",
    "stop",
    "prompts.direct",
    "prompts.standard",
    "prompts.cot",
    "prompts.system",
    "served.top_log_probs",
)


def save_router(
    folder: Path,
    base: Base,
    rule: Rule,
    reached: Reached,
    data: Sequence[Path],
    files: Mapping[str, str],
) -> None:
    """Write a calibrated router, bound to the model's weights.

    Args:
        folder: to write, not there yet or empty.
        base: the model that it was calibrated with.
        rule: its settings, the fitted thresholds or the network among them.
        reached: what was fitted, and what came out on the calibration's own questions.
        data: files of the questions.
        files: further files by name.

    Raises:
        InputError: the folder is not empty, or cannot be written.
    """
    own = effective(rule.config)
    lineage = step(
        "route calibrate", {**own, "objective": vars(reached.objective)}, {p.name: p for p in data}
    )
    manifest = RouterManifest(base=base, lineage=(lineage,), router=own)
    check = Check("limit", reached.is_met, f"{reached.text} on the calibration's questions")
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
        # What is wrong of settings taken together has no place of its own.
        message = fault["msg"].removeprefix("Value error, ")
        told = ": ".join(filter(None, (".".join(map(str, fault["loc"])), message)))
        raise ArtifactError(f"{folder} has broken settings: {told}") from error


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


def check_fitted(folder: Path, config: RouterConfig) -> None:
    """Refuse settings that a router's thresholds, or its network, were not fitted with.

    Args:
        folder: the router.
        config: its settings, perhaps changed.

    Raises:
        ArtifactError: the router is broken.
        ConfigError: one was changed; with both values.
        InputError: there is none.
    """
    own = stored_config(folder)
    if own.probe_tokens != config.probe_tokens:
        raise ConfigError(
            f"{folder} was calibrated with probes of {own.probe_tokens} tokens, got {config.probe_tokens}: "
            "leave --probe-tokens out, or calibrate a router with it"
        )
    for key in FITTED_WITH:
        fitted, given = _value(own, key), _value(config, key)
        if fitted != given:
            own_text, given_text = shown_apart(fitted, given)
            raise ConfigError(
                f"{folder} was calibrated with {key} {own_text}, got {given_text}: leave it out, or "
                "calibrate a router with it"
            )


def check_probes(folder: Path, records: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Refuse trajectories of another length than the probes that a router was fitted with.

    Args:
        folder: the router.
        records: with `id` and `entropies`; only where `finished` is true, since the answer ended in its
            probe, may there be fewer.
        file: where they are from, for the message.

    Raises:
        ArtifactError: the router is broken.
        InputError: there is none, or a trajectory is longer, or shorter and not finished; with both lengths.
    """
    most = stored_config(folder).probe_tokens
    for record in records:
        length, is_over = len(record["entropies"]), record.get("finished") is True
        if length > most or (length < most and not is_over):
            kind = "" if length > most else " of an answer that is not finished"
            raise InputError(
                f"{folder} was calibrated with probes of {most} tokens, got {length}{kind} in {file}, id "
                f"{record['id']}: probe with --probe-tokens {most}, or calibrate a router with it"
            )


def _value(config: RouterConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return list(value) if isinstance(value, tuple) else value


def warn_of_failed_checks(folder: Path) -> None:
    """Log a warning for what did not hold when a router was calibrated.

    Args:
        folder: the router.

    Raises:
        ArtifactError: its `checks.json` is broken.
    """
    try:
        content = small_file(folder, CHECKS, MAX_CHECKS)
    except FileNotFoundError:
        return
    for check in parse_checks(content, str(folder / CHECKS)):
        if not check.ok:
            log.warning("%s did not keep its %s when it was calibrated: %s", folder, check.name, check.detail)


def read_rule(folder: Path, config: RouterConfig) -> Rule:
    """The rule of a router, with its settings as they were read and perhaps changed.

    Args:
        folder: the router.
        config: its settings.

    Returns:
        The rule, with the network where `rule` is learned.

    Raises:
        ArtifactError: the network is broken, or missing.
        ConfigError: a setting was changed that it was fitted with.
    """
    check_fitted(folder, config)
    warn_of_failed_checks(folder)
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
