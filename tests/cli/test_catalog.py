"""Which system a command and a recipe mean."""

import pytest

from petkit.cli.catalog import METHODS, configuration_of, load_configuration, method_for, method_of
from petkit.errors import ConfigError


def test_systems_of_one_command_differ_in_kind():
    named = [(method.command, method.kind) for method in METHODS]
    assert len(set(named)) == len(named)
    shared = [method for method in METHODS if method.command == "distill"]
    # Without a kind the first is meant.
    assert [method.kind for method in shared] == ["text", "vision"]
    for method in shared:
        assert "kind" in load_configuration(method).model_fields
    assert configuration_of("distill").__name__ == "DistillConfig"
    assert configuration_of("distill", "vision").__name__ == "VisionDistillationConfig"
    assert method_of("train adapter").shown_command == "train adapter"
    assert method_of("distill", "vision").shown_command == "distill (kind: vision)"


def test_a_recipe_says_its_kind(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("seed: 1\n")
    assert method_for("distill", [file], (), {}).name == "tropd"
    assert method_for("distill", [file], ("kind=vision",), {}).name == "vision_distillation"
    file.write_text("seed: 1\nkind: vision\n")
    assert method_for("distill", [file], (), {}).name == "vision_distillation"
    assert method_for("distill", [file], ("kind=text",), {}).name == "tropd"
    # Where a command has one system, its recipe is not looked at.
    assert method_for("train adapter", [file], (), {}).name == "binary_adapter"


def test_a_wrong_kind_is_named_with_the_nearest(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("seed: 1\nkind: visoin\n")
    message = r"kind must be text or vision, got 'visoin' \(r\.yaml:2\); did you mean vision\?"
    with pytest.raises(ConfigError, match=message):
        method_for("distill", [file], (), {})
    with pytest.raises(ConfigError, match=r"kind must be text or vision, got 3 \(--set\)$"):
        method_for("distill", [file], ("kind=3",), {})
    with pytest.raises(ConfigError, match="petkit train adapter has no kinds of recipes: leave --kind out"):
        method_of("train adapter", "vision")
    with pytest.raises(ConfigError, match=r"^unknown command 'distil'; did you mean 'distill'\?$"):
        method_of("distil")
