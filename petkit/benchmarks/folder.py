"""The folder of an experiment: marked with whose it is, and refused when it is another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from petkit.artifacts import atomic_write
from petkit.benchmarks.experiment import ExperimentConfig
from petkit.errors import InputError

MARK = "experiment.json"
RESULTS = "results.json"


def check_folder(folder: Path, name: str, experiment: ExperimentConfig) -> None:
    """Refuse a folder that holds anything but this experiment; nothing is written.

    Args:
        folder: where the runs are to go; it may be missing.
        name: of the experiment.
        experiment: its recipe and variants.

    Raises:
        InputError: it is a file, or it holds files and neither its mark, its results nor its runs are this
            experiment's.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {folder} must be a folder, it is a file: choose another")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if (folder / MARK).exists():
        owner = _read(folder / MARK)
        own = (owner.get("name"), owner.get("recipe")) == (name, experiment.recipe)
        holds = f"the experiment {owner.get('name')} of {owner.get('recipe')}"
    else:
        own, holds = _unmarked(folder, name, experiment), "files that are not this experiment's"
    if not own:
        raise InputError(
            f"output folder {folder} must be empty or hold the experiment {name} of {experiment.recipe}, "
            f"it holds {holds}: choose another with -o"
        )


def mark_folder(folder: Path, name: str, experiment: ExperimentConfig) -> None:
    """Make the folder and write whose it is.

    Args:
        folder: as `check_folder` let it pass.
        name: of the experiment.
        experiment: its recipe and variants.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = {"name": name, "recipe": experiment.recipe}
    atomic_write(folder / MARK, (json.dumps(mark, indent=2) + "\n").encode())


def _unmarked(folder: Path, name: str, experiment: ExperimentConfig) -> bool:
    """Whether a folder of before there were marks is this experiment's, by its results or else its runs."""
    if (folder / RESULTS).exists():
        return _read(folder / RESULTS).get("experiment") == title(name)
    variants = {variant.folder for variant in experiment.variants}
    return all(entry.is_dir() and entry.name in variants for entry in folder.iterdir())


def title(name: str) -> str:
    """An experiment's name as its results and its page have it."""
    return f"petkit: {name}"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
