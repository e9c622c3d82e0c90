import json
import shlex

import pytest

from petkit.benchmarks.harness import Case, Outcome, Timing
from petkit.cli.bench import _counts, _records
from petkit.cli.main import run

TINY = """# One run of a second.
recipe: adapter-smoke
seeds: 2
set: [data.train_size=20, data.test_size=20, training.epochs=1, training.batch_size=20]
variants:
  - {name: probe, set: [adapter.method=linear_probe, training.warmup_epochs=0]}
"""


def test_help_lists_the_benchmarks(capsys):
    assert run(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("ops", "adapters", "serving", "training"))


def test_an_unknown_op_is_refused_with_the_known_ones(capsys):
    assert run(["bench", "ops", "lowbit_liner"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "lowbit_linear" in captured.err
    assert "got lowbit_liner" in captured.err


def test_an_unknown_experiment_is_refused(capsys, tmp_path):
    assert run(["bench", "adapters", "dmeo", "-o", str(tmp_path / "out"), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "got 'dmeo'" in captured.err
    assert not (tmp_path / "out").exists()


def test_an_experiment_can_be_repeated_from_what_it_records(capsys, tmp_path):
    file, folder = tmp_path / "tiny.yaml", tmp_path / "out put"
    file.write_text(TINY)
    command = ["bench", "adapters", str(file), "--output", str(folder), "--seeds", "1", "--device", "cpu"]
    assert run([*command, "--json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert shlex.split(payload["command"]) == ["petkit", *command]
    assert payload["settings"]["seeds"] == 1
    assert len(payload["rows"][0]["accuracies"]) == 1
    assert "read_bandwidth_gb_s" not in payload["environment"]

    assert run([*command[:5], "--dry-run", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [(run["variant"], run["seed"], run["finished"]) for run in runs] == [
        ("probe", 0, True),
        ("probe", 1, False),
    ]
    assert runs[0]["settings"]["adapter"]["method"] == "linear_probe"

    (tmp_path / "other.yaml").write_text(TINY)
    before = sorted(folder.rglob("*"))
    assert run(["bench", "adapters", str(tmp_path / "other.yaml"), "-o", str(folder)]) == 2
    assert "it holds the experiment tiny of adapter-smoke: choose another with -o" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_a_dry_run_writes_nothing_and_says_what_it_would_do(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["bench", "adapters", "quantization", "--dry-run", "--seeds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "changes of adapter-demo" in lines[0]
    assert len(lines) == 2 + 10
    assert lines[2].split()[:3] == ["runs/quantization/32-bit/seed-0", "to", "do"]
    assert lines[-1].endswith("quantize.source=32 bit, quantize.bits=1, quantize.method=least_squares")
    assert not list(tmp_path.iterdir())


def test_a_finished_training_run_is_not_overwritten(capsys, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    assert run(["bench", "adapters", "noise", "-o", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_ops_prints_one_json_object_and_saves_it(capsys, tmp_path):
    saved = tmp_path / "ops.json"
    arguments = ["bench", "ops", "lowbit_fake_quantize", "--threads", "1", "--seconds", "0.1", "--json"]
    assert run([*arguments, "--save", str(saved)]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert payload["schema_version"] == 1
    assert {outcome["threads"] for outcome in payload["outcomes"]} == {1}
    assert all("torch eager" in outcome["peers"] for outcome in payload["outcomes"])
    assert payload["environment"]["read_bandwidth_gb_s"]["1"] > 0
    assert json.loads(saved.read_text())["outcomes"] == payload["outcomes"]
    assert payload["command"] == "petkit bench ops lowbit_fake_quantize --threads 1"


def test_missed_goals_are_marked_in_the_table():
    case = Case("c", int, {"peer": int, "other": int}, goals={"peer": 8.0, "bandwidth": 0.4})
    ours, theirs = Timing(1.0, 1.0, 1.0, 7), {"peer": Timing(9.0, 9, 9, 7), "other": Timing(0.5, 0.5, 0.5, 7)}
    for share, goals in ((0.5, ["8x, 40% of bandwidth", "40% of bandwidth"]), (0.3, None)):
        rows = _records(Outcome(case.name, 1, ours, theirs, share, case.goals))
        assert [row["of bandwidth"] for row in rows] == [f"{share:.1%}"] * 2
        wanted = goals or ["8x, 40% of bandwidth MISSED", "40% of bandwidth MISSED"]
        assert [row["goal"] for row in rows] == wanted


def test_more_threads_than_cores_are_told(caplog):
    assert _counts([1, 10_000]) == [1, 10_000]
    assert "--threads 10000 is more than the" in caplog.text


@pytest.mark.slow
def test_training_compares_one_bit_with_thirty_two(capsys):
    assert run(["bench", "training", "--batch", "1", "--threads", "1", "--seconds", "0.1", "--json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert payload["outcomes"][0]["peers"]["32-bit adapters"]["ratio"] > 0


@pytest.mark.slow
def test_serving_compares_the_bank_with_peft(capsys, tmp_path):
    arguments = ["bench", "serving", "--folder", str(tmp_path / "bank"), "--adapters", "4", "--batch", "2"]
    assert run([*arguments, "--threads", "1", "--seconds", "0.1", "--json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert payload["adapters"] == 4
    assert payload["bank_bytes"] < payload["peft_adapter_bytes"]


def test_a_file_that_cannot_be_written_is_told_before_the_work(petkit, tmp_path):
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "none" / "x.json", "is no folder")):
        result = petkit("bench", "ops", "lowbit_quantize", "--save", path)
        assert (result.code, result.out) == (2, "")
        assert words in result.err
