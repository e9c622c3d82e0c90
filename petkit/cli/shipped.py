"""The recipes that come with petkit, found by the comment lines at their top. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "recipes"
NEEDS_NOTHING = "nothing"


@dataclass(frozen=True)
class Recipe:
    """A shipped recipe: its first lines say what it is for, which command runs it and what it needs."""

    name: str
    summary: str
    command: str
    needs: str
    path: Path


def shipped_recipes() -> list[Recipe]:
    """Every shipped recipe; those that need nothing of the user's come first."""
    return _found(FOLDER)


def shipped_experiments() -> list[Recipe]:
    """Every shipped experiment, which varies a recipe: `petkit bench adapters` runs them."""
    return _found(FOLDER / "experiments")


def shipped_recipe(name: str) -> Recipe | None:
    """The shipped recipe of that name, or None."""
    return next((recipe for recipe in shipped_recipes() if recipe.name == name), None)


def header(path: Path) -> dict[str, str]:
    """The comment lines at the top of a recipe: the first as `summary`, then each `# key: value`."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        key, colon, value = line.lstrip("# ").partition(": ")
        if not found:
            found["summary"] = line.lstrip("# ")
        elif colon and key.isidentifier():
            found[key] = value.strip()
    return found


def _found(folder: Path) -> list[Recipe]:
    found = [_read(path) for path in folder.glob("*.yaml")]
    return sorted(found, key=lambda recipe: (recipe.needs != NEEDS_NOTHING, recipe.name))


def _read(path: Path) -> Recipe:
    lines = header(path)
    return Recipe(path.stem, lines["summary"], lines["command"], lines["needs"], path)
