import json

import pytest

from petkit.cli.main import run


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
