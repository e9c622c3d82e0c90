"""Whether a configuration merges adapters or whole models, by what its folders hold. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from petkit.artifacts.source import is_adapter_folder
from petkit.errors import ConfigError
from petkit.merging.config import MergeConfig, split_adapter


def lists_adapters(config: MergeConfig) -> bool:
    """Whether a configuration merges adapters, by what its folders hold.

    Args:
        config: what is asked for.

    Returns:
        True for adapters, False for whole models.

    Raises:
        ConfigError: some of the one kind and some of the other; names one of each.
    """
    named = list(dict.fromkeys(source.model for one in config.slices for source in one.sources))
    adapters = [name for name in named if is_adapter_folder(name)]
    others = [name for name in named if name not in adapters]
    if adapters and others:
        raise ConfigError(
            f"adapters and whole models do not merge with each other: {adapters[0]} is an adapter, "
            f"{others[0]} is none; base+adapter is a model, as models: [{{model: BASE+{adapters[0]}}}]"
        )
    return bool(adapters)


def check_whole(config: MergeConfig, command: str) -> None:
    """Refuse adapters where whole models are needed.

    Args:
        config: what is asked for.
        command: that needs them, for the message.

    Raises:
        ConfigError: names an adapter, and what to write in its place.
    """
    for name in config.models:
        if is_adapter_folder(name):
            raise ConfigError(
                f"{command} works on whole models, {name} is an adapter: write BASE+{name} in its place"
            )


def check_apart(config: MergeConfig, file: Path, output: Path, more: Iterable[Path] = ()) -> None:
    """Refuse an output that a model or the configuration would be lost in, or that lies in a model.

    Args:
        config: what is asked for.
        file: that it was read from.
        output: folder to write.
        more: further files and folders that are read.

    Raises:
        ConfigError: names the input.
    """
    wanted = output.resolve()
    given = {str(path): path for path in (file, *more)}
    for name, path in {**folders_of(config), **given}.items():
        own = path.resolve()
        if wanted == own or wanted in own.parents or (own in wanted.parents and path.is_dir()):
            raise ConfigError(f"--output {output} must lie apart from what is read, {name}")


def folders_of(config: MergeConfig) -> dict[str, Path]:
    """Every folder that a merge reads, by the name that the configuration gives it.

    Args:
        config: what is asked for; `base+adapter` is two folders.
    """
    parts = (part for name in config.models for part in split_adapter(name) if part is not None)
    return {part: Path(part) for part in parts}
