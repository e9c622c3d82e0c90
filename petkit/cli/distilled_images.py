"""`petkit distill` with `kind: vision`: what it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from petkit.cli import train
from petkit.cli.shipped import header
from petkit.errors import InputError


def check_teacher(model: str, files: Sequence[Path]) -> None:
    """Refuse a teacher that is not there, with what the recipe says of where it comes from.

    Args:
        model: `teacher.model`.
        files: the recipe's, whose comment `# needs: ...` may name it.

    Raises:
        InputError: it is a folder that does not exist.
    """
    from petkit.methods.vision_distillation.config import missing_folder

    missing = missing_folder(model)
    if missing is None:
        return
    needs = [text for text in (header(file).get("needs", "") for file in files) if model in text]
    raise InputError("; ".join([missing, *(f"{files[0].name} needs {text}" for text in needs[:1])]))


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
