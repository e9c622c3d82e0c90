"""`petkit distill` on the command line: runs, plans, refusals, and going on after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.methods.tropd import tiny

HERE = ["--threads", "1", "--device", "cpu"]
DRY = "--dry-run"
TENSORS = "adapter_packed.safetensors"


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("distill")
    return [tiny.save_model(root / str(seed), seed) for seed in range(2)]


@pytest.fixture
def write(models, tmp_path):
    """`write(objective__kind="gkd")` writes a recipe of four steps into tmp_path / "run"."""
    questions = tiny.write_questions(tmp_path / "questions.jsonl")

    def make(**changes):
        file = tmp_path / "recipe.yaml"
        content = tiny.content(tmp_path / "run", *models, questions, **changes)
        file.write_text(yaml.safe_dump(content, sort_keys=False))
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


def test_a_dry_run_prints_the_plan(distill, models, tmp_path):
    result = distill(DRY, data__validation=str(tmp_path / "questions.jsonl"))
    found = rows(result)
    assert found["output"] == str(tmp_path / "run")
    assert found["student"].startswith(f"{models[0]} (sha256 ")
    assert found["teacher"] == models[1]
    assert (found["objective"], found["device"]) == ("tropd", "cpu, 1 process(es)")
    assert found["prompts"] == "8 to learn from, 8 for the reward"
    assert found["adapters"] == "model.layers.*.self_attn.q_proj.lora (2)"
    assert found["trainable"] == "512 parameters"
    assert found["bytes"] == "adapter 2,048, 11 times less than the student in float32"
    assert found["steps"] == "4 (2 an epoch, 0 of warm-up)"
    assert found["responses"] == "32, 160 tokens at most"
    assert not (tmp_path / "run").exists()
    plan = json.loads(distill(DRY, "--json").out)
    assert (plan["status"], plan["objective"], plan["folder"]) == ("plan", "tropd", str(tmp_path / "run"))


def test_a_finished_run_says_how_it_went(petkit, distill, tmp_path):
    result = distill(data__validation=str(tmp_path / "questions.jsonl"), training__max_steps=2)
    found, folder = rows(result), tmp_path / "run"
    assert (found["artifact"], found["objective"]) == (str(folder), "tropd")
    assert (found["status"], found["steps"]) == ("completed, stopped by max_steps", "2 of 4")
    for name in ("before", "after"):
        assert found[name].startswith("reward 0.0% (0.0% to 32.4%), forward KL 0.")
        assert found[name].endswith(", n 8")
    assert "no report.html" not in result.err
    for name in ("README.md", "checks.json", "config.yaml", "metrics.jsonl", "petkit.json", "report.html"):
        assert (folder / name).exists(), name
    assert "Traceback" not in result.err
    # The artifact is like any other.
    assert petkit("eval", folder).code == 0
    assert petkit("verify", folder).code == 0
    page = petkit("inspect", folder)
    assert page.code == 0
    assert "causal_lm" in page.out
    assert "lora" in page.out
    lineage = json.loads(petkit("inspect", folder, "--json").out)
    assert "distill" in json.dumps(lineage)
    # A second run does not go over the first.
    again = distill()
    assert (again.code, again.out) == (2, "")
    assert "is not empty: choose another, --resume or --overwrite" in again.err
    assert distill("--overwrite", training__max_steps=1).code == 0


def test_the_result_is_one_object_on_stdout(distill, tmp_path):
    result = distill("--json", "--seed", 5, "--max-steps", 1, "--dtype", "bfloat16", "-o", tmp_path / "own")
    found = json.loads(result.out)
    assert (found["folder"], found["seed"], found["steps"]) == (str(tmp_path / "own"), 5, 1)
    assert found["before"] is found["after"] is None
    config = yaml.safe_load((tmp_path / "own" / "config.yaml").read_text())
    assert (config["seed"], config["training"]["precision"]) == (5, "bf16")


def test_a_whole_student_is_a_model(distill, petkit, tmp_path):
    result = distill("--max-steps", 1, student__tuning="full", adapter={})
    assert rows(result)["bytes"].endswith(", the whole student")
    assert result.code == 0, result.err
    assert petkit("verify", tmp_path / "run").code == 0
    assert petkit("inspect", tmp_path / "run").code == 0
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_stopped_run_goes_on(distill):
    assert rows(distill("--max-steps", "3"))["steps"] == "3 of 4"
    assert rows(distill("--resume"))["steps"] == "4 of 4"
    drifted = distill("--resume", "--set", "objective.kind=opd")
    assert (drifted.code, drifted.out) == (2, "")
    assert "objective.kind: 'tropd' -> 'opd'" in drifted.err
    both = distill("--resume", "--overwrite")
    assert (both.code, both.out) == (2, "")
    assert "--overwrite and --resume exclude each other" in both.err


BAD = [
    ({"teacher": {}}, "teacher needs one of model, domains and cache, got none"),
    ({"teacher": {"model": "none"}}, "teacher.model must be hf/ORG/NAME or a local folder, got 'none'"),
    ({"student__model__name": "timm/test_vit"}, "is an image model; task causal_lm needs"),
    ({"student__model__nme": "x"}, "did you mean student.model.name?"),
    (
        {"objective__kind": "tropt"},
        "objective.kind must be opd, gkd, fkl, eopd, reopold or tropd, got 'tropt'",
    ),
    ({"objective__kind": "opd", "objective__floor": -1.0}, "objective.floor has no effect"),
    ({"objective__kind": "gkd", "objective__trust": "hard"}, "objective.trust has no effect"),
    ({"objective__threshold": 0.5}, "objective.threshold has no effect"),
    ({"objective__prefix_weight": 0.5}, "objective.prefix_weight has no effect"),
    ({"guidance__steps": 5}, "guidance.steps has no effect"),
    (
        {"objective__top_k": 16},
        "objective.top_k must be at most 15, the tokens that student and teacher share",
    ),
    ({"training__select": "validation"}, "training.select validation needs prompts with answers"),
    ({"training__evaluate_every_steps": 1}, "training.evaluate_every_steps needs prompts with answers"),
    ({"training__evaluate_every_steps": 0}, "training.evaluate_every_steps must be at least 1, got 0"),
    ({"training__batch_size": 9}, "training.batch_size x processes must be at most the 8"),
    ({"adapter": {"method": "linear_probe"}}, "adapter.method linear_probe trains a new head alone"),
    ({"adapter__targets": ["nothing"]}, "nothing"),
    ({"data__train": "none.jsonl"}, "none.jsonl"),
    ({"student__tuning": "full"}, "adapter.method has no effect with student.tuning full"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
@pytest.mark.parametrize("flags", [[], [DRY]])
def test_a_run_and_its_plan_refuse_alike(distill, tmp_path, changes, message, flags):
    result = distill(*flags, **changes)
    assert (result.code, result.out) == (2, ""), result.err
    assert message in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "run").exists()


def test_vocabularies_of_one_size_and_other_content_are_refused(distill, tmp_path):
    other = tiny.save_model(tmp_path / "other", 1, words=[*tiny.WORDS[1:], tiny.WORDS[0]])
    result = distill(teacher={"model": other})
    assert (result.code, result.out) == (2, "")
    assert "must have one vocabulary, got 15 and 15 tokens of which 11 differ: 'assistant' is " in result.err


def test_an_unknown_data_set_is_refused(distill, models):
    result = distill(teacher={"domains": {"math": models[1], "code": models[0]}})
    assert (result.code, result.out) == (2, "")
    assert "teacher.domains must name a teacher for data set 'questions', got code, math" in result.err


def test_faulty_prompts_are_named_or_left_out(distill, tmp_path):
    file = tmp_path / "faulty.jsonl"
    file.write_text('{"question": "the cat"}\n{"question": ""}\n' + '{"question": "dog"}\n' * 3)
    result = distill(DRY, data__train=str(file))
    assert (result.code, result.out) == (2, "")
    assert "faulty.jsonl:2" in result.err
    result = distill(DRY, "--skip-bad", data__train=str(file))
    assert rows(result)["prompts"] == "4 to learn from"
    assert "faulty.jsonl:2" in result.err


def test_a_teacher_without_a_distribution_ends_the_run_with_1(distill, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = Path(tiny.save_model(tmp_path / "broken", 1))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    result = distill(teacher={"model": str(folder)})
    assert (result.code, result.out) == (1, "")
    assert f"error: the logits of the teacher {folder} must be finite, got nan or inf" in result.err
    assert "Traceback" not in result.err
    assert "computed whole" not in result.err
    result = distill(student={"model": {"name": str(folder)}})
    assert (result.code, result.out) == (1, "")
    assert f"error: the logits of the student {folder} after prompts[" in result.err
    assert "computed whole" not in result.err


def test_help_shows_the_commands_own_options(petkit):
    for flag in ("--help", "-h"):
        page = petkit("distill", flag)
        assert page.code == 0
        assert "Teach a student on its own responses, judged by a teacher" in page.out
        for option in ("--resume", "--dry-run", "--max-steps", "--overwrite", "--set", "--json"):
            assert option in page.out
    assert "distill" in petkit("--help").out


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom petkit.cli.main import run\nassert run(['distill', '--help']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_wrong_command_lines_are_refused(petkit, write):
    for arguments, message in (
        ((), "a recipe must be given: a YAML file, or a name from"),
        (("none.yaml",), "none.yaml"),
        ((write(), "--sett", "a=1"), "--set"),
        ((write(), "--max-steps", "0"), "--max-steps"),
        ((write(), "--set", "samples=none"), "samples"),
        ((write(), "--resume", "checkpoint-9", DRY), "checkpoint-9"),
    ):
        result = petkit("distill", *arguments)
        assert (result.code, result.out) == (2, ""), arguments
        assert message in result.err
        assert "Traceback" not in result.err


def test_the_schema_and_the_list_of_methods_know_it(petkit):
    schema = petkit("config", "schema", "distill")
    assert schema.code == 0
    for key in ("objective.kind", "objective.prefix_weight", "teacher.domains", "guidance.responses"):
        assert key in schema.out
    found = json.loads(petkit("config", "schema", "distill", "--json").out)
    assert "objective" in json.dumps(found)
    methods = json.loads(petkit("list", "methods", "--json").out)
    (own,) = (one for one in methods["methods"] if one["name"] == "tropd")
    assert (own["command"], own["configuration"]) == ("distill", "DistillConfig")


def test_the_shown_recipe_is_the_one_that_runs(petkit, write):
    file = write()
    shown = petkit("config", "show", file, "--command", "distill", "--json")
    assert shown.code == 0, shown.err
    content = json.loads(shown.out)
    assert "1e-06" not in json.dumps(content.get("training", {}))
    assert petkit("config", "validate", file, "--command", "distill").code == 0


# From here on: whole processes, as users start them.

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
SLOW_STEPS = {
    "training__epochs": 500,
    "training__checkpoint_steps": 3,
    "training__max_steps": 24,
    "training__checkpoint_every": 500,
    "adapter__dropout": 0.3,
    "guidance__responses": "live",
}


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "petkit", *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process, folder, step):
    """Wait until metrics.jsonl holds that many lines."""
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4, 17])
def test_killed_and_resumed_gives_the_same_bytes(petkit, write, tmp_path, step):
    recipe = write(**SLOW_STEPS)
    assert petkit("distill", recipe, *HERE, "-o", tmp_path / "whole").code == 0
    process = start("distill", recipe, *HERE, "-o", tmp_path / "killed")
    wait_for_step(process, tmp_path / "killed", step)
    process.kill()
    process.communicate()
    resumed = petkit("distill", recipe, *HERE, "-o", tmp_path / "killed", "--resume")
    assert resumed.code == 0, resumed.err
    assert (tmp_path / "killed" / TENSORS).read_bytes() == (tmp_path / "whole" / TENSORS).read_bytes()
    told = [
        [
            {k: v for k, v in row.items() if not k.endswith("_per_second")}
            for row in tiny.records(tmp_path / name)
        ]
        for name in ("killed", "whole")
    ]
    assert told[0] == told[1]


@pytest.mark.slow
def test_two_processes_share_the_prompts(write, tmp_path):
    recipe = write(training__max_steps=2, adapter__dropout=0.0)
    launcher = ["--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    own = ["-m", "petkit", "distill", str(recipe), *HERE, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *launcher, *own],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["processes"], result["steps"]) == (2, 2)
    assert result["total_steps"] == 2


def test_a_cache_is_made_and_learnt_from(petkit, models, tmp_path):
    own, other = models
    train = tiny.write_questions(tmp_path / "prompts.jsonl")
    content = tiny.content(tmp_path / "run", own, other, train, objective={"kind": "fkl", "top_k": 5})
    file, folder = tmp_path / "cached.yaml", tmp_path / "cache"
    file.write_text(json.dumps(content))
    made = petkit("distill", "cache", file, "-o", folder, "--json")
    assert made.code == 0, made.err
    found = json.loads(made.out)
    assert (found["responses"], found["top_k"], found["writer"]) == (16, 5, "teacher")
    # Nothing is asked twice.
    assert petkit("distill", "cache", file, "-o", folder, "--json").out == made.out
    done = petkit("distill", file, "--set", "teacher.model=null", "--set", f"teacher.cache={folder}")
    assert done.code == 0, done.err
    other = petkit("distill", "cache", file, "-o", folder, "--set", "samples=1")
    assert (other.code, other.out) == (2, "")
    assert "is a cache of other settings (samples: 2 -> 1): choose another folder" in other.err
    nowhere = ("--set", "teacher.model=null", "--set", "teacher.cache=nowhere", "-o", tmp_path / "other")
    none = petkit("distill", file, *nowhere)
    assert (none.code, "must be a cache of `petkit distill cache`" in none.err) == (2, True)


def test_a_cache_leaves_other_folders_alone(petkit, models, tmp_path):
    train = tiny.write_questions(tmp_path / "prompts.jsonl")
    file, folder = tmp_path / "cached.yaml", tmp_path / "mine"
    file.write_text(json.dumps(tiny.content(tmp_path / "run", *models, train, objective={"kind": "opd"})))
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    for place, message in (
        (folder, f"output folder {folder} is not empty and holds no cache: choose another"),
        (folder / "letter.txt", "letter.txt must be a folder, it is a file: choose another"),
    ):
        found = petkit("distill", "cache", file, "-o", place)
        assert (found.code, found.out) == (2, "")
        assert message in found.err
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]


def test_the_rate_of_a_single_step_is_not_told(distill):
    result = distill("--set", "training.max_steps=1")
    assert result.code == 0, result.err
    (line,) = [line for line in result.err.splitlines() if line.startswith("training 1/1")]
    assert re.fullmatch(r"training 1/1, loss -?[\d.]+, [\d,]+ tokens/s", line)


def test_help_of_a_cache(petkit):
    shown = petkit("distill", "cache", "--help")
    assert shown.code == 0
    for option in ("--by", "--top-k", "--output"):
        assert option in shown.out
    assert petkit("distill", "cache").code == 2


OWN = """
from pathlib import Path

calls = []

def score(question, response, **more):
    calls.append(question)
    if Path(__file__).with_name("broken").exists() and len(calls) > 4:
        raise RuntimeError("no judge")
    return 0.25
"""


@pytest.fixture
def own_reward(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(OWN)
    return f"{path}:score"


def test_a_reward_of_ones_own_needs_leave_and_counts(distill, petkit, own_reward, tmp_path):
    questions = {"data__validation": str(tmp_path / "questions.jsonl"), "reward__function": own_reward}
    refused = distill(DRY, **questions)
    assert refused.code == 5
    assert "rewards.py:score is code that would run here" in refused.err
    assert "--allow-code-exec has no effect without reward.function" in distill("--allow-code-exec").err
    result = distill("--allow-code-exec", **questions)
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (found["before"]["reward"], found["after"]["reward"]) == (0.25, 0.25)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {step["reward"] for step in steps if "reward" in step} == {0.25}
    lineage = json.loads((tmp_path / "run" / "petkit.json").read_text())["lineage"]
    assert f"sha256 `{lineage[0]['inputs']['reward']}`" in (tmp_path / "run" / "README.md").read_text()
    assert petkit("eval", tmp_path / "run").code == 5
    again = petkit("eval", tmp_path / "run", "--allow-code-exec", "--json")
    assert json.loads(again.out)["reward"] == 0.25
    plain = petkit("eval", tmp_path / "run", "--set", "reward.function=null", "--json")
    assert json.loads(plain.out)["reward"] != 0.25, plain.err


def test_a_dry_run_names_and_loads_the_reward(distill, own_reward, tmp_path):
    settings = {"reward__function": own_reward}
    sha256 = hashlib.sha256((tmp_path / "rewards.py").read_bytes()).hexdigest()
    assert rows(distill(DRY, "--allow-code-exec", **settings))["reward"] == (
        f"{own_reward} (sha256 {sha256[:12]})"
    )
    plan = json.loads(distill(DRY, "--allow-code-exec", "--json", **settings).out)
    assert plan["reward_function"] == {"function": own_reward, "sha256": sha256}
    assert json.loads(distill(DRY, "--json").out)["reward_function"] is None
    assert "reward" not in rows(distill(DRY))
    (tmp_path / "rewards.py").write_text("import nothing_of_this_name")
    for flags in ([DRY], []):
        broken = distill(*flags, "--allow-code-exec", **settings)
        assert (broken.code, broken.out) == (2, "")
        assert "cannot be used: ModuleNotFoundError" in broken.err


def test_a_reward_that_fails_loses_nothing(distill, own_reward, tmp_path):
    settings = {"reward__function": own_reward, "training__batch_size": 1, "training__max_steps": 8}
    missing = distill("--allow-code-exec", DRY, **settings | {"reward__function": f"{own_reward}s"})
    assert missing.code == 2
    assert "cannot be used: ImportError: it has no function scores" in missing.err
    (tmp_path / "broken").touch()
    failed = distill("--allow-code-exec", **settings)
    assert failed.code == 1
    assert "rewards.py:score raised RuntimeError: no judge (rewards.py:9) for the response" in failed.err
    held = {"data__validation": str(tmp_path / "questions.jsonl")}
    measured = distill("--allow-code-exec", "-o", tmp_path / "other", **settings | held)
    assert (measured.code, measured.err.endswith("to question 5 of data.validation\n")) == (1, True)
    (tmp_path / "broken").unlink()
    # Of two responses a step.
    assert "checkpoint-2: go on with --resume when the cause is mended" in failed.err
    assert distill("--allow-code-exec", "--resume", **settings).code == 0


def _resumed(distill, tmp_path, **more):
    """A run whose reward function raises at its second step, mended and gone on with."""
    path = tmp_path / "rewards.py"
    path.write_text(
        "calls = []\n"
        "def score(response, **more):\n"
        "    calls.append(response)\n"
        "    assert len(calls) <= MOST, 'no judge'\n"
        "    return 0.25\n"
    )
    settings = {"reward__function": f"{path}:score", "training__batch_size": 1, "training__max_steps": 3}
    path.write_text(path.read_text().replace("MOST", "2" if not more else "12"))
    failed = distill("--allow-code-exec", **settings | more)
    assert failed.code == 1
    assert "raised AssertionError: no judge" in failed.err
    assert re.search(r"to question \d of data\.train$", failed.err, re.MULTILINE)
    assert "checkpoint-1: go on with --resume when the cause is mended" in failed.err
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text("def score(response, **more):\n    return 0.5\n\n\nother = score\n")
    new = hashlib.sha256(path.read_bytes()).hexdigest()
    return path, settings | more, old, new


@pytest.mark.parametrize("name", ["score", "other"])
def test_a_mended_reward_goes_on(distill, tmp_path, name):
    path, settings, old, new = _resumed(distill, tmp_path)
    settings |= {"reward__function": f"{path}:{name}", "reward__timeout": 30}
    done = distill("--allow-code-exec", "--resume", **settings)
    assert done.code == 0, done.err
    told = [line for line in done.err.splitlines() if line.startswith("reward.function changed: ")]
    assert told == [
        f"reward.function changed: {path}:score (sha256 {old[:12]}) -> {path}:{name} (sha256 {new[:12]}); "
        f"the old one gave the rewards of the steps up to {tmp_path / 'run' / 'checkpoint-1'}"
    ]
    folder = tmp_path / "run"
    rewards = [row["reward"] for row in tiny.records(folder) if "reward" in row]
    assert rewards == [0.25, 0.5, 0.5]
    lineage = json.loads((folder / "petkit.json").read_text())["lineage"]
    assert lineage[0]["inputs"]["reward"] == new
    result = json.loads((folder / "result.json").read_text())
    assert result["reward_function"] == {"function": f"{path}:{name}", "sha256": new}
    assert yaml.safe_load((folder / "config.yaml").read_text())["reward"]["function"] == f"{path}:{name}"
    # Nothing has changed since.
    again = distill("--allow-code-exec", "--resume", **settings)
    assert (again.code, "reward.function changed" in again.err) == (0, False)


def test_a_reward_that_chose_is_not_exchanged(distill, tmp_path):
    held = tiny.write_questions(tmp_path / "held.jsonl", tiny.QUESTIONS[:5])
    more = {"data__validation": held, "training__select": "validation", "training__evaluate_every_steps": 1}
    _, settings, old, new = _resumed(distill, tmp_path, **more)
    refused = distill("--allow-code-exec", "--resume", **settings)
    assert (refused.code, refused.out) == (2, "")
    assert f"(sha256 {old[:12]}) -> " in refused.err
    assert f"(sha256 {new[:12]})): restore it or start a new output folder" in refused.err
    assert "by which training.select validation compares steps, got another" in refused.err
