"""A tagger put together from its settings, taken apart into tensors, and read back from its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from petkit.artifacts.model_folder import VOCABULARY
from petkit.artifacts.packed import PackedMatrix
from petkit.artifacts.reader import MANIFEST
from petkit.artifacts.tagger import TaggerArtifact, read_tagger
from petkit.errors import ArtifactError, PetkitError
from petkit.methods.crf_tagger.config import BILSTM, TaggerConfig
from petkit.methods.crf_tagger.inputs import PieceReader, Reader, Vocabulary, WordReader
from petkit.methods.crf_tagger.model import Pieces, Tagger, new_bilstm
from petkit.models.config import ModelConfig
from petkit.models.inserts import Site, insert, load_packed, pack
from petkit.models.loaded import LoadedModel
from petkit.models.loading import load_model, named_place, relocated
from petkit.training.seeds import stream

Packed = Mapping[str, PackedMatrix]
Dense = Mapping[str, Tensor]


@dataclass(frozen=True)
class Assembled:
    """A tagger with what feeds it."""

    model: Tagger
    reader: Reader
    base: LoadedModel | None
    """The transformers encoder as it was loaded."""

    sites: Sequence[Site] = ()
    """Where LoRA went."""


@dataclass(frozen=True)
class LoadedTagger:
    """A tagger from its folder, in evaluation mode."""

    model: Tagger
    reader: Reader
    artifact: TaggerArtifact
    config: TaggerConfig

    @property
    def labels(self) -> tuple[str, ...]:
        """The tags by number."""
        return self.artifact.manifest.labels


def assemble(
    config: TaggerConfig,
    labels: Sequence[str],
    vocabulary: Vocabulary | None,
    encoder: ModelConfig | None = None,
) -> Assembled:
    """Put a tagger together, with initial weights by the recipe's seed; what is not trained is frozen.

    Args:
        config: the settings.
        labels: the tags by number.
        vocabulary: of the BiLSTM; None with a transformers encoder.
        encoder: the transformers encoder in another place than the settings name.

    Returns:
        The tagger on the CPU.

    Raises:
        PetkitError: the encoder cannot be loaded, or a target of the adapter matches nothing.
    """
    if vocabulary is not None:
        backbone = new_bilstm(config, vocabulary)
        return Assembled(Tagger(backbone, config, labels), WordReader(vocabulary), None)
    with _encoder_named(f"{BILSTM}, " if encoder is None else ""):
        base = load_model(encoder or config.model.base(), "text_classification")
        reader = PieceReader(base.tokenizer)
    model = Tagger(Pieces(base.model.get_submodule("backbone")), config, labels)
    sites: Sequence[Site] = ()
    if config.is_adapted:
        sites = insert(model, config.adapter.adapter(), stream(config.seed, "init", "adapters"))
        if model.crf is not None:
            # Whatever is neither adapter nor head is frozen by `insert`.
            model.crf.requires_grad_(True)
    elif config.model.tune == "frozen":
        model.backbone.requires_grad_(False)
    return Assembled(model, reader, base, sites)


@contextmanager
def _encoder_named(others: str) -> Iterator[None]:
    """Name the key of this recipe in messages about the base model, and what else the key may be."""
    try:
        yield
    except PetkitError as error:
        if "model.name" not in str(error):
            raise
        text = str(error).replace("model.name must be ", f"model.name must be {others}")
        raise type(error)(text.replace("model.name", "model.encoder")) from error


def tensors_of(model: Tagger, config: TaggerConfig) -> tuple[dict[str, PackedMatrix], dict[str, Tensor]]:
    """What the artifact stores: all that training changed.

    Args:
        model: the tagger.
        config: its settings.

    Returns:
        Packed matrices by module name, and other tensors by name.
    """
    packed: dict[str, PackedMatrix] = {}
    dense = {name: tensor.detach() for name, tensor in model.named_parameters() if _is_own(name, config)}
    if config.is_adapted:
        packed, adapted = pack(model)
        dense = {name: tensor for name, tensor in dense.items() if not name.startswith("backbone.")} | adapted
    return packed, dense


def _is_own(name: str, config: TaggerConfig) -> bool:
    """Whether a parameter is the tagger's, and not its frozen base's."""
    trains_backbone = not config.is_pretrained or config.model.tune == "full"
    return trains_backbone or not name.startswith("backbone.")


def load_tagger(
    folder: Path, device: torch.device | str = "cpu", base_override: str | None = None
) -> LoadedTagger:
    """Read a tagger's folder, with its encoder.

    Args:
        folder: the artifact.
        device: where the model goes.
        base_override: the same encoder in another place than the recorded one.

    Returns:
        The tagger, ready to tag.

    Raises:
        ArtifactError: the artifact is damaged, or belongs to another encoder.
        PetkitError: the encoder cannot be loaded, by kind.
    """
    artifact = read_tagger(folder)
    config = stored_config(artifact)
    vocabulary = None if config.is_pretrained else _vocabulary(artifact)
    encoder = config.model.base()
    if base_override is not None:
        encoder = ModelConfig(**relocated(encoder.model_dump(), base_override))
    with named_place(folder, config.model.encoder, base_override):
        made = assemble(config, artifact.manifest.labels, vocabulary, encoder)
    _check_base(artifact, made.base)
    if config.is_adapted:
        load_packed(made.model, artifact.packed, artifact.dense)
    else:
        _fill(made.model, artifact, config)
    return LoadedTagger(made.model.requires_grad_(False).eval().to(device), made.reader, artifact, config)


def stored_config(artifact: TaggerArtifact) -> TaggerConfig:
    """The settings of a tagger.

    Args:
        artifact: the tagger.

    Returns:
        Its recipe.

    Raises:
        ArtifactError: its `petkit.json` holds none that this version knows.
    """
    try:
        # By way of JSON, because strict JSON takes a list for a tuple and strict Python does not.
        return TaggerConfig.model_validate_json(json.dumps(artifact.manifest.tagger), strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, ("tagger", *fault["loc"])))
        raise ArtifactError(f"{artifact.folder / MANIFEST} is broken: {place}: {fault['msg']}") from error


def _vocabulary(artifact: TaggerArtifact) -> Vocabulary:
    return Vocabulary.from_json(artifact.vocabulary, str(artifact.folder / VOCABULARY))


def _check_base(artifact: TaggerArtifact, base: LoadedModel | None) -> None:
    recorded = artifact.manifest.base
    if base is None:
        return
    if recorded is None or recorded.sha256 != base.base_sha256:
        expected = None if recorded is None else recorded.sha256
        raise ArtifactError(
            f"{artifact.folder} was trained on a base with sha256 {expected}, but {base.base_id} has "
            f"{base.base_sha256}: give the base it was trained on"
        )


@torch.no_grad()
def _fill(model: Tagger, artifact: TaggerArtifact, config: TaggerConfig) -> None:
    """Copy the artifact's tensors into the model; each must be there, and fit."""
    wanted = {name: tensor for name, tensor in model.named_parameters() if _is_own(name, config)}
    odd = sorted(wanted.keys() ^ artifact.dense.keys()) + sorted(artifact.packed)
    odd += [
        name
        for name in wanted.keys() & artifact.dense.keys()
        if wanted[name].shape != artifact.dense[name].shape
    ]
    if odd:
        raise ArtifactError(
            f"{artifact.folder} does not hold the tensors of its settings: {', '.join(odd[:4])} is missing, "
            "unexpected or of another shape"
        )
    for name, tensor in wanted.items():
        tensor.copy_(artifact.dense[name])
