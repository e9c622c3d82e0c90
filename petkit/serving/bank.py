"""One backbone, many packed adapters: a batch whose samples each name their own adapter runs in one pass."""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from petkit.artifacts import Artifact, Task
from petkit.artifacts.paths import check_name
from petkit.artifacts.reader import MANIFEST
from petkit.errors import ArtifactError, InputError
from petkit.methods.binary_adapter.recorded import read_checked
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.models.inserts import insert, remove, set_head
from petkit.models.loaded import LoadedModel, compute_logits
from petkit.models.loading import load_model, named_place, relocated
from petkit.serving.bank_inputs import check_inputs
from petkit.serving.bank_insert import BankInsert, Request
from petkit.serving.entry import Entry, Shape, make_head, read_for
from petkit.serving.own_layers import OwnHead, OwnLayers, Shapes, own_shapes

BASE = "base"
# Adapters read before their bits go into the banks: large enough to amortise the copy, small in memory.
CHUNK = 64
# Adapters named when many do not belong: more would push the hint off the screen.
MOST_FAULTS = 20
HINT = (
    "a bank holds adapters of one base, task, method, bits, bottleneck, codebook and image size: "
    "move the others to a folder of their own"
)


class BankModel:
    """A frozen model with a bank of packed adapters of one shape, each with a head of its own.

    All methods may be called from several threads. A request that is being computed finishes with the
    adapters it started with; `add` and `drop` take effect between requests.

    Args:
        base: the loaded model, changed in place: its head is taken off and its sites are occupied.
        config: what all adapters have in common: method, bits, bottleneck, targets, codebook.
        task: what the heads predict.
        pooling: the recipe's model.pooling, with which the base was loaded.
        device: where the model and the bank lie.
        source: whose shape it is, for messages.
        own: shapes of the last layers that every adapter brings, as `own_shapes` gives them, where the base
            was loaded with pooling "own".
        classes: rows of the classifier that the base was loaded with; they count where pooling is "own" and
            the adapters bring no layers.

    Raises:
        InputError: 32-bit adapters, a task without a head, or a layer that the base does not have.

    Source:
        The bank operator of petkit.ops; adapters as in Jie, Wang and Deng (2023).
    """

    def __init__(
        self,
        base: LoadedModel,
        config: AdapterConfig,
        task: str = "image_classification",
        pooling: str | None = None,
        device: torch.device | str = "cpu",
        source: str = "the bank",
        own: Shapes | None = None,
        classes: int = 1,
    ) -> None:
        if base.kind == "causal_lm":
            raise InputError(
                f"a bank serves classifiers, got a causal language model in {source}: "
                "use `petkit predict ARTIFACT`"
            )
        if config.bits == 32 and config.method != "linear_probe":
            raise InputError(
                f"a bank holds packed adapters, got adapter.bits 32 in {source}: run `petkit quantize` first"
            )
        self.device = torch.device(device)
        self._model, self._request = base.model.to(self.device).eval(), Request()
        sites = insert(self._model, config)
        self._shape = Shape(base, config, task, pooling, tuple(sites), source, own or {}, classes)
        self._sites = self._occupy(config)
        self._own = OwnLayers(self._model, tuple(self._shape.own), self._request)
        self._model.requires_grad_(False)
        self._entries: dict[str, Entry] = {}
        self._tasks: dict[Task, Task] = {}
        self._free: list[int] = []
        self._capacity = 0
        # Held while a batch runs and while the bank changes.
        self._lock = threading.RLock()

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike[str], device: torch.device | str = "cpu", base: str | None = None
    ) -> BankModel:
        """Load every adapter of a folder of artifacts; the first one tells the base model and the shape.

        Args:
            folder: its subfolders are artifacts; their names are the adapters' names.
            device: where the model and the bank lie.
            base: the base in another place than the first artifact says.

        Returns:
            The model with its bank.

        Raises:
            InputError: there is no artifact, or some that do not belong with the first, one line for each.
        """
        folders = artifact_folders(folder)
        first, path = next(iter(folders.items()))
        artifact = read_checked(path)
        manifest = artifact.manifest
        if manifest.task is None:
            raise InputError(f"{path} must name its task in {MANIFEST}, got none")
        section = {"name": manifest.base.id, **manifest.model}
        model = ModelConfig(**(section if base is None else relocated(section, base)))
        task = manifest.task.type
        own = own_shapes(artifact)
        # Only the base's own classifier must have the right number of rows; others are replaced.
        classes = len(manifest.task.classes) if model.pooling == "own" and not own else 1
        with named_place(path, manifest.base.id, base):
            loaded = load_model(model, task, num_classes=classes)
        source = f"adapter {first}, the first of the folder"
        adapter = AdapterConfig(**manifest.adapter)
        bank = cls(loaded, adapter, task, model.pooling, device, source, own, classes)
        bank.add_many(folders)
        return bank

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters, in the order in which they came."""
        return tuple(self._entries)

    @property
    def base(self) -> LoadedModel:
        """The frozen model, its preprocessing and tokenizer."""
        return self._shape.base

    @property
    def task(self) -> str:
        """What the heads predict."""
        return self._shape.task

    @property
    def nbytes(self) -> int:
        """Bytes of the packed adapters, empty slots included, and of the heads."""
        with self._lock:
            heads = sum(entry.head.nbytes for entry in self._entries.values())
            return heads + sum(site.bank.nbytes for site in self._sites.values())

    def entry(self, name: str) -> Entry:
        """The adapter of a name.

        Args:
            name: as given to `add`.

        Returns:
            Its task, classes, head and slot.

        Raises:
            InputError: no adapter has the name.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise InputError(self.fault(name))
        return entry

    def fault(self, name: str) -> str | None:
        """Why a name cannot be used in a request.

        Args:
            name: of an adapter.

        Returns:
            One line with the nearest name that there is, or None when the adapter is there.
        """
        if name in self._entries:
            return None
        if name == BASE:
            return f"adapter {BASE!r} is the frozen model, which has features and no classes: name an adapter"
        close = difflib.get_close_matches(name, self.names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"adapter {name!r} is not in the bank of {len(self)} adapters{hint}"

    def add(self, name: str, folder: str | os.PathLike[str]) -> None:
        """Put one adapter into the bank; requests may go on meanwhile.

        Args:
            name: 1 to 128 characters of A-Z a-z 0-9 . _ -, not in use and not "base".
            folder: a packed artifact of this base and shape.

        Raises:
            ArtifactError: the artifact is damaged.
            InputError: the name is in use, or the adapter does not belong into this bank.
            SafetyError: the name holds other characters.
        """
        self.add_many({name: folder})

    def add_many(self, folders: Mapping[str, str | os.PathLike[str]]) -> None:
        """Put many adapters into the bank: all of them, or none.

        Args:
            folders: name -> artifact, as in `add`.

        Raises:
            ArtifactError: an artifact is damaged.
            InputError: a name is in use, or adapters do not belong into this bank: one line for each of the
                first 20, and what adapters of one bank have in common.
            SafetyError: a name holds other characters.
        """
        names = [self._check_new(name) for name in folders]
        with self._lock:
            slots = self._take(len(names))
        added: dict[str, Entry] = {}
        faults: list[InputError] = []
        try:
            for start in range(0, len(names), CHUNK):
                artifacts = self._read(names[start : start + CHUNK], folders, faults)
                # After a fault nothing is added any more; the rest is read to name its faults too.
                if not faults:
                    added |= self._load(slots[start : start + CHUNK], artifacts)
            _refuse(faults)
            with self._lock:
                for name in added:
                    self._check_new(name)
                self._entries = self._entries | added
        except BaseException:
            with self._lock:
                self._free.extend(slots)
            raise

    def drop(self, name: str) -> None:
        """Take an adapter out; its place is used again.

        Args:
            name: as given to `add`.

        Raises:
            InputError: no adapter has the name.
        """
        with self._lock:
            slot = self.entry(name).slot
            self._entries = {key: entry for key, entry in self._entries.items() if key != name}
            for site in self._sites.values():
                site.bank.clear(slot)
            self._own.clear(slot)
            self._free.append(slot)

    def forward(self, inputs: Tensor | Mapping[str, Tensor], names: Sequence[str | None]) -> list[Tensor]:
        """Run one batch whose samples each use their own adapter and head.

        Args:
            inputs: pixel_values (batch, 3, height, width), or `input_ids` and `attention_mask` (batch,
                tokens).
            names: adapter of each sample; None or "base" is the frozen model alone.

        Returns:
            One tensor a sample: logits (classes,), as many as its adapter has classes; for the frozen model
            alone its pooled features (features,), since it has no head.

        Raises:
            InputError: an unknown name, another number of names than samples, or inputs of another shape than
                the base takes.
        """
        if not isinstance(inputs, Tensor | Mapping):
            raise InputError(f"inputs must be a tensor or a mapping of tensors, got {type(inputs).__name__}")
        batch = {"pixel_values": inputs} if isinstance(inputs, Tensor) else dict(inputs)
        check_inputs(self.base, batch)
        size = len(next(iter(batch.values()), ()))
        if isinstance(names, str):
            raise InputError(
                f"names must be a list with one adapter name a sample, got the text {names!r:.40}"
            )
        if size != len(names) or size == 0:
            raise InputError(
                f"names must hold one adapter name a sample and at least one, got {len(names)} for {size}"
            )
        with self._lock, torch.inference_mode():
            entries = [self._entry_or_none(name) for name in names]
            slots = torch.tensor(
                [-1 if entry is None else entry.slot for entry in entries], device=self.device
            )
            self._request.begin(slots)
            try:
                features = compute_logits(
                    self._model, {key: value.to(self.device) for key, value in batch.items()}
                )
            finally:
                self._request.end()
        return _apply_heads(features, entries)

    __call__ = forward

    def _entry_or_none(self, name: str | None) -> Entry | None:
        if name is not None and name != BASE:
            return self.entry(name)
        if self._shape.pooling == "own":
            raise InputError(
                f"{BASE!r} is the frozen model, whose last layers come with the adapters: name an adapter"
            )
        return None

    def _occupy(self, config: AdapterConfig) -> dict[str, BankInsert]:
        """Replace the trainable adapters that `insert` has made by bank sites; the head by the identity."""
        remove(self._model)
        # A classifier with layers of its own has no attribute `head` that could be taken off.
        if self._shape.pooling != "own":
            set_head(self._model, nn.Identity())
        sites = {}
        for site in self._shape.sites:
            module = BankInsert(
                site,
                config.bottleneck,
                config.bits,
                config.codebook,
                "identity" if config.method == "lora" else "relu",
                self._request,
                self.device,
            )
            host, _, child = site.name.rpartition(".")
            self._model.get_submodule(host).add_module(child, module)
            module.attach(self._model)
            sites[site.name] = module
        return sites

    def _check_new(self, name: str) -> str:
        check_name(name, "adapter name")
        if name == BASE:
            raise InputError(f"adapter name {BASE!r} stands for the frozen model: choose another")
        if name in self._entries:
            raise InputError(f"adapter {name!r} is in the bank already: drop it first")
        return name

    def _take(self, count: int) -> list[int]:
        """Reserve free slots; full banks grow by half, so that adding one by one stays cheap."""
        missing = count - len(self._free)
        if missing > 0:
            grown = self._capacity + max(missing, self._capacity // 2)
            for site in self._sites.values():
                site.bank.resize(grown)
            self._free.extend(reversed(range(self._capacity, grown)))
            self._capacity = grown
        return [self._free.pop() for _ in range(count)]

    def _read(
        self,
        names: Sequence[str],
        folders: Mapping[str, str | os.PathLike[str]],
        faults: list[InputError],
    ) -> dict[str, Artifact]:
        artifacts = {}
        for name in names:
            if len(faults) == MOST_FAULTS:
                break
            try:
                artifacts[name] = read_for(self._shape, name, folders[name])
            except InputError as error:
                faults.append(error)
        return artifacts

    def _load(self, slots: Sequence[int], named: Mapping[str, Artifact]) -> dict[str, Entry]:
        artifacts = list(named.values())
        entries = {}
        for slot, (name, artifact) in zip(slots, named.items(), strict=True):
            task = artifact.manifest.task
            if task is None:
                raise InputError(f"adapter {name}: task must be there, got none")
            # A thousand adapters of one task share one record of it.
            task = self._tasks.setdefault(task, task)
            entries[name] = Entry(name, slot, make_head(artifact, self.device), task)
        with self._lock:
            for site, module in self._sites.items():
                _fill(module, site, slots, artifacts)
            for entry in entries.values():
                if isinstance(entry.head, OwnHead):
                    self._own.fill(entry.slot, entry.head.tensors)
        return entries


def artifact_folders(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """List the artifacts directly inside a folder.

    Args:
        folder: the folder.

    Returns:
        Name of the subfolder -> its path, sorted by name.

    Raises:
        InputError: the folder is missing or holds no artifact.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root} must be a folder of artifacts, got no such folder")
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    found = {name: root / name for name in names if (root / name / MANIFEST).is_file()}
    if not found:
        raise InputError(f"{root} must hold artifacts in subfolders (each with {MANIFEST}), got none")
    return found


def _refuse(faults: Sequence[InputError]) -> None:
    if len(faults) == 1 and isinstance(faults[0], ArtifactError):
        raise faults[0]
    if faults:
        misfits = any(" as in " in str(fault) or "must not be there" in str(fault) for fault in faults)
        raise InputError("\n".join([*map(str, faults), *([HINT] if misfits else [])]))


def _fill(module: BankInsert, site: str, slots: Sequence[int], artifacts: Sequence[Artifact]) -> None:
    pairs = [(artifact.packed[f"{site}.down"], artifact.packed[f"{site}.up"]) for artifact in artifacts]
    constants = [
        (down.shift, down.scale, up.shift, up.scale, artifact.manifest.scaling_of(site))
        for (down, up), artifact in zip(pairs, artifacts, strict=True)
    ]
    module.bank.set_many(
        slots,
        torch.from_numpy(np.stack([down.row_array() for down, _ in pairs])),
        torch.from_numpy(np.stack([up.row_array() for _, up in pairs])),
        torch.tensor(constants, dtype=torch.float32),
    )


def _apply_heads(features: Tensor, entries: Sequence[Entry | None]) -> list[Tensor]:
    rows: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        if entry is not None:
            rows.setdefault(entry.name, []).append(index)
    outputs = list(features)
    with torch.inference_mode():
        for indices in rows.values():
            entry = entries[indices[0]]
            assert entry is not None
            for index, logits in zip(indices, entry.head(features[indices]), strict=True):
                outputs[index] = logits
    return outputs
