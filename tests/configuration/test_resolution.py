"""Precedence, origins, strictness and keys without an effect, on a configuration of its own."""

from typing import Literal

import pytest
from pydantic import Field, model_validator

from petkit.configuration import (
    Config,
    above,
    applies_to,
    dump_yaml,
    effective,
    load_yaml,
    outside,
    parse_override,
    resolve,
)
from petkit.errors import ConfigError


class Inner(Config):
    """A section."""

    mode: Literal["fast", "slow"] = "fast"
    """How."""
    bits: Literal[1, 2, 32] = 1
    """Width."""
    gradient: str = Field(
        default="exact",
        json_schema_extra=applies_to({"mode": ("fast",), "bits": (1, 2)}, {"mode": ("slow",)}),
    )
    """Has an effect in slow mode, or at few bits."""
    names: tuple[str, ...] | None = Field(default=None, json_schema_extra=applies_to(mode=("slow",)))
    """Only in slow mode."""
    rate: float = Field(default=0.5, gt=0)
    """A positive number."""


class Outer(Config):
    """A recipe."""

    output: str
    """Where."""
    seed: int = Field(default=0, ge=0)
    """Root."""
    flag: bool = False
    """A switch."""
    note: str | None = Field(default=None, json_schema_extra=applies_to(**{"inner.mode": ("slow",)}))
    """Depends on a key of a section."""
    inner: Inner = Inner()
    optional: Inner | None = None

    @model_validator(mode="after")
    def _consistent(self):
        if self.seed == 13:
            raise ValueError("seed must not be 13")
        return self


@pytest.fixture
def recipe(tmp_path):
    def write(text, name="recipe.yaml"):
        file = tmp_path / name
        file.write_text(text)
        return file

    return write


def build(*files, overrides=(), flags=None, environment=None):
    return resolve(Outer, files, overrides, flags, environment or {})


def errors(*files, **sources):
    with pytest.raises(ConfigError) as caught:
        build(*files, **sources)
    return str(caught.value).splitlines()


def test_a_later_source_wins(recipe):
    first = recipe("output: a\nseed: 1\ninner: {rate: 1.0, bits: 2}\n")
    second = recipe("seed: 2\ninner: {rate: 2.0}\n", "second.yaml")
    environment = {"PETKIT_SET__SEED": "3", "PETKIT_SET__INNER__RATE": "3.0"}
    overrides = ["seed=4", "seed=5"]

    assert build(first).config.seed == 1
    assert build(first, second).config.seed == 2
    assert build(first, second, environment=environment).config.seed == 3
    assert build(first, second, environment=environment, overrides=overrides).config.seed == 5
    resolved = build(first, second, environment=environment, overrides=overrides, flags={"seed": 6})
    assert resolved.config.seed == 6
    assert resolved.config.inner == Inner(rate=3.0, bits=2)
    assert {key: where for key, where in resolved.origins.items() if where != "default"} == {
        "output": "recipe.yaml:1",
        "seed": "--seed",
        "inner.bits": "recipe.yaml:3",
        "inner.rate": "PETKIT_SET__INNER__RATE",
    }


def test_a_flag_that_was_not_given_sets_nothing():
    assert build(overrides=["output=a"], flags={"seed": None}).origins["seed"] == "default"


def test_other_petkit_variables_are_no_settings():
    environment = {"PETKIT_CPU_KERNELS": "avx2", "PETKIT_CACHE": "/x", "PETKIT_CUDA": "1", "HOME": "/"}
    assert build(overrides=["output=a"], environment=environment).config.output == "a"


def test_a_wrong_variable_is_named():
    lines = errors(overrides=["output=a"], environment={"PETKIT_SET__SEDE": "1"})
    assert lines == ["unknown key sede (PETKIT_SET__SEDE); did you mean seed?"]


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("output=1e5", "output", "1e5"),
        ("output=a=b", "output", "a=b"),
        ("inner.rate=1e-4", "inner", Inner(rate=1e-4)),
        ("inner.rate=2", "inner", Inner(rate=2.0)),
        ("inner={bits: 2, rate: 3.0}", "inner", Inner(bits=2, rate=3.0)),
        ("flag=true", "flag", True),
    ],
)
def test_override_values_are_yaml_and_text_stays_text(override, key, value):
    assert getattr(build(overrides=["output=x", override]).config, key) == value


@pytest.mark.parametrize("text", ["seed", "=3", "a b=1", "a..b=1", ""])
def test_malformed_overrides_with_a_key_of_their_own_configuration(text):
    with pytest.raises(ConfigError, match=rf"^--set must be KEY=VALUE, such as inner\.bits=1, got {text!r}$"):
        parse_override(text, Outer)


def test_a_configuration_without_numbers_has_no_example():
    class Words(Config):
        word: str = "a"

    with pytest.raises(ConfigError, match=r"^--set must be KEY=VALUE, got 'x'$"):
        parse_override("x", Words)


def test_a_list_becomes_a_tuple():
    resolved = build(overrides=["output=x", "inner.mode=slow", "inner.names=[a, b]"])
    assert resolved.config.inner.names == ("a", "b")


def test_an_optional_section():
    assert build(overrides=["output=x"]).config.optional is None
    assert build(overrides=["output=x", "optional.bits=2"]).config.optional == Inner(bits=2)
    assert errors(overrides=["output=x", "optional=3"]) == [
        "optional must be a section with keys of its own, got 3 (--set)"
    ]


def test_an_empty_section_is_its_defaults(recipe):
    assert build(recipe("output: x\ninner:\n")).config.inner == Inner()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=true", "seed must be a whole number, got true (--set)"),
        ("inner.bits=true", "inner.bits must be 1, 2 or 32, got true (--set)"),
        ("seed=1.0", "seed must be a whole number, got 1.0 (--set)"),
        ("flag=1", "flag must be true or false, got 1 (--set)"),
        ("inner.rate=0", "inner.rate must be greater than 0, got 0 (--set)"),
        ("inner.rate=.nan", "inner.rate must be a finite number, got nan (--set)"),
        ("seed=13", "seed must not be 13 (--set)"),
        ("inner.bits.deep=1", "inner.bits must be 1, 2 or 32, got {'deep': 1} (--set)"),
        ("inner.colour=1", "unknown key inner.colour (--set); inner has mode, bits, gradient, names, rate"),
        ("inner.seed=1", "unknown key inner.seed (--set); did you mean seed?"),
        ("inner.mode=" + "x" * 99, "inner.mode must be fast or slow, got 'xxx"),
    ],
)
def test_messages(override, message):
    lines = errors(overrides=["output=x", override])
    assert len(lines) == 1
    assert lines[0].startswith(message)
    assert len(lines[0]) < 200


def test_every_error_comes_at_once(recipe):
    file = recipe("sed: 1\nseed: -1\ninner:\n  bits: 3\n  names: [a]\n")
    assert set(errors(file)) == {
        "unknown key sed (recipe.yaml:1); did you mean seed?",
        "seed must be at least 0, got -1 (recipe.yaml:2)",
        "inner.bits must be 1, 2 or 32, got 3 (recipe.yaml:4)",
        "output is required and nothing sets it; add it to the recipe or pass --set output=VALUE",
        "inner.names has no effect with inner.mode fast; it needs mode slow (recipe.yaml:5); remove it",
    }


def test_malformed_overrides_come_with_the_other_errors():
    environment = {"PETKIT_SET__SEED": "[1", "PETKIT_SET__FLAG": "3"}
    found = errors(overrides=["output=x", "foo", "sede=1", "inner={"], environment=environment)
    for start in (
        "PETKIT_SET__SEED",
        "--set must be KEY=VALUE",
        "--set inner={",
        "unknown key sede",
        "flag must",
    ):
        assert sum(line.startswith(start) for line in found) == 1, found
    assert len(found) == 5


def test_a_key_that_another_key_of_the_same_source_switches_off(recipe):
    lines = errors(recipe("output: x\ninner:\n  bits: 32\n  gradient: exact\n"))
    assert lines == [
        "inner.gradient has no effect with inner.bits 32 and inner.mode fast; it needs mode fast and bits 1 "
        "or 2, or mode slow (recipe.yaml:4); remove it"
    ]


def test_a_condition_in_another_section():
    assert errors(overrides=["output=x", "note=a"]) == [
        "note has no effect with inner.mode fast; it needs inner.mode slow (--set); remove it"
    ]
    assert build(overrides=["output=x", "note=a", "inner.mode=slow"]).config.note == "a"


class Conditional(Config):
    """Keys that depend on a bound, and on how a text starts."""

    length: float = 0
    """How long."""
    first: float = Field(default=0.1, json_schema_extra=applies_to(length=(above(0),)))
    """With a length only."""
    name: str = "x/a"
    """Who."""
    way: str = Field(default="a", json_schema_extra=applies_to(name=(outside("x/", "y/"),)))
    """For others than x and y."""


def test_conditions_on_numbers_and_on_texts():
    with pytest.raises(ConfigError) as caught:
        resolve(Conditional, (), ["first=1", "way=b", "name=y/b"], {}, {})
    assert str(caught.value).splitlines() == [
        "first has no effect with length 0; it needs length above 0 (--set); remove it",
        "way has no effect with name y/b; it needs name outside x/ and y/ (--set); remove it",
    ]
    resolved = resolve(Conditional, (), ["length=0.5", "first=1", "name=z", "way=b"], {}, {}).config
    assert effective(resolved) == {"length": 0.5, "first": 1.0, "name": "z", "way": "b"}
    assert effective(Conditional()) == {"length": 0.0, "name": "x/a"}


def test_a_value_of_the_wrong_kind_meets_no_condition():
    with pytest.raises(ConfigError, match=r"^length must be a number, got 'long' [(]--set[)]$"):
        resolve(Conditional, (), ["length=long", "first=1"], {}, {})


def test_a_command_may_ignore_keys_of_files_but_not_of_overrides(recipe):
    ignored = {"inner": "nothing is inside", "note": "nobody reads it"}

    def ignoring(*overrides):
        file = recipe("output: x\ninner: {bits: 2, names: [a]}\n")
        return resolve(Outer, [file], overrides, {"note": "a flag"}, {}, ignored)

    assert ignoring("seed=3").config.inner.bits == 2
    with pytest.raises(ConfigError) as caught:
        ignoring("inner.bits=3", "note=x", "inner.bit=1", "seed=3")
    assert str(caught.value).splitlines() == [
        "unknown key inner.bit (--set); did you mean inner.bits?",
        "inner.bits has no effect: nothing is inside (--set); remove it",
        "note has no effect: nobody reads it (--set); remove it",
        "inner.bits must be 1, 2 or 32, got 3 (--set)",
    ]


def test_a_file_may_have_sections_that_only_other_commands_know(recipe):
    file = recipe("output: x\nteacher: {model: y}\nkind: z\n")
    ignored = {"teacher": "nobody is learnt from", "kind": "there is one"}
    assert resolve(Outer, [file], (), {}, {}, ignored).config.output == "x"
    for overrides, told in (((), "kind"), (("kind=z",), "kind"), (("teacher.model=z",), "teacher")):
        with pytest.raises(ConfigError, match=rf"^unknown key {told} "):
            resolve(Outer, [file], overrides, {}, {}, ignored if overrides else {"teacher": "no"})


def test_a_higher_layer_may_switch_a_key_off(recipe):
    file = recipe("output: x\ninner:\n  mode: slow\n  names: [a]\n")
    resolved = build(file, overrides=["inner.mode=fast"])
    assert resolved.config.inner == Inner()
    assert resolved.origins["inner.names"] == "default"
    assert resolved.dropped == (
        "inner.names has no effect with inner.mode fast; it needs mode slow (recipe.yaml:4)",
    )


def test_a_key_set_on_top_must_have_an_effect(recipe):
    file = recipe("output: x\ninner: {bits: 32}\n")
    assert len(errors(file, overrides=["inner.gradient=identity"])) == 1


def test_what_was_dumped_resolves_to_the_same(tmp_path):
    config = build(overrides=["output=1e5", "inner.bits=32", "inner.rate=1e-7", "seed=3"]).config
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))
    assert "gradient" not in load_yaml(file).data["inner"]
    assert build(file).config == config
    assert effective(config)["inner"] == {"mode": "fast", "bits": 32, "rate": 1e-7}


def test_a_duplicate_key_is_told_together_with_the_other_errors(tmp_path):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("output: x\nseed: 1\ncolour: red\nseed: -2\ninner:\n  rate: -1\n  rate: 1\n")
    with pytest.raises(ConfigError) as caught:
        resolve(Outer, [recipe], environment={})
    lines = str(caught.value).splitlines()
    assert lines[0] == "duplicate key seed (bad.yaml:2 and 4); keep one"
    assert lines[1] == "duplicate key inner.rate (bad.yaml:6 and 7); keep one"
    assert lines[2].startswith("unknown key colour (bad.yaml:3)")
    # The first of the two counts.
    assert lines[3].startswith("inner.rate must be")
    assert len(lines) == 4


class Switched(Config):
    way: Literal["a", "b"] = "a"
    inner: Inner = Field(default=Inner(), json_schema_extra=applies_to(way=("a",)))


def test_a_condition_on_a_section_is_one_on_each_of_its_keys():
    assert "inner" in effective(Switched())
    assert effective(Switched(way="b"))["inner"] == {}
    with pytest.raises(ConfigError, match=r"inner.mode has no effect with way b"):
        resolve(Switched, (), ["way=b", "inner.mode=slow"])
    assert resolve(Switched, (), ["inner.mode=slow"]).config.inner.mode == "slow"


class Named(Config):
    """A recipe with a mapping."""

    places: dict[str, str] = Field(default_factory=dict)
    """Name to place."""


def test_an_entry_of_a_mapping_leaves_the_others(recipe):
    file = recipe("places: {a: x, b: y}")

    def places(*overrides, environment=None):
        return resolve(Named, [file], overrides, None, environment or {}).config.places

    assert places("places.b=z") == {"a": "x", "b": "z"}
    assert places("places.c=z", "places.a=w") == {"a": "w", "b": "y", "c": "z"}
    assert places(environment={"PETKIT_SET__PLACES__A": "w"}) == {"a": "w", "b": "y"}
    # The mapping as a whole is another one.
    assert places("places={c: z}") == {"c": "z"}
    assert resolve(Named, [], ["places.c=z"], None, {}).config.places == {"c": "z"}
