"""The task table of VTAB-1K: what the paper's search over the scale found, and the accuracies to expect."""

from __future__ import annotations

from typing import Any

from petkit.cli.shipped import FOLDER
from petkit.errors import ConfigError

TABLE = FOLDER / "tables" / "vtab1k.yaml"


def tasks() -> dict[str, dict[str, Any]]:
    """Task name to its group, number of classes, and per recipe the scale and the expected accuracy."""
    from petkit.configuration import load_yaml

    return dict(load_yaml(TABLE).data["tasks"])


def changes(recipe: str, task: str) -> dict[str, str]:
    """What `petkit recipes cp RECIPE FILE --task TASK` changes in the recipe.

    Args:
        recipe: name of a shipped recipe.
        task: name of a VTAB-1K task, such as kitti.

    Returns:
        Dotted key to YAML text: the task's scale, its data folder and a folder of its own for the output.

    Raises:
        ConfigError: the recipe is not one of VTAB-1K, or there is no such task.
    """
    table = tasks()
    if task not in table:
        raise ConfigError(f"--task must be one of {', '.join(table)}, got {task!r}")
    numbers = table[task]["recipes"].get(recipe)
    if numbers is None:
        raise ConfigError(f"--task is for the recipes {', '.join(table[task]['recipes'])}, got {recipe!r}")
    return {
        "output": f"runs/{recipe}-{task}",
        "adapter.scale": str(float(numbers["scale"])),
        "data.path": f"data/vtab-1k/{table[task]['folder']}",
    }
