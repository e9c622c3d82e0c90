"""`petkit merge tune`: its help, its plan, its result, its faults, and how it is stopped."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

# The norm of the base is 1, and the models add their weights to it.
SCORE = """
import struct, sys
raw = open(sys.argv[1] + "/model.safetensors", "rb").read()
print(-(struct.unpack("<f", raw[-4:])[0] - 2.25) ** 2)
"""


def metric(code):
    return shlex.join([sys.executable, "-S", "-c", code, "{model}"])


@pytest.fixture
def config(tmp_path):
    for name, shift in (("base", 0.0), ("maths", 1.0), ("code", 1.0)):
        (tmp_path / name).mkdir()
        save_file({"norm": torch.ones(3) + shift}, tmp_path / name / "model.safetensors")
    path = tmp_path / "merge.yml"
    path.write_text(
        f"merge_method: task_arithmetic\nbase_model: {tmp_path}/base\nmodels:\n"
        f"  - {{model: {tmp_path}/maths, parameters: {{weight: 0.5}}}}\n"
        f"  - {{model: {tmp_path}/code, parameters: {{weight: 0.25}}}}\n"
    )
    return path


@pytest.fixture
def tune(petkit, config, tmp_path):
    def call(*flags, score=SCORE):
        return petkit("merge", "tune", config, "--metric", metric(score), "-o", tmp_path / "out", *flags)

    return call


def test_help(petkit):
    done = petkit("merge", "tune", "--help")
    assert done.code == 0
    for flag in ("--metric", "--trials", "--resume", "--trial-timeout"):
        assert flag in done.out
    assert "tune" in petkit("merge", "--help").out


def test_a_search(tune, petkit, tmp_path):
    done = tune("--trials", "4")
    assert done.code == 0
    assert "searching 2 numbers, since merge.yml has no ranges: maths.weight [0, 1], code.weight" in done.err
    assert (
        f"is optimistic, since it was chosen on what it was measured on: measure {tmp_path}/out/best"
        in done.err
    )
    assert "baseline     -0.25 (trial 0, maths.weight 0.5, code.weight 0.25)" in done.out
    assert "maths.weight" in done.out.splitlines()[0]
    assert (tmp_path / "out/curve.png").read_bytes().startswith(b"\x89PNG")
    assert petkit("verify", tmp_path / "out/best").code == 0
    again = f"petkit merge {tmp_path}/out/best.yml -o MODEL"
    assert again in done.out
    assert petkit(*again.split()[1:-1], tmp_path / "again").code == 0
    files = [tmp_path / name / "model.safetensors" for name in ("out/best", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_json_is_one_object_and_goes_on(tune):
    assert tune("--trials", "2").code == 0
    done = tune("--trials", "3", "--resume", "--json")
    result = json.loads(done.out)
    assert (done.code, result["status"], result["trials"]) == (0, "completed", 3)
    assert result["baseline"]["score"] == -0.25
    assert result["best"]["score"] >= -0.25
    assert "2 of 3 trials are there" in done.err


def test_quiet_shows_only_the_warning(tune):
    done = tune("--trials", "2", "--quiet")
    assert done.err.startswith("warning: the best score is optimistic")
    assert done.err.count("\n") == 1


def test_a_plan_writes_nothing(tune, tmp_path):
    done = tune("--dry-run", "--json", "--weights", "0", "2")
    plan = json.loads(done.out)
    assert (done.code, plan["trials"], plan["bytes"]) == (0, 30, 12)
    assert plan["ranges"] == {"maths.weight": [0, 2], "code.weight": [0, 2]}
    assert plan["start"] == {"maths.weight": 0.5, "code.weight": 0.25}
    assert not (tmp_path / "out").exists()
    assert "maths.weight from 0 to 1, first 0.5" in tune("--dry-run").out


def test_many_numbers_share_a_column(tune, config):
    text = config.read_text().replace("weight: 0.5", "weight: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]")
    config.write_text(text)
    done = tune("--trials", "1")
    assert "trial   score   numbers" in done.out
    assert "maths.weight[0] 0.1, maths.weight[1] 0.2" in done.out


@pytest.mark.parametrize(
    ("direction", "bound", "word"), [("maximize", "9", "least"), ("minimize", "-9", "most")]
)
def test_a_score_that_is_not_reached_exits_with_3(tune, tmp_path, direction, bound, word):
    flags = ("--trials", "1", "--direction", direction, "--seed", "4")
    assert tune(*flags, "--min-score", "-0.25").code == 0
    done = tune(*flags, "--resume", f"--min-score={bound}")
    assert done.code == 3
    assert f"error: the best score must be at {word} {bound} (--min-score), got -0.25" in done.err
    assert "--seed 4" in done.out
    assert json.loads((tmp_path / "out/result.json").read_text())["status"] == "gate_failed"


def test_a_key_of_json(tune):
    code = 'print(\'{"scores": {"maths": 0.5}}\')'
    assert json.loads(tune("--trials", "1", "--key", "scores.maths", "--json", score=code).out)["key"]
    done = tune("--trials", "1", "--overwrite", score=code)
    assert (done.code, "name its key with --key" in done.err) == (1, True)


def test_a_command_that_hangs_is_a_failed_trial(tune):
    code = "import sys, time; print('so far', file=sys.stderr, flush=True); time.sleep(60)"
    done = tune("--trials", "1", "--trial-timeout", "1.5", score=code)
    assert (done.code, done.out) == (1, "")
    assert (
        "error: all 1 trials failed, the last one: took longer than 1.5 s and was stopped: so far" in done.err
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--metric", "true"), "must hold {model}"),
        (("--metric", "true {modle}"), "unknown placeholder {modle}; did you mean {model}?"),
        (("--metric", "no-such-program {model}"), "the command no-such-program is not found"),
        (("--trials", "0"), "invalid value for '--trials'"),
        (("--time-limit", "0"), "invalid value for '--time-limit'"),
        (("--weights", "1", "0"), "limits of weight must be LOW HIGH with low below high, got 1 0"),
        (("--densities", "0", "1"), "task_arithmetic has no density to search; it has weight, lambda"),
        (("--resume", "--overwrite"), "--overwrite and --resume exclude each other"),
    ],
)
def test_flags_that_are_refused(tune, tmp_path, flags, message):
    done = tune(*flags)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not (tmp_path / "out/study.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("weight: 0.5", "weight: {search: [1, 0]}"),
            "models[0].parameters.weight: search must be [low, high]",
        ),
        (
            ("weight: 0.5", "weight: {search: [0, x]}"),
            "search must be two numbers, [low, high], got [0, 'x']",
        ),
        (("task_arithmetic", "model_stock"), "nothing to search"),
        (("weight: 0.5", "wieght: {search: [0, 1]}"), "did you mean weight?"),
        (("maths,", "gone,"), "gone is missing"),
        (("models:", "models:\nmodels:"), "duplicate key models"),
    ],
)
def test_files_that_are_refused(tune, config, tmp_path, change, message):
    config.write_text(config.read_text().replace(*change, 1))
    for flags in ((), ("--dry-run",)):
        done = tune(*flags)
        assert (done.code, done.out) == (2, "")
        assert message in done.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty(tune, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").touch()
    for flags, message in (
        ((), "is not empty: choose another, --resume or --overwrite"),
        (("--overwrite",), "--overwrite deletes only what petkit wrote"),
        (("--resume",), "holds no search to go on with"),
    ):
        done = tune("--trials", "1", *flags)
        assert (done.code, message in done.err) == (2, True), done.err
    assert (tmp_path / "out/x").exists()


def test_another_search_is_refused_and_may_be_overwritten(tune):
    assert tune("--trials", "1").code == 0
    done = tune("--trials", "1", "--resume", "--weights", "0", "3")
    assert done.code == 2
    assert "error: configuration.models[0].parameters.weight.search[1] is 1.0 there and 3.0 now" in done.err
    assert tune("--trials", "1", "--overwrite", "--weights", "0", "3").code == 0


def test_a_merge_with_a_range_points_here(petkit, config, tmp_path):
    config.write_text(config.read_text().replace("weight: 0.5", "weight: {search: [0, 1]}"))
    done = petkit("merge", config, "-o", tmp_path / "out")
    assert (done.code, "`petkit merge tune` searches" in done.err) == (2, True)


def test_a_missing_optuna_is_named_with_its_extra(tune, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = tune("--trials", "1")
    assert (done.code, done.out) == (4, "")
    assert done.err == 'error: the search needs optuna: pip install "petkit[tune]"\n'


HANGING = """
import os, sys, time
count = len(os.listdir(sys.argv[2]))
open(f"{sys.argv[2]}/{{count}}", "w").write(str(os.getpid()))
if count == 1:
    time.sleep(60)
print(count)
"""


@pytest.mark.parametrize("place", ["maths", "."])
def test_an_output_that_holds_an_input(petkit, config, tmp_path, place):
    flags = ("--metric", "true {model}", "--overwrite")
    done = petkit("merge", "tune", config, "-o", tmp_path / place, *flags)
    assert (done.code, done.out) == (2, "")
    assert "must lie apart from what is read" in done.err
    assert (tmp_path / "maths/model.safetensors").exists()


def heed_interrupts():
    """As on a terminal: what a shell starts in the background ignores SIGINT, and its children do."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_search_that_is_stopped_goes_on(petkit, config, tmp_path, sent, code):
    """The second trial hangs, until its search is stopped."""
    (tmp_path / "seen").mkdir()
    hung = tmp_path / "seen/1"
    asked = shlex.join([sys.executable, "-S", "-c", HANGING, "{model}", str(hung.parent)])
    arguments = [
        "merge",
        "tune",
        str(config),
        "--metric",
        asked,
        "-o",
        str(tmp_path / "out"),
        "--trials",
        "3",
    ]
    command = [sys.executable, "-m", "petkit", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    ) as search:
        deadline = time.monotonic() + 60
        while not (hung.exists() and hung.read_text()):
            assert search.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        search.send_signal(sent)
        if sent == signal.SIGKILL:
            search.wait()
            # Nobody could end it, as a signal that can be caught lets petkit do.
            os.kill(int(hung.read_text()), signal.SIGKILL)
        _, errors = search.communicate(timeout=60)
    assert search.returncode == code
    if sent != signal.SIGKILL:
        stop = f"error: stopped by {sent.name} after saving the trials in {tmp_path}/out: go on with --resume"
        assert errors.splitlines()[-1] == stop
        assert not os.path.exists(f"/proc/{hung.read_text()}")
        assert json.loads((tmp_path / "out/result.json").read_text())["status"] == "interrupted"
    done = petkit(*arguments, "--resume", "--json")
    assert (done.code, json.loads(done.out)["trials"]) == (0, 3)
    lines = [json.loads(line) for line in (tmp_path / "out/trials.jsonl").read_text().splitlines()]
    assert [(one["trial"], one["score"]) for one in lines] == [(0, 0), (1, 2), (2, 3)]
