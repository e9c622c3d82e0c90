"""A translator put together from its settings, taken apart into tensors, and read back from its folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from petkit.artifacts.model_folder import VOCABULARY
from petkit.artifacts.reader import MANIFEST
from petkit.artifacts.translator import TranslatorArtifact, TranslatorManifest, read_translator
from petkit.data.subwords import Subwords, subwords_of
from petkit.errors import ArtifactError, ConfigError
from petkit.methods.nart_crf.config import DecodeConfig, TranslatorConfig
from petkit.methods.nart_crf.decoding import Translator
from petkit.methods.nart_crf.model import Nart, Teacher, new_model
from petkit.training.seeds import derive

# Settings that a model shares with the one it begins as.
SIZES = ("hidden", "feed_forward", "encoder_layers", "decoder_layers", "heads", "max_positions")
RESCORE_KEY = "decode.rescore"


@dataclass(frozen=True)
class Stored:
    """A translator from its folder."""

    model: Nart | Teacher
    vocabulary: Subwords
    manifest: TranslatorManifest
    config: TranslatorConfig
    folder: Path

    @property
    def tensors_sha256(self) -> str:
        """Hash of the weights' file."""
        return str(self.manifest.tensors_sha256)


def assemble(config: TranslatorConfig, vocabulary: Subwords) -> Nart | Teacher:
    """Make the model of a recipe, its initial weights drawn by the recipe's seed.

    Args:
        config: the settings.
        vocabulary: of source and target.

    Returns:
        The model on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "init", "model"))
        return new_model(config, vocabulary)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """What the artifact stores: every parameter once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def load_translator(folder: Path, device: torch.device | str = "cpu") -> Stored:
    """Read a translator's folder.

    Args:
        folder: the artifact.
        device: where the model goes.

    Returns:
        The translator, in evaluation mode, without gradients.

    Raises:
        ArtifactError: the artifact is damaged.
        InputError: there is none.
    """
    artifact = read_translator(folder)
    config, vocabulary = stored_config(artifact.manifest, folder), stored_vocabulary(artifact)
    # Without memory, in case the settings are not those of the tensors.
    with torch.device("meta"):
        _check_tensors(new_model(config, vocabulary), artifact)
    model = assemble(config, vocabulary)
    _fill(model, artifact)
    ready = model.requires_grad_(False).eval().to(device)
    return Stored(ready, vocabulary, artifact.manifest, config, folder)


def load_teacher(folder: Path, device: torch.device | str, vocabulary: Subwords | None, key: str) -> Stored:
    """Read the folder of an autoregressive translator that another model leans on.

    Args:
        folder: the artifact.
        device: where the model goes.
        vocabulary: that it must have; None takes any.
        key: that names the folder, for messages.

    Returns:
        The translator.

    Raises:
        ConfigError: it is missing, no autoregressive one, or has another vocabulary.
        PetkitError: it cannot be read, by kind.
    """
    if not folder.exists():
        raise ConfigError(f"{key} {folder} is missing: train it with `petkit train nat RECIPE --teacher`")
    stored = load_translator(folder, device)
    if not isinstance(stored.model, Teacher):
        raise ConfigError(
            f"{key} must be an autoregressive translator, {folder} is a {stored.config.model.kind}"
        )
    if vocabulary is not None and vocabulary.to_json() != stored.vocabulary.to_json():
        raise ConfigError(
            f"{key} {folder} must have the vocabulary of the model it helps, it has another one"
        )
    return stored


def translator_of(
    stored: Stored,
    decode: DecodeConfig | None = None,
    device: torch.device | str = "cpu",
    rescore_key: str | None = None,
) -> Translator:
    """A stored model, ready to translate.

    Args:
        stored: the model.
        decode: how it is asked; None for its own recipe's.
        device: where the model that rescores goes.
        rescore_key: what named that model, for messages; default: the recipe's key.

    Raises:
        ConfigError: the model that rescores does not fit.
        PetkitError: it cannot be read.
    """
    chosen = decode or stored.config.decode
    rescorer = rescorer_of(chosen, stored, device, rescore_key or RESCORE_KEY)
    return Translator(stored.model, stored.vocabulary, chosen, rescorer)


def rescorer_of(
    decode: DecodeConfig, stored: Stored | Translator, device: torch.device | str, key: str = RESCORE_KEY
) -> Teacher | None:
    """The model that chooses among candidates; None where the student chooses by itself."""
    if decode.rescore is None or decode.candidates == 1 or isinstance(stored.model, Teacher):
        return None
    found = load_teacher(Path(decode.rescore), device, stored.vocabulary, key).model
    assert isinstance(found, Teacher)
    return found


def start_from(model: Nart | Teacher, start: Stored, config: TranslatorConfig) -> list[str]:
    """Give a model the weights of another one.

    Args:
        model: with initial weights, of the same vocabulary.
        start: the other.
        config: of the model.

    Returns:
        Names of the parameters that the other lacks, which stay as they are.

    Raises:
        ConfigError: the sizes differ, or one is autoregressive and the other is not.
    """
    own, other = config.model, start.config.model
    differing = [
        f"model.{name} is {getattr(own, name)} and was {getattr(other, name)}"
        for name in SIZES
        if getattr(own, name) != getattr(other, name)
    ]
    if isinstance(model, Teacher) != isinstance(start.model, Teacher):
        differing.insert(0, f"model.kind {own.kind} cannot begin as {other.kind}")
    if differing:
        raise ConfigError(f"start {start.folder} does not fit: {'; '.join(differing)}")
    given = tensors_of(start.model)
    missing = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in given and given[name].shape == parameter.shape:
                parameter.copy_(given[name])
            else:
                missing.append(name)
    return missing


def stored_config(manifest: TranslatorManifest, folder: Path) -> TranslatorConfig:
    """The settings of a translator.

    Args:
        manifest: of the artifact.
        folder: of it, for messages.

    Returns:
        Its recipe.

    Raises:
        ArtifactError: its `petkit.json` holds none that this version knows.
    """
    try:
        # By way of JSON, because strict JSON takes a list for a tuple and strict Python does not.
        return TranslatorConfig.model_validate_json(json.dumps(manifest.translator), strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, ("translator", *fault["loc"])))
        raise ArtifactError(f"{folder / MANIFEST} is broken: {place}: {fault['msg']}") from error


def stored_vocabulary(artifact: TranslatorArtifact) -> Subwords:
    """The subwords of a translator.

    Args:
        artifact: the translator.

    Raises:
        ArtifactError: they are broken, or not the ones that `petkit.json` names.
    """
    place = str(artifact.folder / VOCABULARY)
    vocabulary = subwords_of(json.dumps(artifact.vocabulary), place)
    found = vocabulary_sha256(vocabulary)
    if found != artifact.manifest.vocabulary_sha256:
        raise ArtifactError(
            f"{place} has sha256 {found}, {MANIFEST} says {artifact.manifest.vocabulary_sha256}: it was "
            "altered or exchanged"
        )
    return vocabulary


def vocabulary_sha256(vocabulary: Subwords) -> str:
    """Hash of what a vocabulary is."""
    return hashlib.sha256(vocabulary.to_json()).hexdigest()


def _check_tensors(model: nn.Module, artifact: TranslatorArtifact) -> None:
    """Refuse tensors that are not those of the model."""
    wanted = dict(model.named_parameters())
    odd = sorted(wanted.keys() ^ artifact.dense.keys())
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


@torch.no_grad()
def _fill(model: nn.Module, artifact: TranslatorArtifact) -> None:
    for name, tensor in model.named_parameters():
        tensor.copy_(artifact.dense[name])
