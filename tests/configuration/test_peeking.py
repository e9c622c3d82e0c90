"""One key of a recipe, before the configuration is known: as `resolve` would find it."""

import os

import pytest

from petkit.configuration import Config, peek, resolve
from petkit.errors import ConfigError


class Kinds(Config):
    """A recipe of two keys."""

    kind: str = "none"
    seed: int = 0


@pytest.fixture
def write(tmp_path):
    def make(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return make


@pytest.mark.parametrize(
    ("overrides", "environment"),
    [
        ((), {}),
        (("kind=c",), {}),
        (("kind=c", "kind=d"), {"PETKIT_SET__KIND": "e"}),
        ((), {"PETKIT_SET__KIND": "e"}),
        (("seed=3", " kind = c"), {}),
    ],
)
def test_precedence_is_that_of_resolve(write, overrides, environment):
    files = [
        write("a.yaml", "seed: 1\nkind: a\n"),
        write("b.yaml", "kind: b\n"),
        write("c.yaml", "seed: 2\n"),
    ]
    found = peek("kind", files, overrides, environment)
    resolved = resolve(Kinds, files, overrides, environment=environment)
    assert found.value.strip() == resolved.config.kind.strip()
    assert found.origin == resolved.origins["kind"]


def test_a_key_that_nothing_sets(write):
    assert (
        peek("kind", [write("a.yaml", "seed: 1\nx: {kind: b}\n")], ("seed=2", "x.kind=3", "kind"), {}) is None
    )
    assert peek("kind", [], (), {}) is None


def test_what_is_missing_is_left_to_resolve(tmp_path):
    assert peek("kind", [tmp_path / "absent.yaml"], (), {}) is None
    os.mkfifo(tmp_path / "pipe")
    assert peek("kind", [tmp_path / "pipe"], (), {}) is None


def test_a_file_that_is_no_recipe_is_named(write):
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        peek("kind", [write("bad.yaml", "[1")], (), {})
