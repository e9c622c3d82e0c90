"""Every check of an artifact that needs no model: `verify` lists the outcome of each instead of raising."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from petkit.artifacts import translator, whole_model
from petkit.artifacts.checks import CHECKS, MAX_CHECKS, Check, parse_checks
from petkit.artifacts.manifest import Manifest
from petkit.artifacts.model_folder import VOCABULARY, read_vocabulary
from petkit.artifacts.paths import PICKLE_SUFFIXES
from petkit.artifacts.reader import (
    MANIFEST,
    TENSORS,
    artifact_folder,
    manifest_faults,
    module_shapes,
    pair_faults,
    read_config,
    read_manifest,
    small_file,
    split_tensors,
)
from petkit.artifacts.router import NETWORK, RouterManifest, is_router, read_network_file, read_router
from petkit.artifacts.tagger import WEIGHTS, TaggerManifest, is_tagger, read_manifest_of, read_weights
from petkit.artifacts.tensor_file import TensorFile, read_tensor_file
from petkit.artifacts.translator import is_translator
from petkit.errors import ArtifactError, PetkitError, SafetyError

MAX_ENTRIES = 100_000
Result = TypeVar("Result")


def verify(
    folder: str | os.PathLike[str],
    base_sha256: str | None = None,
    examine: Callable[[Manifest], Sequence[str]] | None = None,
) -> list[Check]:
    """Check an artifact folder as far as that is possible without its base model.

    Args:
        folder: the artifact.
        base_sha256: hash of the base model it is meant for; compared with the one it was trained on.
        examine: further faults of the manifest, such as a higher layer finds in the recipe's sections.

    Returns:
        One entry for each check that could be made, a failed one with `ok` false and the reason. A check that
        needs what an earlier one found missing is left out.

    Raises:
        InputError: there is no such folder.
    """
    path = artifact_folder(folder)
    checks = [*_folder_checks(path)]
    if is_router(path):
        return checks + _router_checks(path, base_sha256)
    if is_tagger(path):
        return checks + _tagger_checks(path, base_sha256)
    if is_translator(path):
        return checks + _translator_checks(path, base_sha256)
    if whole_model.is_whole(path):
        return checks + _whole_checks(path, base_sha256)
    manifest = _attempt(checks, "petkit.json", lambda: _manifest(path, examine), _describe)
    content = _attempt(checks, "tensor file", lambda: read_tensor_file(path, TENSORS), _describe_file)
    if manifest is not None and content is not None:
        checks.append(_same_hash(manifest, content))
    if content is not None:
        checks += _tensor_checks(path, content, manifest)
    _attempt(checks, "config.yaml", lambda: read_config(path), _describe_config)
    checks += _recorded_checks(path)
    if base_sha256 is not None and manifest is not None:
        checks.append(_same_base(manifest, base_sha256))
    return checks


def _router_checks(path: Path, base_sha256: str | None) -> list[Check]:
    checks: list[Check] = []
    router = _attempt(checks, "petkit.json", lambda: read_router(path), lambda r: f"router for {r.base.id}")
    if router is not None and router.router.get("rule") == "learned":
        _attempt(checks, NETWORK, lambda: read_network_file(path), lambda count: f"{count} finite tensors")
    checks += _recorded_checks(path)
    if base_sha256 is not None and router is not None:
        checks.append(_same_base(router, base_sha256))
    return checks


def _tagger_checks(path: Path, base_sha256: str | None) -> list[Check]:
    checks: list[Check] = []
    manifest = _attempt(checks, "petkit.json", lambda: read_manifest_of(path), _describe_tagger)
    if manifest is not None:
        _attempt(
            checks,
            WEIGHTS,
            lambda: read_weights(path, manifest),
            lambda found: (
                f"{len(found[0]):,} packed matrices and {len(found[1]):,} dense tensors, whole and finite"
            ),
        )
        if manifest.base is None:
            _attempt(checks, VOCABULARY, lambda: _vocabulary(path), lambda size: f"{size:,} words")
    _attempt(checks, "config.yaml", lambda: read_config(path), _describe_config)
    checks += _recorded_checks(path)
    if base_sha256 is not None and manifest is not None:
        checks.append(_same_base(manifest, base_sha256))
    return checks


def _translator_checks(path: Path, base_sha256: str | None) -> list[Check]:
    checks: list[Check] = []
    manifest = _attempt(
        checks,
        "petkit.json",
        lambda: translator.read_translator_manifest(path),
        lambda found: f"valid, schema version {found.schema_version}: translator",
    )
    if manifest is not None:
        _attempt(
            checks,
            translator.WEIGHTS,
            lambda: translator.read_weights(path, manifest),
            lambda found: f"{len(found):,} tensors, whole and finite",
        )
    _attempt(checks, VOCABULARY, lambda: translator.required_vocabulary(path), lambda _: "valid JSON")
    _attempt(checks, "config.yaml", lambda: read_config(path), _describe_config)
    checks += _recorded_checks(path)
    if base_sha256 is not None:
        checks.append(Check("base sha256", False, "a translator has no base: all of its weights are its own"))
    return checks


def _whole_checks(path: Path, base_sha256: str | None) -> list[Check]:
    checks: list[Check] = []
    manifest = _attempt(
        checks,
        "petkit.json",
        lambda: whole_model.read_whole(path),
        lambda found: f"valid, schema version {found.schema_version}: {found.origin}",
    )
    tensors = _attempt(
        checks,
        "shards",
        lambda: whole_model.whole_tensors(path),
        lambda found: (
            f"{len(found):,} tensors in {len(whole_model.shards_of(path))} files without gap or overlap"
        ),
    )
    if manifest is not None and tensors is not None:
        _attempt(
            checks,
            "weights sha256",
            lambda: whole_model.check_weights(path, manifest),
            lambda _: f"the shards have the one in petkit.json, {manifest.weights_sha256}",
        )
    if manifest is not None:
        _attempt(
            checks,
            "files sha256",
            lambda: whole_model.check_files(path, manifest),
            lambda _: f"{len(manifest.files)} files beside the weights are as they were written",
        )
    _attempt(checks, "config.yaml", lambda: read_config(path), _describe_config)
    checks += _recorded_checks(path)
    if base_sha256 is not None:
        checks.append(Check("base sha256", False, "a whole model holds all of its weights: it has no base"))
    return checks


def _describe_tagger(manifest: TaggerManifest) -> str:
    base = f" for {manifest.base.id}" if manifest.base else ""
    return f"valid, schema version {manifest.schema_version}: tagger{base} of {len(manifest.labels)} labels"


def _vocabulary(path: Path) -> int:
    content = read_vocabulary(path)
    if not isinstance(content, dict) or not isinstance(content.get("words"), list):
        raise ArtifactError(f"{path / VOCABULARY} must hold the words that the tagger knows: copy it again")
    return len(content["words"])


def _attempt(
    checks: list[Check], name: str, action: Callable[[], Result], describe: Callable[[Result], str]
) -> Result | None:
    """Append the outcome of an action as a check, and return its result when it has one."""
    try:
        result = action()
    except FileNotFoundError as error:
        detail = f"{error.filename} is missing: copy it from where the artifact was written"
        checks.append(Check(name, False, detail, ArtifactError.exit_code))
    except PetkitError as error:
        checks.append(Check(name, False, str(error), error.exit_code))
    else:
        checks.append(Check(name, True, describe(result)))
        return result
    return None


def _manifest(path: Path, examine: Callable[[Manifest], Sequence[str]] | None) -> Manifest:
    manifest = read_manifest(path)
    faults = examine(manifest) if examine else ()
    if faults:
        raise ArtifactError(f"{path / MANIFEST} is broken: {'; '.join(faults)}")
    return manifest


def _describe(manifest: Manifest) -> str:
    return f"valid, schema version {manifest.schema_version}: {manifest.kind} for {manifest.base.id}"


def _describe_file(content: TensorFile) -> str:
    size = len(content.head) + content.payload.size
    return f"{len(content.tensors):,} tensors fill its {size:,} bytes without gap or overlap"


def _describe_config(config: dict[str, Any]) -> str:
    return f"valid YAML of {len(config)} top-level keys"


def _folder_checks(path: Path) -> Iterator[Check]:
    entries = list(itertools.islice(_walk(path), MAX_ENTRIES))
    root = path.resolve()
    outside = [entry for entry in entries if entry.is_symlink() and not entry.resolve().is_relative_to(root)]
    pickles = [entry for entry in entries if entry.suffix in PICKLE_SUFFIXES]
    for name, bad, remedy in (
        ("no symlink leads out", outside, "replace each link by its file"),
        ("no pickles", pickles, "remove each, for loading one can run code"),
    ):
        detail = (
            f"{_listed(bad, path)}: {remedy}" if bad else f"none among {len(entries):,} files and folders"
        )
        yield Check(name, not bad, detail, SafetyError.exit_code)


def _listed(entries: Sequence[Path], folder: Path) -> str:
    names = ", ".join(str(entry.relative_to(folder)) for entry in entries[:5])
    return names + (f" and {len(entries) - 5:,} more" if len(entries) > 5 else "")


def _walk(path: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(path, followlinks=False):
        yield from (Path(folder) / name for name in (*folders, *files))


def _same_hash(manifest: Manifest, content: TensorFile) -> Check:
    found, stated = content.sha256(), manifest.tensors_sha256
    detail = f"the file has the one in petkit.json, {found}"
    if found != stated:
        detail = (
            f"the file has {found}, petkit.json says {stated}: it was altered or exchanged, copy it again"
        )
    return Check("tensors sha256", found == stated, detail, ArtifactError.exit_code)


def _tensor_checks(path: Path, content: TensorFile, manifest: Manifest | None) -> Iterator[Check]:
    try:
        packed, dense = split_tensors(content, str(path))
    except ArtifactError as error:
        yield Check("tensor values", False, str(error), error.exit_code)
        return
    counts = f"{len(packed):,} packed matrices and {len(dense):,} dense tensors"
    yield Check("tensor values", True, f"{counts}: lengths fit, padding is zero, all values are finite")
    pairs = sum(name.endswith(".down") for name in module_shapes(packed, dense))
    found = [("down and up fit", pair_faults(packed, dense), f"{pairs:,} pairs, each with one bottleneck")]
    if manifest is not None:
        faults = manifest_faults(manifest, packed, dense)
        found.append(("petkit.json fits the tensors", faults, "same bits, codebook, classes and sites"))
    for name, faults, good in found:
        yield Check(name, not faults, "; ".join(faults[:5]) or good, ArtifactError.exit_code)


def _recorded_checks(path: Path) -> list[Check]:
    """Repeat what the command that wrote the artifact found when it reloaded it."""
    if not (path / CHECKS).exists():
        return []
    checks: list[Check] = []
    recorded = _attempt(
        checks,
        CHECKS,
        lambda: parse_checks(small_file(path, CHECKS, MAX_CHECKS), str(path / CHECKS)),
        _describe_recorded,
    )
    return checks + [
        Check(f"recorded: {check.name}", False, check.detail) for check in recorded or [] if not check.ok
    ]


def _describe_recorded(checks: Sequence[Check]) -> str:
    passed = sum(check.ok for check in checks)
    return f"{passed} of {len(checks)} checks passed when the artifact was written"


def _same_base(manifest: Manifest | RouterManifest | TaggerManifest, base_sha256: str) -> Check:
    base = manifest.base
    if base is None:
        return Check("base sha256", False, "the tagger has no base: all of its weights are its own")
    stated = base.sha256
    if stated is None:
        detail = "petkit.json records no hash of the base to compare with: convert again with --base MODEL"
    elif stated == base_sha256:
        detail = f"the given base has the one in petkit.json, {stated}"
    else:
        detail = (
            f"the given base has {base_sha256}, the adapter was trained on {stated} ({base.id}): use that one"
        )
    return Check("base sha256", stated == base_sha256, detail)
