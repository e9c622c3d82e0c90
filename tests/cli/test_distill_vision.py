"""`petkit distill` with `kind: vision`: runs, plans, refusals, and what takes its artifact."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from tests.cli.test_distill import start, wait_for_step
from tests.methods.vision_distillation import tiny

HERE = ["--threads", "1", "--device", "cpu"]
DRY = "--dry-run"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    return tiny.save_teacher(tmp_path_factory.mktemp("vision-cli") / "teacher")


@pytest.fixture
def write(teacher, tmp_path):
    def make(**changes):
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(tiny.content(tmp_path / "run", teacher, **changes), sort_keys=False))
        return file

    return make


@pytest.fixture
def distill(petkit, write):
    def call(*flags, **changes):
        return petkit("distill", write(**changes), *HERE, *flags)

    return call


def rows(result):
    assert result.code == 0, result.err
    return dict(line.split(maxsplit=1) for line in result.out.splitlines() if not line.startswith(" "))


@pytest.mark.parametrize("flags", [[], [DRY]])
def test_a_teacher_that_is_not_there_is_said_to_be_so(petkit, tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    result = petkit("distill", "distill-vision-smoke", *HERE, *flags)
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "error: teacher.model runs/adapter-smoke: there is no such folder; published models are timm/NAME "
        "or hf/ORG/NAME; distill-vision-smoke.yaml needs runs/adapter-smoke, which "
        "`petkit train adapter adapter-smoke` makes\n"
    )
    other = petkit("distill", "distill-vision-smoke", *HERE, "--set", "teacher.model=runs/other", *flags)
    assert (other.code, "teacher.model runs/other: there is no such folder" in other.err) == (2, True)
    assert "needs" not in other.err
    name = petkit("distill", "distill-vision-smoke", *HERE, "--set", "teacher.model=resnet18", *flags)
    assert (name.code, "'resnet18', which is none of these" in name.err) == (2, True)


def test_a_dry_run_prints_the_plan(distill, teacher, tmp_path):
    found = rows(distill(DRY))
    assert found["model"].startswith("timm/test_vit (sha256 ")
    assert found["teacher"].startswith(f"{teacher} (sha256 ")
    assert found["teacher"].endswith("48 pixels")
    assert found["learns"] == "from   labels, logits, features"
    assert found["data"] == "20 train, 10 test; 10 classes"
    assert found["steps"] == "4 (2 an epoch, 0 of warm-up)"
    assert not (tmp_path / "run").exists()
    plan = json.loads(distill(DRY, "--json").out)
    assert (plan["status"], plan["teacher"]["id"], plan["folder"]) == ("plan", teacher, str(tmp_path / "run"))


def test_a_finished_run_is_an_adapter_like_any_other(petkit, distill, teacher, tmp_path):
    result = distill()
    folder, found = tmp_path / "run", rows(result)
    assert (found["artifact"], found["teacher"], found["status"]) == (str(folder), teacher, "completed")
    assert "n 10" in found["test"]
    assert "same answer as the student in " in found["teacher's"]
    assert "no report.html" not in result.err
    report = (folder / "report.html").read_text()
    for text in ("teacher&#x27;s accuracy", "same answer as the teacher", teacher):
        assert text in report
    assert (folder / "plots" / "teaching.png").exists()
    told = json.loads((folder / "result.json").read_text())
    measured = petkit("eval", folder, "--json")
    assert measured.code == 0, measured.err
    assert json.loads(measured.out)["accuracy"] == told["accuracy"]
    # Its recipe names data for other artifacts as well.
    other = petkit("eval", teacher, "--data", tmp_path / "recipe.yaml", "--json")
    assert other.code == 0, other.err
    assert json.loads(other.out)["accuracy"] == told["teacher"]["accuracy"]
    assert petkit("verify", folder).code == 0
    page = petkit("inspect", folder)
    assert "lineage  petkit distill" in page.out
    assert petkit("diff", folder, folder).code == 0
    exported = petkit("export", folder, "-o", tmp_path / "exported", "--to", "peft")
    assert "Traceback" not in exported.err
    picture = tmp_path / "p.png"
    from PIL import Image

    Image.new("RGB", (20, 20)).save(picture)
    said = petkit("predict", folder, picture, "--json")
    assert said.code == 0, said.err
    merged = petkit("merge", "adapters", folder, folder, "-o", tmp_path / "merged")
    assert "Traceback" not in merged.err
    again = distill()
    assert (again.code, again.out) == (2, "")
    assert "is not empty: choose another, --resume or --overwrite" in again.err


def test_the_result_is_one_object_on_stdout(distill, tmp_path):
    result = distill("--json", "--seed", 5, "--max-steps", 1, "--dtype", "bfloat16", "-o", tmp_path / "own")
    found = json.loads(result.out)
    assert (found["folder"], found["seed"], found["steps"]) == (str(tmp_path / "own"), 5, 1)
    assert found["teacher"]["n"] == 10


def test_a_stopped_run_goes_on(distill, tmp_path):
    assert rows(distill("--max-steps", "3"))["steps"] == "3 of 4"
    assert rows(distill("--resume"))["steps"] == "4 of 4"
    drifted = distill("--resume", "--set", "distillation.temperature=2")
    assert (drifted.code, drifted.out) == (2, "")
    assert "distillation.temperature: 4.0 -> 2.0" in drifted.err


BAD = [
    ({"kind": "visoin"}, "kind must be text or vision, got 'visoin' (recipe.yaml:1); did you mean vision?"),
    ({"kind": "text"}, "unknown key distillation (recipe.yaml:13); the top level has kind, "),
    ({"teacher__modl": "x"}, "unknown key teacher.modl (recipe.yaml:"),
    ({"distillation__temprature": 1.0}, "did you mean distillation.temperature?"),
    ({"distillation": {"alpha": 0.0}}, "distillation.alpha must be above 0 where feature_weight is 0, got 0"),
    ({"distillation__alpha": 2.0}, "distillation.alpha must be at most 1, got 2.0"),
    (
        {"distillation": {"alpha": 0.0, "feature_weight": 1.0, "temperature": 2.0}},
        "distillation.temperature has no effect with distillation.alpha 0",
    ),
    (
        {"distillation": {"feature_loss": "mse"}},
        "distillation.feature_loss has no effect with distillation.feature_weight 0",
    ),
    ({"adapter": {"method": "linear_probe"}}, "has no effect with adapter.method linear_probe"),
    ({"teacher__model": "nowhere"}, "teacher.model must be timm/NAME, hf/ORG/NAME"),
    ({"teacher__image_size": 32}, "teacher.image_size has no effect on an artifact"),
    ({"student__model__name": "timm/test_vitt"}, "did you mean timm/test_vit"),
    ({"data": {"format": "text", "path": "x"}}, "data.format must be sample, vtab or image_folder"),
    ({"data": {"format": "image_folder", "path": "none"}}, "data.path none is not a folder"),
    ({"data__skip_bad": 3}, "data.skip_bad must be true or false, got 3"),
    ({"training__batch_size": 500}, "training.batch_size x processes must be at most the 20"),
    ({"adapter": {"method": "lora", "targets": ["nothing"]}}, "nothing"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
@pytest.mark.parametrize("flags", [[], [DRY]])
def test_a_run_and_its_plan_refuse_alike(distill, tmp_path, changes, message, flags):
    result = distill(*flags, **changes)
    assert (result.code, result.out) == (2, ""), result.err
    assert message in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "run").exists()


def test_the_kind_may_be_set(distill, petkit, write):
    file = write()
    assert petkit("distill", file, *HERE, DRY, "--set", "kind=text").code == 2
    file.write_text(file.read_text().replace("kind: vision\n", ""))
    assert "unknown key distillation" in petkit("distill", file, *HERE, DRY).err
    assert petkit("distill", file, *HERE, DRY, "--set", "kind=vision").code == 0


def test_a_cache_is_for_language_models(petkit, write, tmp_path):
    result = petkit("distill", "cache", write(), "-o", tmp_path / "cache")
    assert (result.code, result.out) == (2, "")
    assert "petkit distill cache keeps responses of language models" in result.err


def test_the_reference_knows_both_kinds(petkit, write):
    schema = petkit("config", "schema", "distill", "--kind", "vision")
    assert schema.code == 0
    for key in ("distillation.feature_weight", "teacher.base", "student.model.name"):
        assert key in schema.out
    assert "objective.kind" in petkit("config", "schema", "distill").out
    wrong = petkit("config", "schema", "distill", "--kind", "visio")
    assert (wrong.code, "did you mean vision?" in wrong.err) == (2, True)
    file = write()
    assert petkit("config", "validate", file, "--command", "distill").code == 0
    shown = json.loads(petkit("config", "show", file, "--command", "distill", "--json").out)
    assert shown["config"]["kind"] == "vision"
    assert shown["origins"]["kind"] == "recipe.yaml:1"
    assert "petkit distill (kind: vision)" in petkit("list", "methods").out
    assert "kind: vision" in petkit("distill", "--help").out


def test_a_copy_of_the_smoke_recipe_needs_its_teacher_too(petkit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert petkit("recipes", "cp", "distill-vision-smoke", "own.yaml", "--set", "seed=3").code == 0
    result = petkit("distill", "own.yaml", *HERE, DRY)
    assert (result.code, result.out) == (2, "")
    assert "own.yaml needs runs/adapter-smoke, which `petkit train adapter adapter-smoke` makes" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 17])
def test_killed_and_resumed_gives_the_same_bytes(petkit, write, tmp_path, step):
    long = {"training__epochs": 50, "training__checkpoint_steps": 3, "training__max_steps": 40}
    recipe = write(adapter__dropout=0.3, training__checkpoint_every=100, **long)
    assert petkit("distill", recipe, *HERE, "-o", tmp_path / "whole").code == 0
    process = start("distill", recipe, *HERE, "-o", tmp_path / "killed")
    wait_for_step(process, tmp_path / "killed", step)
    process.kill()
    process.communicate()
    resumed = petkit("distill", recipe, *HERE, "-o", tmp_path / "killed", "--resume")
    assert resumed.code == 0, resumed.err
    name = "adapter_packed.safetensors"
    assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
