"""`petkit distill` with `kind: vision`: what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petkit.cli import train


def result_rows(result: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """The table of a finished run: the student's as of any adapter, and its teacher beside it.

    Args:
        result: the content of result.json.
        folder: of the artifact.

    Returns:
        Name and value of each row.
    """
    rows = train.result_rows(result, folder)
    teacher = result["teacher"]
    found = [("teacher", teacher["id"])]
    if "accuracy" in teacher:
        same = f"same answer as the student in {teacher['agreement']:.1%}"
        found += [("teacher's test", f"{train.measured(teacher)}; {same}")]
    place = 1 + next(place for place, (name, _) in enumerate(rows) if name == "test")
    return [*rows[:place], *found, *rows[place:]]


def plan_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The table of a plan.

    Args:
        plan: of the recipe.

    Returns:
        Name and value of each row.
    """
    rows = train.plan_rows(plan)
    teacher = plan["teacher"]
    about = f"{teacher['id']} (sha256 {teacher['sha256'][:12]}), {teacher['image_size']} pixels"
    place = 1 + next(place for place, (name, _) in enumerate(rows) if name == "model")
    found = [("teacher", about), ("learns from", ", ".join(plan["learns"]))]
    return [*rows[:place], *found, *rows[place:]]
