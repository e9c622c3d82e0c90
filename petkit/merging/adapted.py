"""`base+adapter` as a model: W + factor * up @ down, made when its numbers are read."""

from __future__ import annotations

import logging
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from petkit.artifacts import Artifact, Check
from petkit.artifacts.source import is_adapter_folder, read_source
from petkit.errors import ArtifactError, InputError
from petkit.merging.adapters import matrices_of, whole_tensors
from petkit.merging.bases import Hashes, check_given, model_type
from petkit.merging.config import split_adapter
from petkit.merging.low_rank import Product
from petkit.merging.sources import Entry, ModelFolder, open_model
from petkit.models.checkpoint_names import checkpoint_names

log = logging.getLogger(__name__)

# Architectures with linear maps that transformers calls Conv1D, whose weights are (in, out); and their names.
TRANSPOSED_TYPES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder")
TRANSPOSED_NAMES = ("c_attn", "q_attn", "c_proj", "c_fc")
SITE = re.compile(r"(.*)\.lora(?:_([qkv]))?")
BACKBONE = "backbone."


@dataclass(frozen=True)
class AdaptedModel:
    """A base whose adapter is added where it is read.

    Args:
        name: as the configuration has it, for messages.
        base: open.
        changes: what is added to each tensor.
        replaced: tensors that the adapter's training made anew.
        entries: what there is. Tensors that change are read in float32, so that differences to the base
            survive until the merge is rounded.
        left_out: names of what the adapter holds and the base has no place for, such as a classifier.
    """

    name: str
    base: ModelFolder
    changes: Mapping[str, Product]
    replaced: Mapping[str, Tensor]
    entries: Mapping[str, Entry]
    left_out: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Of the base, with its configuration and tokenizer."""
        return self.base.folder

    def read(self, tensor: str, start: int, out: Tensor) -> None:
        """Read numbers of a tensor, as `ModelFolder.read`; sums are float64, rounded once to float32."""
        if tensor in self.replaced:
            out.copy_(self.replaced[tensor].reshape(-1)[start : start + len(out)])
            return
        if tensor not in self.changes:
            self.base.read(tensor, start, out)
            return
        own = torch.empty(len(out), dtype=self.base.entries[tensor].dtype)
        self.base.read(tensor, start, own)
        for place, numbers in self.changes[tensor].numbers(start, len(out)):
            piece = slice(place, place + len(numbers))
            out[piece] = numbers.add_(own[piece])

    def check(self) -> Check:
        """Whether the adapter changes anything."""
        changed = sum(bool((one.left.any(0) & one.right.any(1)).any()) for one in self.changes.values())
        detail = f"the adapter changes {changed} of {len(self.changes)} tensors"
        return Check(f"{self.name} differs from its base", changed + len(self.replaced) > 0, detail)


@contextmanager
def open_source(name: str, hashes: Hashes) -> Iterator[ModelFolder | AdaptedModel]:
    """Open a model folder, or a base with an adapter.

    Args:
        name: a folder, or `base+adapter`.
        hashes: of bases, already made; new ones are added.

    Yields:
        The model.

    Raises:
        InputError: the adapter is not of this base, or is no change of its weights; both are named.
        PetkitError: a folder cannot be read.
    """
    folder, adapter = split_adapter(name)
    if is_adapter_folder(folder):
        raise InputError(f"{name}: {folder} is an adapter, where a whole model is needed")
    with open_model(folder) as model:
        _check_lora_files(model)
        yield model if adapter is None else _adapted(name, model, read_named(adapter), hashes)


def read_named(folder: str) -> Artifact:
    """Read an adapter, petkit's or PEFT's, under the name that the user gave it.

    Raises:
        InputError: there is none.
        PetkitError: it is damaged, or cannot be kept.
    """
    if Path(folder).is_dir() and not is_adapter_folder(folder):
        raise InputError(f"{folder} must be an adapter of petkit or of PEFT (LoRA), it is none")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return replace(read_source(folder, Path(scratch)), folder=Path(folder))
        except ArtifactError as error:
            # PEFT's adapters are read as a new artifact.
            raise ArtifactError(str(error).replace("new artifact", folder)) from error


def _check_lora_files(model: ModelFolder) -> None:
    """Refuse the files of a LoRA whose configuration is missing: A and B do not merge by themselves."""
    names = [name for name in model.entries if "lora_" in name]
    if names and len(names) == len(model.entries) and not (model.folder / "config.json").exists():
        raise InputError(
            f"{model.name} holds LoRA matrices such as {names[0]}, and no adapter_config.json that says how "
            "they are to be used"
        )


def adapter_checks(models: Mapping[str, ModelFolder | AdaptedModel]) -> list[Check]:
    """Whether each adapter changes its base."""
    return [one.check() for one in models.values() if isinstance(one, AdaptedModel)]


def _adapted(name: str, base: ModelFolder, adapter: Artifact, hashes: Hashes) -> AdaptedModel:
    method = adapter.manifest.adapter.get("method", "lora")
    if method != "lora":
        why = "it has no adapter" if method == "linear_probe" else "there is an activation in its bottleneck"
        raise InputError(
            f"{adapter.folder} cannot be added to {base.name}: it is {method}, and no weight does the same, "
            f"since {why}"
        )
    check_given(base, adapter.manifest, str(adapter.folder), hashes)
    find = _Names(base, adapter.folder)
    changes = _changes(adapter, base, find)
    replaced, left_out = _replaced(adapter, base, find)
    entries = dict(base.entries)
    for tensor in (*changes, *replaced):
        own = base.entries[tensor]
        entries[tensor] = Entry(torch.float32, own.shape, stored=own.dtype)
    log.info("%s changes %d of %d tensors", name, len(changes) + len(replaced), len(entries))
    if left_out:
        log.warning("%s: the base has no place for %s, left out", name, ", ".join(left_out))
    return AdaptedModel(name, base, changes, replaced, entries, left_out)


class _Names:
    """Names of an adapter's modules to names of the base's tensors."""

    def __init__(self, base: ModelFolder, adapter: Path) -> None:
        self.base, self.adapter = base, adapter
        self.renamed: Mapping[str, str] | None = None

    def of(self, name: str) -> str | None:
        """The base's name of a tensor, or None."""
        found = _matched(name, {own: own for own in self.base.entries})
        if found is None:
            if self.renamed is None:
                self.renamed = checkpoint_names(self.base.folder)
            found = _matched(name, self.renamed)
        return found if found in self.base.entries else None

    def weight(self, module: str) -> str:
        """The weight of a module that must be there.

        Raises:
            InputError: it is not; names both.
        """
        found = self.of(f"{module}.weight")
        if found is None:
            raise InputError(
                f"{self.adapter} is beside {module}, and {self.base.name} has no tensor of that name"
            )
        return found


def _matched(name: str, known: Mapping[str, str]) -> str | None:
    """A tensor by its name; by its name with a part more or less before it, where only one has such."""
    for wanted in dict.fromkeys((name, name.removeprefix(BACKBONE))):
        if wanted in known:
            return known[wanted]
        # The files of `...ForMaskedLM` name the backbone, an adapter beside the bare backbone does not.
        longer = [own for own in known if own.partition(".")[2] == wanted]
        if len(longer) == 1:
            return known[longer[0]]
        shorter = wanted.partition(".")[2]
        # A layer's number makes sure that it is a path and not an ending.
        if shorter in known and re.search(r"\.\d+\.", shorter):
            return known[shorter]
    return None


def _changes(adapter: Artifact, base: ModelFolder, find: _Names) -> dict[str, Product]:
    matrices = matrices_of(adapter)
    kind = model_type(base.folder)
    parts: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    turned: dict[str, bool] = {}
    for site in [name.removesuffix(".down") for name in matrices if name.endswith(".down")]:
        match = SITE.fullmatch(site)
        if match is None:
            raise InputError(
                f"{adapter.folder}: {site} is not beside a linear map, so that no weight holds it"
            )
        module, third = match.groups()
        tensor = find.weight(module)
        turned[tensor] = kind in TRANSPOSED_TYPES and module.rpartition(".")[2] in TRANSPOSED_NAMES
        up = matrices[f"{site}.up"].double() * adapter.manifest.scaling_of(site)
        parts[tensor].append((_placed(up, third), matrices[f"{site}.down"].double()))
    if not parts:
        raise InputError(f"{adapter.folder} holds no adapter: there is nothing to add to {base.name}")
    changes = {tensor: _product(own, turned[tensor]) for tensor, own in parts.items()}
    for tensor, product in changes.items():
        if product.shape != base.entries[tensor].shape:
            raise InputError(
                f"{adapter.folder} changes a matrix of shape {product.shape}, {tensor} of {base.name} has "
                f"shape {base.entries[tensor].shape}"
            )
    return changes


def _placed(up: Tensor, third: str | None) -> Tensor:
    """The rows of a map to q, k and v one after the other, of which an adapter changes a third."""
    if third is None:
        return up
    whole = up.new_zeros(3 * len(up), up.shape[1])
    start = "qkv".index(third) * len(up)
    whole[start : start + len(up)] = up
    return whole


def _product(parts: Sequence[tuple[Tensor, Tensor]], is_turned: bool) -> Product:
    up, down = torch.cat([up for up, _ in parts], dim=1), torch.cat([down for _, down in parts])
    return Product(down.T.contiguous(), up.T.contiguous()) if is_turned else Product(up, down)


def _replaced(
    adapter: Artifact, base: ModelFolder, find: _Names
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors that were trained whole and have a place in the base, and the names of those that have none."""
    source = adapter.manifest.source.settings if adapter.manifest.source else {}
    found: dict[str, Tensor] = {}
    left_out = []
    for name, tensor in whole_tensors(adapter).items():
        # The head of a PEFT folder has a name of its own in transformers' model; petkit's has none there.
        is_head = name.startswith("head.")
        head = source.get("head") if is_head else None
        called = f"{head}.{name.removeprefix('head.')}" if head else name
        place = find.of(called) if head or not is_head else called
        if place in base.entries and base.entries[place].shape == tuple(tensor.shape):
            found[place] = tensor
        else:
            left_out.append(called)
    task = adapter.manifest.task
    if left_out and task is not None and task.type == "causal_lm":
        raise InputError(
            f"{adapter.folder} holds {', '.join(left_out)}, and {base.name} has no tensor of that "
            "name and shape (is it tied to the embedding?): the model would not be the adapter's"
        )
    return found, tuple(left_out)
