"""Write docs/commands.md and docs/configuration.md from the program itself: `make docs`."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from petkit.cli.catalog import METHODS, configuration_of
from petkit.cli.config import SCHEMA_COLUMNS, schema_rows
from petkit.cli.main import VERBS, load_verb
from petkit.cli.reference import EXIT_CODES, OTHER_VARIABLES, OWN_VARIABLES, SETTING

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- Written by `make docs`; do not edit. -->\n"


def main() -> None:
    (DOCS / "commands.md").write_text(commands(), encoding="utf-8")
    (DOCS / "configuration.md").write_text(configuration(), encoding="utf-8")


def commands() -> str:
    parts = ["# Commands", NOTE, f"```text\n{help_of()}\n```\n"]
    for verb in VERBS:
        parts.append(f"## petkit {verb}\n")
        for words in ([verb], *([verb, name] for name in getattr(load_verb(verb), "commands", {}))):
            parts.append(f"```text\n{help_of(*words)}\n```\n")
    parts += ["## Exit codes\n", "The same with `--json`.\n", rows(("code", "meaning"), EXIT_CODES)]
    setting = {
        f"{SETTING}SECTION__KEY": "Sets a key, such as `PETKIT_SET__TRAINING__EPOCHS=3`; `--set` wins."
    }
    parts += [
        "## Environment variables\n",
        "Of the variables whose names start with `PETKIT_`, any other one is warned about.\n",
        rows(("variable", "meaning"), {**setting, **OWN_VARIABLES, **OTHER_VARIABLES}),
    ]
    return "\n".join(parts)


def rows(titles: tuple[str, str], meanings: Mapping[object, str]) -> str:
    lines = [titles, ("---", "---"), *((f"`{name}`", meaning) for name, meaning in meanings.items())]
    return "\n".join(f"| {name} | {meaning} |" for name, meaning in lines) + "\n"


def help_of(*words: str) -> str:
    environment = {**os.environ, "TERMINAL_WIDTH": "100", "COLUMNS": "100", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "petkit", *words, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def configuration() -> str:
    parts = ["# Configuration", NOTE]
    for method in METHODS:
        parts.append(f"## petkit {method.command}\n\nSystem {method.name}: {method.paper}.\n")
        rows = [SCHEMA_COLUMNS, ["---"] * len(SCHEMA_COLUMNS), *schema_rows(configuration_of(method.command))]
        parts.append("\n".join(f"| {' | '.join(cell(value) for value in row)} |" for row in rows) + "\n")
    return "\n".join(parts)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


if __name__ == "__main__":
    main()
