"""`petkit eval` of distilled language models on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from petkit.cli.main import run
from tests.methods.tropd import tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two students, `adapter` and `full`, and the questions of their validation."""
    folder = tmp_path_factory.mktemp("answered")
    models = [tiny.save_model(folder / str(seed), seed) for seed in range(2)]
    rows = [(tiny.QUESTIONS[:5], "math"), (tiny.QUESTIONS[5:], "code")]
    parts = [Path(tiny.write_questions(folder / f"{name}.jsonl", part, name)) for part, name in rows]
    questions = folder / "data" / "test.jsonl"
    questions.parent.mkdir()
    questions.write_text("".join(part.read_text() for part in parts))
    for tuning in ("adapter", "full"):
        own = {"student__tuning": "full", "adapter": {}} if tuning == "full" else {}
        content = tiny.content(
            folder / tuning,
            *models,
            str(questions),
            training__max_steps=1,
            data__validation=str(questions),
            **own,
        )
        recipe = folder / f"{tuning}.yaml"
        recipe.write_text(yaml.safe_dump(content))
        assert run(["distill", str(recipe), "--quiet", "--device", "cpu"]) == 0
    return folder


@pytest.mark.parametrize(("tuning", "mode"), [("adapter", "packed"), ("full", "whole")])
def test_the_default_repeats_the_reward_of_the_run(petkit, root, tuning, mode):
    after = json.loads((root / tuning / "result.json").read_text())["after"]
    result = petkit("eval", root / tuning, "--json", "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    for name in ("reward", "interval", "n", "tokens"):
        assert found[name] == after[name]
    assert (found["tuning"], found["mode"], found["dtype"]) == (tuning, mode, "float32")
    assert found["data"] == str(root / "data" / "test.jsonl")
    assert {name: one["n"] for name, one in found["datasets"].items()} == {"code": 3, "math": 5}
    assert not [name for name in found if "kl" in name]
    assert found["examples_per_second"] > 0


@pytest.mark.parametrize("tuning", ["adapter", "full"])
def test_other_questions_are_answered(petkit, root, tuning):
    more = ["--batch-size", 2, "--set", "sampling.max_new_tokens=2", "--dtype", "bfloat16"]
    result = petkit("eval", root / tuning, "--data", root / "math.jsonl", *more)
    assert (result.code, result.err) == (0, "")
    assert "computed in bfloat16" in result.out
    rows = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    assert rows["questions"] == str(root / "math.jsonl")
    assert rows["answers"].endswith("%), n 5")
    assert rows["answers"].startswith("reward ")
    assert rows["rate"].endswith("tokens/s")
    assert "code" not in rows


def test_text_shows_every_data_set(petkit, root):
    lines = petkit("eval", root / "full").out.splitlines()
    place = next(place for place, line in enumerate(lines) if line.startswith("answers"))
    assert [line.split()[:2] for line in lines[place + 1 : place + 3]] == [
        ["code", "reward"],
        ["math", "reward"],
    ]
    assert lines[place + 1].endswith(", n 3")


def test_the_gate_prints_the_result_and_exits_with_3(petkit, root):
    assert petkit("eval", root / "adapter", "--min-reward", 0).code == 0
    result = petkit("eval", root / "adapter", "--min-reward", 1, "--json")
    assert (result.code, json.loads(result.out)["n"]) == (3, 8)
    assert "error: reward must be at least 1 (--min-reward), got 0." in result.err


def test_the_base_may_be_elsewhere(petkit, root, tmp_path):
    copy = shutil.copytree(root / "0", tmp_path / "copy")
    one, other = (
        json.loads(petkit("eval", root / "adapter", "--json", *flags).out) for flags in ([], ["--base", copy])
    )
    assert one["tokens"] == other["tokens"]
    wrong = petkit("eval", root / "adapter", "--base", root / "1")
    assert (wrong.code, "give the base it was trained on" in wrong.err) == (2, True)


def test_faulty_lines_are_named_or_left_out(petkit, root, tmp_path):
    file = tmp_path / "some.jsonl"
    file.write_text((root / "math.jsonl").read_text() + '{"question": "the cat"}\n')
    refused = petkit("eval", root / "full", "--data", file)
    assert refused.code == 2
    assert "some.jsonl:6: answer must be given" in refused.err
    left = petkit("eval", root / "full", "--data", file, "--skip-bad", "--json")
    assert (left.code, json.loads(left.out)["n"]) == (0, 5)


REFUSED = [
    (("--min-accuracy", 0.5), "--min-accuracy has no effect on the reward of answers to questions"),
    (("--max-loss", 1), "or use --min-reward"),
    (("--min-f1", 1), "--min-f1 has no effect"),
    (("--min-bleu", 1), "--min-bleu is for translators"),
    (("--noise", 0.1), "--noise has no effect"),
    (("--split", "train"), "--split train has no effect on questions: name their file by --data"),
    (("--data", "q.jsonl", "--split", "validation"), "--split validation has no effect on questions"),
    (("--data", "none.jsonl"), "none.jsonl is missing"),
    (("--set", "sampling.top_k=2"), "--set sampling.top_k has no effect on the reward of greedy answers"),
]


@pytest.mark.parametrize("tuning", ["adapter", "full"])
@pytest.mark.parametrize(("flags", "words"), REFUSED)
def test_what_has_no_effect_is_refused(petkit, root, tuning, flags, words):
    result = petkit("eval", root / tuning, *flags)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("tuning", ["adapter", "full"])
def test_folders_and_recipes_are_pointed_to_the_file(petkit, root, tuning):
    result = petkit("eval", root / tuning, "--data", root / "data")
    assert (result.code, result.out) == (2, "")
    assert f"got the folder {root / 'data'}: --data {root / 'data' / 'test.jsonl'}" in result.err
    result = petkit("eval", root / tuning, "--data", root / f"{tuning}.yaml")
    assert (result.code, result.out) == (2, "")
    assert "pass the file that a recipe names as data.validation" in result.err


def test_flags_of_adapters_are_refused_of_whole_students(petkit, root):
    for flags in (("--mode", "dense"), ("--base", "x")):
        result = petkit("eval", root / "full", *flags)
        assert (result.code, f"{flags[0]} has no effect" in result.err) == (2, True)
    assert petkit("eval", root / "adapter", "--mode", "dense").code == 0


def test_the_loss_of_conversations_is_still_asked_of_adapters(petkit, root, tmp_path):
    folder = tmp_path / "chat"
    folder.mkdir()
    turns = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "sat"}]
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    # This student's tokenizer has no template for them.
    result = petkit("eval", root / "adapter", "--data", folder)
    assert (result.code, "chat template" in result.err) == (2, True)
    result = petkit("eval", root / "adapter", "--data", folder, "--min-reward", 0.5)
    assert (result.code, "--min-reward is for the answers" in result.err) == (2, True)


@pytest.fixture(scope="module")
def merged(root):
    """Merges of the two students: `adapter` of 1 bit, `full`; and `trained`, as of `petkit train`."""
    folder = root / "merged"
    for name, flags in (("adapter", ("--rank", "4", "--bits", "1")), ("full", ())):
        recipe = root / f"merge-{name}.yaml"
        both = [{"model": str(root / name), "parameters": {"weight": weight}} for weight in (0.4, 0.6)]
        recipe.write_text(yaml.safe_dump({"merge_method": "linear", "models": both}))
        assert run(["merge", str(recipe), "-o", str(folder / name), "--quiet", *flags]) == 0
    copy = shutil.copytree(root / "adapter", folder / "trained")
    content = {"data": {"format": "chat", "path": "none"}, "task": "causal_lm"}
    (copy / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.mark.parametrize(("name", "mode"), [("adapter", "packed"), ("full", "whole"), ("trained", "packed")])
def test_what_has_no_recipe_is_asked_by_the_defaults(petkit, root, merged, name, mode):
    questions = root / "data" / "test.jsonl"
    length = ("--set", "sampling.max_new_tokens=5")
    result = petkit("eval", merged / name, "--data", questions, "--json", *length)
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert (found["mode"], found["n"], found["data"]) == (mode, 8, str(questions))
    assert {one: measured["n"] for one, measured in found["datasets"].items()} == {"code": 3, "math": 5}
    if name != "adapter":
        # The same weights as the student's, and the same prompts.
        student = "full" if name == "full" else "adapter"
        known = json.loads((root / student / "result.json").read_text())["after"]
        assert (found["reward"], found["tokens"]) == (known["reward"], known["tokens"])
    suffix = json.loads(
        petkit("eval", merged / name, "--data", questions, "--json", *length, "--set", "data.suffix= cat").out
    )
    assert suffix["n"] == 8
    few = petkit("eval", merged / name, "--data", questions, "--set", "data.validation_size=2", *length)
    assert "n 2" in few.out
    gate = petkit("eval", merged / name, "--data", questions, "--min-reward", 1, *length)
    assert (gate.code, "error: reward must be at least 1" in gate.err) == (3, True)


def test_what_is_no_question_is_told_without_a_folder_of_something_else(petkit, root, merged, tmp_path):
    file = tmp_path / "some.jsonl"
    file.write_text('{"messages": []}\n')
    result = petkit("eval", merged / "adapter", "--data", file)
    assert (result.code, result.out) == (2, "")
    assert f"got {file}, whose rows have no question: conversations go into a folder as train" in result.err
    other = file.rename(tmp_path / "test.jsonl")
    result = petkit("eval", merged / "adapter", "--data", other)
    assert f"whose rows have no question: for conversations --data {tmp_path}\n" in result.err
    result = petkit("eval", merged / "trained", "--data", "gone.jsonl")
    assert (result.code, "and there is no file gone.jsonl" in result.err) == (2, True)
    for name in ("adapter", "full"):
        result = petkit("eval", merged / name, "--data", root / "data")
        assert (result.code, f"--data {root / 'data' / 'test.jsonl'}" in result.err) == (2, True)
    result = petkit("eval", merged / "full", "--data", other)
    assert (result.code, "test.jsonl:1" in result.err) == (2, True)
    for flags in ((), ("--min-reward", 0.5)):
        result = petkit("eval", merged / "full", *flags)
        assert (result.code, "pass --data QUESTIONS.jsonl for the reward" in result.err) == (2, True)
    result = petkit("eval", merged / "adapter", "--min-reward", 0.5)
    assert (result.code, "name a file of them by --data" in result.err) == (2, True)
    result = petkit("eval", merged / "full", "--data", root / "math.jsonl", "--mode", "dense")
    assert (result.code, "--mode has no effect on the reward of answers" in result.err) == (2, True)


def test_help_names_the_reward(petkit):
    result = petkit("eval", "--help")
    assert result.code == 0
    assert "--min-reward" in result.out
    assert "questions with answers" in result.out
