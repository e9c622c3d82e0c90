from pathlib import Path

import pytest

from petkit.artifacts import Base, Manifest
from petkit.errors import ArtifactError
from petkit.methods.binary_adapter.recorded import check_sections, read_checked, section_faults
from petkit.models.config import AdapterConfig, ModelConfig
from tests.artifacts.support import edit_manifest, write_small


def faults(adapter=None, model=None):
    return section_faults(Manifest(base=Base(id="timm/x"), adapter=adapter or {}, model=model or {}))


def test_what_a_run_writes_is_sound():
    model = ModelConfig(name="timm/x").model_dump(mode="json")
    for method in ("adaptformer", "lora", "houlsby", "linear_probe"):
        assert faults(AdapterConfig(method=method).model_dump(mode="json"), model) == []


def test_an_artifact_may_leave_out_what_has_a_default():
    assert faults() == []


@pytest.mark.parametrize(
    ("adapter", "model", "sentence"),
    [
        (
            {"method": "banana"},
            {},
            "adapter.method must be adaptformer, lora, houlsby or linear_probe, got 'banana'",
        ),
        ({"bottelneck": 3}, {}, "unknown key adapter.bottelneck; did you mean adapter.bottleneck?"),
        ({"dropout": 1.5}, {}, "adapter.dropout must be less than 1, got 1.5"),
        ({"dropout": "0.1"}, {}, "adapter.dropout must be a number, got '0.1'"),
        ({"targets": "q"}, {}, "adapter.targets must be a list, such as [a, b], got 'q'"),
        ({}, {"pretraind": False}, "unknown key model.pretraind; did you mean model.pretrained?"),
        ({}, {"pretrained": "yes"}, "model.pretrained must be true or false, got 'yes'"),
        ({}, {"image_size": 4}, "model.image_size must be at least 8, got 4"),
    ],
)
def test_what_no_recipe_could_hold_is_told(adapter, model, sentence):
    assert faults(adapter, model) == [sentence]


def test_all_faults_are_in_one_line():
    broken = Manifest(base=Base(id="x"), adapter={"method": "banana", "colour": 1}, model={"depth": 2})
    with pytest.raises(ArtifactError) as caught:
        check_sections(broken, Path("a"))
    line = str(caught.value)
    assert "\n" not in line
    for part in ("a/petkit.json is broken: ", "'banana'", "adapter.colour", "model.depth"):
        assert part in line


def test_reading_checks_the_sections_too(tmp_path):
    folder = write_small(tmp_path / "a")
    assert read_checked(folder).packed
    edit_manifest(folder, adapter={"bits": 1, "method": "banana"})
    with pytest.raises(ArtifactError, match="got 'banana'"):
        read_checked(folder)
