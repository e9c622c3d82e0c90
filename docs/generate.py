"""Write docs/commands.md, docs/configuration.md and the tables of docs/edrm.md: `make docs`."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from petkit.cli.catalog import METHODS, load_configuration
from petkit.cli.config import SCHEMA_COLUMNS, schema_rows
from petkit.cli.main import VERBS, load_verb
from petkit.cli.reference import EXIT_CODES, OTHER_VARIABLES, OWN_VARIABLES, SETTING

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- Written by `make docs`; do not edit. -->\n"


def main() -> None:
    (DOCS / "commands.md").write_text(commands(), encoding="utf-8")
    (DOCS / "configuration.md").write_text(configuration(), encoding="utf-8")
    fill(DOCS / "edrm.md", routing_tables())


def fill(page: Path, tables: Mapping[str, str]) -> None:
    """Write tables between their marks in a page whose text is written by hand."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        start, end = f"<!-- {name}, written by `make docs` -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(start)
        text = f"{before}{start}\n{table}{end}{rest.partition(end)[2]}"
    page.write_text(text, encoding="utf-8")


def routing_tables() -> dict[str, str]:
    found = {}
    for path in sorted((DOCS.parent / "benchmarks/results").glob("routing-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found[path.stem] = policies_table(result["policies"])
        found[f"{path.stem} by set"] = sets_table(result["datasets"], result["dataset_level"])
    return found


def policies_table(policies: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| policy | accuracy | tokens a question | saved against always cot | direct / standard / cot |",
        "|---|---:|---:|---:|---:|",
    ]
    for one in policies:
        accuracy, tokens, saved = one["accuracy"], one["tokens"], one["tokens_saved"]
        modes = " / ".join(str(one["modes"].get(mode, 0)) for mode in ("direct", "standard", "cot"))
        lines.append(
            f"| {one['policy']} | {percent(accuracy)} | {tokens['mean']:.0f} ({tokens['low']:.0f} to "
            f"{tokens['high']:.0f}) | {percent(saved)} | {modes} |"
        )
    return "\n".join(lines) + "\n"


def sets_table(
    datasets: Mapping[str, Sequence[Mapping[str, Any]]],
    level: Mapping[str, Mapping[str, Mapping[str, int]]],
) -> str:
    """Accuracy and tokens of each policy on each set; and the modes, where choices of questions disagree."""
    names = list(datasets)
    lines = [f"| policy | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for index, one in enumerate(datasets[names[0]]):
        cells = [datasets[name][index] for name in names]
        kind = one["policy"].removeprefix("data set, ").replace(" ", "_")
        shown = [
            f"{cell['accuracy']['mean']:.0%}, {cell['tokens']['mean']:.0f}"
            + disagreement(level[name].get(kind, {}))
            for name, cell in zip(names, cells, strict=True)
        ]
        lines.append(f"| {one['policy']} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def disagreement(counts: Mapping[str, int]) -> str:
    """How often each mode is chosen for a set as a whole, where it is not always the same."""
    chosen = [f"{mode} {count}" for mode, count in counts.items() if count]
    return f" ({', '.join(chosen)} of {sum(counts.values())})" if len(chosen) > 1 else ""


def percent(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.1%} ({value['low']:.1%} to {value['high']:.1%})"


def commands() -> str:
    parts = ["# Commands", NOTE, f"```text\n{help_of()}\n```\n"]
    for verb in VERBS:
        parts.append(f"## petkit {verb}\n")
        beneath = getattr(load_verb(verb), "commands", {})
        for words in ([verb], *([verb, name] for name, one in beneath.items() if not one.hidden)):
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
        parts.append(f"## petkit {method.shown_command}\n\nSystem {method.name}: {method.paper}.\n")
        rows = [SCHEMA_COLUMNS, ["---"] * len(SCHEMA_COLUMNS), *schema_rows(load_configuration(method))]
        parts.append("\n".join(f"| {' | '.join(cell(value) for value in row)} |" for row in rows) + "\n")
    return "\n".join(parts)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


if __name__ == "__main__":
    main()
