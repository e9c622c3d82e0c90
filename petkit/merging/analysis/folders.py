"""Model folders against their base: which are meant, what they are called, and their measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petkit.errors import ConfigError
from petkit.merging.adapted import open_source
from petkit.merging.analysis.streamed import Settings, measure
from petkit.merging.bases import Hashes
from petkit.merging.config import MergeConfig

Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Compared:
    """The models that are looked at.

    Args:
        base: folder of what they were fine-tuned from.
        experts: folders of the fine-tuned models by name.
        merged: folders of what was merged from them, by name.
    """

    base: str
    experts: Mapping[str, str]
    merged: Mapping[str, str]

    @property
    def records(self) -> list[dict[str, str]]:
        """Name, role and folder of each."""
        groups = (("expert", self.experts), ("merged", self.merged))
        return [
            {"name": name, "role": role, "folder": folder}
            for role, group in groups
            for name, folder in group.items()
        ]


def compared(config: MergeConfig, merged: Sequence[str] = ()) -> Compared:
    """Tell which models a configuration means.

    Args:
        config: of a merge; its method and parameters have no effect.
        merged: folders of merged models, to be looked at too.

    Returns:
        The models, each called after the end of its path, as much of it as tells it from the others.

    Raises:
        ConfigError: no base_model, fewer than two other models, or a model that comes twice.
    """
    if config.base is None:
        raise ConfigError("analyze needs base_model, which the models were fine-tuned from")
    experts = [one for one in config.models if one != config.base]
    if len(experts) < 2:
        only = f" ({experts[0]})" if experts else ""
        raise ConfigError(
            f"analyze compares models in pairs: at least two are needed beside base_model, got "
            f"{len(experts)}{only}"
        )
    for folder in merged:
        if folder in (config.base, *experts) or list(merged).count(folder) > 1:
            raise ConfigError(f"{folder} is there twice: --merged is for what was merged from the models")
    names = short_names([*experts, *merged])
    return Compared(config.base, {names[one]: one for one in experts}, {names[one]: one for one in merged})


def short_names(folders: Sequence[str]) -> dict[str, str]:
    """Call folders after the ends of their paths.

    Args:
        folders: paths, all different.

    Returns:
        By folder, as many of its last parts as no other folder ends with; the whole path where none will do.
    """
    parts = {folder: Path(folder).parts for folder in folders}
    found = {}
    for folder, own in parts.items():
        ends = (own[-count:] for count in range(1, len(own) + 1))
        only = (end for end in ends if sum(other[-len(end) :] == end for other in parts.values()) == 1)
        found[folder] = "/".join(next(only, (folder,)))
    return found


def measure_folders(models: Compared, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Read every model once.

    Args:
        models: that are compared.
        settings: thresholds and the like.
        progress: makes a context manager of a function that is told how many more bytes are read.

    Returns:
        As `Measured.report`.

    Raises:
        PetkitError: a model cannot be read, models do not fit each other, or a number is not finite.
    """
    with ExitStack() as stack:
        hashes: Hashes = {}
        base = stack.enter_context(open_source(models.base, hashes))
        opened = {
            one["name"]: stack.enter_context(open_source(one["folder"], hashes)) for one in models.records
        }
        total = sum(entry.nbytes for one in (base, *opened.values()) for entry in one.entries.values())
        advance = stack.enter_context(progress(total))
        return measure(opened, base, settings, advance).report()
