"""The shipped recipes, and copies of them."""

import json
from pathlib import Path

import pytest

from petkit.benchmarks.experiment import load_experiment
from petkit.cli import vtab
from petkit.cli.catalog import configuration_of, load_configuration, method_for
from petkit.cli.common import recipe_files
from petkit.cli.shipped import shipped_recipes
from petkit.configuration import load_yaml, resolve
from petkit.errors import ConfigError


def test_ls_gives_names_and_commands(petkit):
    payload = json.loads(petkit("recipes", "ls", "--json").out)
    recipes = {recipe["name"]: recipe for recipe in payload["recipes"]}
    assert recipes["adapter-smoke"]["command"] == "train adapter"
    assert payload["recipes"][0]["needs"] == "nothing"
    assert {
        "adapter-demo",
        "vtab1k-bi-adaptformer",
        "vtab1k-bi-lora",
        "chat-lora-1bit",
        "text-lora-1bit",
    } <= set(recipes)


@pytest.mark.parametrize("recipe", shipped_recipes(), ids=lambda recipe: recipe.name)
def test_every_shipped_recipe_is_valid(recipe):
    model = load_configuration(method_for(recipe.command, [recipe.path], environment={}))
    resolved = resolve(model, [recipe.path], environment={})
    assert resolved.dropped == ()
    assert resolved.config.output.startswith(f"runs/{recipe.name}")


def test_show_prints_the_file(petkit):
    out = petkit("recipes", "show", "adapter-smoke").out
    assert "name: timm/test_vit" in out
    assert json.loads(petkit("recipes", "show", "adapter-smoke", "--json").out)["text"] == out


def test_cp_keeps_comments_and_applies_changes(petkit, tmp_path):
    file = tmp_path / "mine.yaml"
    changes = ["--set", "training.epochs=5", "--set", "seed=7", "--set", "output=runs/mine"]
    assert petkit("recipes", "cp", "adapter-smoke", file, *changes).code == 0
    assert file.read_text().startswith("# A tiny random ViT")
    data = load_yaml(file).data
    assert (data["training"]["epochs"], data["seed"], data["output"]) == (5, 7, "runs/mine")


def test_experiments_are_listed_shown_and_copied(petkit, tmp_path):
    payload = json.loads(petkit("recipes", "ls", "--json").out)
    commands = {recipe["name"]: recipe["command"] for recipe in payload["recipes"]}
    experiments = {name for name, command in commands.items() if command == "bench adapters"}
    assert experiments == {"constant-bytes", "demo", "noise", "quantization"}
    assert "noise: [0.0, 0.1" in petkit("recipes", "show", "noise").out
    file = tmp_path / "mine.yaml"
    _, _, err = petkit("recipes", "cp", "noise", file, "--set", "seeds=5")
    assert f"run it with: petkit bench adapters {file}" in err
    experiment, _ = load_experiment(str(file))
    assert (experiment.seeds, len(experiment.variants)) == (5, 2)


@pytest.mark.parametrize(
    ("name", "example"),
    [("adapter-smoke", "training.epochs=3"), ("tagger-smoke", "training.epochs=3"), ("noise", "seeds=3")],
)
def test_cp_refuses_a_change_without_a_value(petkit, tmp_path, name, example):
    result = petkit("recipes", "cp", name, tmp_path / "mine.yaml", "--set", "foo")
    assert (result.code, result.out) == (2, "")
    assert result.err == f"error: --set must be KEY=VALUE, such as {example}, got 'foo'\n"


def test_cp_does_not_replace_a_file_unasked(petkit, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("mine")
    code, out, err = petkit("recipes", "cp", "adapter-smoke", file)
    assert (code, out) == (2, "")
    assert err == f"error: {file} exists; choose another name or pass --overwrite\n"
    assert file.read_text() == "mine"
    assert petkit("recipes", "cp", "adapter-smoke", file, "--overwrite").code == 0


def test_cp_into_a_missing_folder(petkit, tmp_path):
    code, _, err = petkit("recipes", "cp", "adapter-smoke", tmp_path / "no" / "mine.yaml")
    assert code == 2
    assert "must lie in a folder that exists" in err


@pytest.mark.parametrize(
    ("recipe", "extra", "scale"),
    [
        ("vtab1k-bi-lora", [], 10.0),
        ("vtab1k-bi-adaptformer", [], 1.0),
        ("vtab1k-bi-lora", ["--set", "adapter.bottleneck=1"], 100.0),
        ("vtab1k-bi-adaptformer", ["--set", "adapter.scale=0.5"], 0.5),
    ],
)
def test_cp_fills_in_a_vtab_task(recipe, extra, scale, petkit, tmp_path):
    file = tmp_path / "kitti.yaml"
    assert petkit("recipes", "cp", recipe, file, "--task", "kitti", *extra).code == 0
    config = resolve(configuration_of("train adapter"), [file], environment={}).config
    assert config.adapter.scale == scale
    assert config.data.path == "data/vtab-1k/kitti"
    assert config.output == f"runs/{recipe}-kitti"


def test_cp_refuses_an_unknown_task_and_a_recipe_without_tasks(petkit, tmp_path):
    file = tmp_path / "x.yaml"
    assert (
        "--task must be one of cifar," in petkit("recipes", "cp", "vtab1k-bi-lora", file, "--task", "x").err
    )
    assert (
        "--task is for the recipes" in petkit("recipes", "cp", "adapter-smoke", file, "--task", "kitti").err
    )
    assert not file.exists()


@pytest.mark.parametrize(("recipe", "average"), [("vtab1k-bi-adaptformer", 77.0), ("vtab1k-bi-lora", 76.7)])
def test_the_task_table_gives_the_papers_averages(recipe, average):
    groups: dict[str, list[float]] = {}
    for task in vtab.tasks().values():
        groups.setdefault(task["group"], []).append(task["recipes"][recipe]["accuracy"])
    assert {name: len(group) for name, group in groups.items()} == {
        "natural": 7,
        "specialized": 4,
        "structured": 8,
    }
    means = [sum(group) / len(group) for group in groups.values()]
    assert sum(means) / 3 == pytest.approx(average, abs=0.05)


def test_the_task_table_has_the_papers_classes():
    assert sum(task["classes"] for task in vtab.tasks().values()) == 940


def test_a_recipe_argument_is_a_file_or_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe_files(["adapter-smoke"], None)[0].name == "adapter-smoke.yaml"
    Path("adapter-smoke").write_text("")
    assert recipe_files(["adapter-smoke"], ["other.yaml"]) == [Path("adapter-smoke"), Path("other.yaml")]
    with pytest.raises(ConfigError, match="a recipe must be given"):
        recipe_files(None, None)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("adapter-smok", "did you mean adapter-smoke?"),
        ("constant-byte", "did you mean constant-bytes?"),
        ("zzz", "there are adapter-smoke, tagger-smoke, adapter-demo, "),
    ],
)
def test_an_unknown_name_gets_a_hint(petkit, name, hint):
    code, _, err = petkit("recipes", "show", name)
    assert code == 2
    assert err.startswith(f"error: no shipped recipe is named '{name}'; {hint}")
