"""Translators on the command line: train, resume, inspect and verify."""

import json
import shutil
import sys

import pytest
import torch
import yaml

from petkit.artifacts.translator import read_translator
from petkit.data.subwords import train_subwords
from tests.methods.nart_crf import tiny

HERE = ["--threads", "1", "--device", "cpu"]
SMOKE = ["train", "nat", "nat-smoke", *HERE]
DRY = "--dry-run"


@pytest.fixture
def train(petkit, tmp_path):
    """`train("--dry-run", model__kind="nart")` trains by a tiny recipe into tmp_path / "run"."""

    def call(*flags, **changes):
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(tiny.content(tmp_path / "run", **changes)))
        return petkit("train", "nat", file, *HERE, *flags)

    return call


@pytest.fixture
def copied(student, tmp_path):
    return shutil.copytree(student, tmp_path / "copied")


def rows(result):
    assert result.code == 0, result.err
    return dict(line.split(maxsplit=1) for line in result.out.splitlines())


def test_a_dry_run_prints_the_plan(petkit, tmp_path):
    result = petkit(*SMOKE, DRY, "-o", tmp_path / "run")
    assert rows(result) == {
        "output": str(tmp_path / "run"),
        "model": "nart-crf, 350 subwords",
        "device": "cpu, 1 process(es)",
        "sentences": "1,600 train, 150 test",
        "trainable": "228,704 parameters",
        "bytes": "914,816",
        "steps": "320 (32 an epoch, 32 of warm-up)",
    }
    assert "warning: a CRF learns slowly beside a decoder that begins at random" in result.err
    assert list(tmp_path.iterdir()) == []
    plan = json.loads(petkit(*SMOKE, DRY, "-o", tmp_path / "run", "--json").out)
    assert (plan["status"], plan["model"]) == (
        "plan",
        {"kind": "nart-crf", "vocabulary": 350, "offset": None},
    )


def test_a_finished_run_says_how_it_went(train, tmp_path):
    result = train(model__kind="nart", lengths__kind="offset")
    found, folder = rows(result), tmp_path / "run"
    assert found["artifact"] == str(folder)
    assert (found["model"], found["status"], found["steps"]) == ("nart", "completed", "10 of 10")
    assert found["test"].startswith("BLEU ")
    assert "10 sentences" in found["test"]
    assert "no report.html" not in result.err
    content = json.loads((folder / "result.json").read_text())
    assert found["bytes"] == f"{content['bytes']:,}"
    for name in ("README.md", "checks.json", "config.yaml", "metrics.jsonl", "petkit.json", "report.html"):
        assert (folder / name).exists(), name
    again = train(model__kind="nart")
    assert (again.code, again.out) == (2, "")
    assert "is not empty: choose another, --resume or --overwrite" in again.err


def test_the_teacher_of_a_recipe_is_trained_first(train, tmp_path):
    own = {"model": str(tmp_path / "teacher"), "beam": 1}
    changes = {"model__kind": "nart", "teacher": own, "training__max_steps": 2, "decode__candidates": 3}
    missing = train(DRY, **changes)
    assert (missing.code, missing.out) == (2, "")
    assert "is missing: train it with `petkit train nat RECIPE --teacher`" in missing.err
    planned = rows(train("--teacher", DRY, **changes))
    assert (planned["output"], planned["model"]) == (own["model"], "autoregressive, 340 subwords")
    found = rows(train("--teacher", **changes))
    assert (found["artifact"], found["model"]) == (own["model"], "autoregressive")
    assert found["status"] == "completed, stopped by max_steps"
    assert not (tmp_path / "run").exists()
    stored = read_translator(own["model"]).manifest.translator
    assert (stored["model"]["kind"], stored["output"]) == ("autoregressive", own["model"])
    assert stored["decode"] == {"beam": 4}
    planned = rows(train(DRY, **changes))
    assert planned["teacher"] == f"{own['model']}, 200 sentences to translate first"


def test_a_teacher_needs_a_folder(train, petkit, tmp_path):
    result = train("--teacher", DRY)
    assert (result.code, result.out) == (2, "")
    assert (
        "--teacher needs a folder for the teacher: set teacher.model in the recipe, or give -o" in result.err
    )
    given = train("--teacher", DRY, "-o", tmp_path / "given", teacher__model=str(tmp_path / "teacher"))
    assert rows(given)["output"] == str(tmp_path / "given")
    own = train("--teacher", DRY, model__kind="autoregressive")
    assert rows(own)["output"] == str(tmp_path / "run")


def test_a_student_learns_from_a_teacher_and_a_start(train, teacher, student, tmp_path):
    kept = tmp_path / "kept" / "distilled.jsonl"
    changes = {
        "teacher": {"model": str(teacher), "beam": 1, "distilled": str(kept)},
        "start": str(student),
        "training__max_steps": 1,
    }
    planned = rows(train(DRY, **changes))
    assert planned["start"] == str(student)
    assert planned["teacher"] == f"{teacher}, 200 sentences to translate first"
    assert not kept.parent.exists()
    result = train(**changes)
    assert result.code == 0, result.err
    assert "distilling 200/200" in result.err
    assert f"{student} gives the weights, 0 of " in result.err
    assert len(kept.read_text().splitlines()) == 201
    assert (
        rows(train("--overwrite", DRY, **changes))["teacher"] == f"{teacher}, 0 sentences to translate first"
    )


def test_a_stopped_run_goes_on(train, tmp_path):
    assert rows(train("--max-steps", "3"))["steps"] == "3 of 10"
    result = train("--resume")
    assert rows(result)["steps"] == "10 of 10"
    whole = train("-o", tmp_path / "whole")
    assert whole.code == 0, whole.err
    first, second = (read_translator(tmp_path / name).dense for name in ("run", "whole"))
    assert all(torch.equal(first[name], second[name]) for name in second)
    drifted = train("--resume", "--set", "loss.nar=1")
    assert (drifted.code, drifted.out) == (2, "")
    assert "loss.nar: 0.5 -> 1" in drifted.err


def test_a_key_that_a_setting_switches_off_is_noted(train):
    result = train("--set", "model.kind=nart", "--dry-run")
    assert result.code == 0, result.err
    assert "note: crf.rank has no effect with model.kind nart; it needs model.kind nart-crf or" in result.err
    assert "remove it" not in result.err


BAD = [
    ({"model__kind": "nart", "crf__beam": 4}, "crf.beam"),
    ({"model__heads": 3}, "model.heads must divide model.hidden 16, got 3"),
    ({"model__hiden": 16}, "did you mean model.hidden?"),
    ({"decode__rescore": "x"}, "decode.rescore"),
    ({"vocabulary__size": 5000}, "fewer than vocabulary.size 5000: lower it or add text"),
    (
        {"data": {"format": "sample", "sample": "phrases", "max_length": 15}},
        "data.sample must be one of made-phrases, got 'phrases'",
    ),
    ({"data__train_size": 9999}, "data.train_size must be at most 150,"),
    ({"data": {"format": "sample", "max_length": 1}}, "data.max_length 1 leaves no training pair"),
    (
        {"model__max_positions": 30, "data": {"format": "sample", "max_length": 29}},
        "of the test split of data.sample made-phrases, which begins",
    ),
    ({"training__batch_size": 500}, "training.batch_size x processes must be at most the 200"),
    ({"data": {"train": "none.jsonl", "test": "none.jsonl", "max_length": 15}}, "none.jsonl is missing"),
    ({"data": {"train": "none.jsonl"}}, "data.test is required with data.format jsonl: name the file"),
    ({"start": "none"}, "expected an artifact folder, none is missing"),
    ({"teacher": {"model": "none"}}, "teacher.model none is missing: train it with"),
    ({"decode": {"rescore": "none", "candidates": 2}}, "decode.rescore none is missing"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
@pytest.mark.parametrize("flags", [[], [DRY]])
def test_a_run_and_its_plan_refuse_alike(train, tmp_path, changes, message, flags):
    result = train(*flags, **changes)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [[], [DRY]])
def test_a_missing_sacrebleu_is_named_with_its_extra(train, tmp_path, monkeypatch, flags):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    result = train(*flags)
    assert (result.code, result.out) == (4, "")
    assert 'BLEU needs sacrebleu: pip install "petkit[nlp]"' in result.err
    assert not (tmp_path / "run").exists()


def test_inspect_and_verify_know_translators(petkit, teacher, student):
    page = petkit("inspect", student).out
    for line in (
        "model    nart-crf, hidden 16",
        "crf      rank 4, beam 16",
        "lengths  predictor",
        "crf.left",
    ):
        assert line in page
    assert "lengths" not in petkit("inspect", teacher).out
    content = json.loads(petkit("inspect", student, "--json").out)
    assert (content["kind"], content["translator"]["model"]["kind"]) == ("translator", "nart-crf")
    for folder, kind in ((teacher, "autoregressive"), (student, "nart-crf")):
        result = petkit("verify", folder)
        assert (result.code, f"valid: {kind}" in result.out) == (0, True)
    result = petkit("verify", student, "--base", teacher)
    assert (result.code, "all of a translator's weights are its own" in result.err) == (2, True)


def damage(folder, what):
    if what == "tensors":
        path = folder / "translator.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    elif what == "no tensors":
        (folder / "translator.safetensors").unlink()
    elif what == "exchanged vocabulary":
        (folder / "vocabulary.json").write_bytes(train_subwords(tiny.SOURCES * 9, 270).to_json())
    elif what == "vocabulary of nothing":
        (folder / "vocabulary.json").write_text("{}")
    else:
        path = folder / "petkit.json"
        content = json.loads(path.read_text())
        content["translator"]["speed"] = 3
        path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("what", "check"),
    [
        ("tensors", "translator.safetensors"),
        ("no tensors", "translator.safetensors"),
        ("exchanged vocabulary", "recipe"),
        ("vocabulary of nothing", "recipe"),
        ("unknown key", "recipe"),
    ],
)
def test_damage_is_found(petkit, copied, what, check):
    damage(copied, what)
    result = petkit("verify", copied, "--json")
    assert result.code == 2
    assert [one["name"] for one in json.loads(result.out)["checks"] if not one["ok"]] == [check]
    for command in (["inspect"], ["decode"]):
        refused = petkit(*command, copied, *(["dog", *HERE] if command == ["decode"] else []))
        assert (refused.code, refused.out) == (2, "")


def test_a_link_that_leads_out_is_a_failed_check(petkit, copied, tmp_path):
    shutil.move(copied / "vocabulary.json", tmp_path / "vocabulary.json")
    (copied / "vocabulary.json").symlink_to(tmp_path / "vocabulary.json")
    result = petkit("verify", copied)
    assert result.code == 5
    assert "no symlink leads out" in result.out


def test_commands_for_adapters_say_what_it_is(petkit, student):
    result = petkit("predict", student, "dog")
    assert (result.code, result.out) == (2, "")
    assert "a translator, but an adapter is needed here; petkit decode and petkit eval take it" in result.err


def test_the_method_is_listed(petkit):
    assert "train nat" in petkit("list", "methods").out
    assert "nat-smoke" in petkit("recipes", "ls").out
    assert "--teacher" in petkit("train", "nat", "--help").out


def test_eval_says_which_files_it_takes(petkit, student, tmp_path):
    (tmp_path / "s.txt").write_text("a dog\n")
    result = petkit("eval", student, "--data", tmp_path / "s.txt")
    assert (result.code, result.out) == (2, "")
    assert "--data must be a recipe (.yaml) or end in .jsonl, got " in result.err
