"""The recipes that come with petkit, found by the comment lines at their top. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "recipes"
NEEDS_NOTHING = "nothing"
KEYS = ("command", "needs")


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
    """The comment lines at the top of a recipe: `# command: value`, `# needs: value`, and a `summary`.

    The summary is the first of the other lines; blank lines between them count as nothing.
    """
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.strip() and not line.startswith("#"):
            break
        text = line.lstrip("# ")
        key, colon, value = text.partition(":")
        if colon and key.strip() in KEYS:
            found[key.strip()] = value.strip()
        elif text:
            found.setdefault("summary", text)
    return found


def _found(folder: Path) -> list[Recipe]:
    found = [_read(path) for path in folder.glob("*.yaml")]
    return sorted(found, key=lambda recipe: (recipe.needs != NEEDS_NOTHING, recipe.name))


def _read(path: Path) -> Recipe:
    lines = header(path)
    return Recipe(path.stem, lines["summary"], lines["command"], lines["needs"], path)
