"""Exit codes and environment variables are complete."""

import ast
import re
from pathlib import Path

import pytest

from petkit import errors
from petkit.cli import main, process
from petkit.cli.reference import EXIT_CODES, OWN_VARIABLES, PREFIX, SETTING, unknown_variables

ROOT = Path(__file__).resolve().parents[2]


def test_every_exit_code_has_a_meaning():
    kinds = [one for one in vars(errors).values() if isinstance(one, type) and hasattr(one, "exit_code")]
    raised = {kind.exit_code for kind in kinds}
    assert {0, *raised, main.INTERRUPT_EXIT_CODE, process.SIGTERM_EXIT_CODE} == set(EXIT_CODES)


def test_every_variable_that_is_read_has_a_meaning():
    found = set()
    for path in (ROOT / "setup.py", *(ROOT / "petkit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.update(re.findall(r"\bPETKIT_[A-Z]+(?:_[A-Z]+)*\b", node.value))
    # PETKIT_SET__ starts the name of a setting.
    assert found - {"PETKIT_SET"} == set(OWN_VARIABLES)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("PETKIT_SET_TRAINING__EPOCHS", "; did you mean PETKIT_SET__TRAINING__EPOCHS?"),
        ("PETKIT_OUTPUT", "; did you mean PETKIT_SET__OUTPUT?"),
        ("PETKIT_TRAINING__EPOCH", "; did you mean PETKIT_SET__TRAINING__EPOCHS?"),
        ("PETKIT_CACHES", "; did you mean PETKIT_CACHE?"),
        ("PETKIT_ZZZ", ""),
    ],
)
def test_a_variable_that_nothing_reads(name, hint):
    assert list(unknown_variables({name: "1"})) == [f"the environment variable {name} has no effect{hint}"]


def test_variables_that_are_read_or_another_programs_are_left_alone():
    known = {f"{SETTING}TRAINING__EPOCHS": "3", "PATH": "x", **OWN_VARIABLES}
    assert all(name.startswith(PREFIX) for name in OWN_VARIABLES)
    assert list(unknown_variables(known)) == []
