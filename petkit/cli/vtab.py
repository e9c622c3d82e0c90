"""The task table of VTAB-1K: the scales that the authors' search found, and the accuracies to expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from petkit.cli.shipped import FOLDER
from petkit.errors import ConfigError

TABLE = FOLDER / "tables" / "vtab1k.yaml"


def tasks() -> dict[str, dict[str, Any]]:
    """Task name to its group, folder, number of classes, and per recipe the scales and the accuracy."""
    from petkit.configuration import load_yaml

    return dict(load_yaml(TABLE).data["tasks"])


def recipes() -> list[str]:
    """Names of the recipes that the table is for."""
    return list(next(iter(tasks().values()))["recipes"])


def changes(recipe: str, task: str, overrides: Mapping[str, str]) -> dict[str, str]:
    """What `petkit recipes cp RECIPE FILE --task TASK` changes in the recipe.

    Args:
        recipe: name of a shipped recipe.
        task: name of a VTAB-1K task, such as kitti.
        overrides: the keys that `--set` changes too: the scale depends on the head and on the bottleneck.

    Returns:
        Dotted key to YAML text: the task's scale, its data folder and an output folder of its own.

    Raises:
        ConfigError: the recipe is not one of VTAB-1K, or there is no such task.
    """
    table = tasks()
    if task not in table:
        raise ConfigError(f"--task must be one of {', '.join(table)}, got {task!r}")
    numbers = table[task]["recipes"].get(recipe)
    if numbers is None:
        raise ConfigError(f"--task is for the recipes {' and '.join(recipes())}, got {recipe!r}")
    return {
        "output": f"runs/{recipe}-{task}",
        "adapter.scale": str(float(numbers[_column(overrides)])),
        "data.path": f"data/vtab-1k/{table[task]['folder']}",
    }


def _column(overrides: Mapping[str, str]) -> str:
    if overrides.get("adapter.bottleneck") == "1":
        return "with_bottleneck_1"
    return "with_binary_head" if overrides.get("adapter.head") == "binary" else "scale"
