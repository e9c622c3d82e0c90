import json

import pytest
from pydantic import ValidationError

from petkit.artifacts import Base, Manifest, Task
from petkit.artifacts.manifest import parse_manifest
from petkit.errors import ArtifactError


def test_only_the_base_is_needed():
    made = Manifest(base=Base(id="timm/x"))
    assert (made.schema_version, made.kind, made.lineage, made.tensors_sha256) == (1, "adapter", (), None)
    assert parse_manifest(made.to_json().encode(), "x") == made


def test_fields_cannot_be_changed_or_misspelt():
    made = Manifest(base=Base(id="timm/x"))
    with pytest.raises(ValidationError, match="frozen"):
        made.kind = "router"
    with pytest.raises(ValidationError, match="Extra inputs"):
        Base(id="x", sha265="0")


def test_scaling_of_a_site():
    made = Manifest(base=Base(id="x"), adapter={"scale": 0.5}, scaling={"a": 3.0})
    assert (made.scaling_of("a"), made.scaling_of("b")) == (3.0, 0.5)
    assert Manifest(base=Base(id="x")).scaling_of("a") == 1.0


def test_a_later_version_is_told_before_anything_else():
    content = {"schema_version": 99, "base": "of another shape", "new_field": 1}
    with pytest.raises(
        ArtifactError, match="schema_version 99 is later than 1, the last known: upgrade petkit"
    ):
        parse_manifest(json.dumps(content).encode(), "petkit.json")


def test_several_faults_are_told_at_once():
    content = {"schema_version": 1, "base": {"id": 1}, "task": {"type": "x"}, "y": 0}
    with pytest.raises(ArtifactError, match=r"base\.id: .*; task\.type: .*; unknown key y"):
        parse_manifest(json.dumps(content).encode(), "petkit.json")


def test_text_is_not_escaped():
    task = Task(type="image_classification", classes=("chèvre",))
    assert "chèvre" in Manifest(base=Base(id="x"), task=task).to_json()
