"""`petkit quantize` from its command line: output, files, gates and refusals."""

import json

import pytest

from petkit.artifacts import read_artifact, verify
from petkit.models.config import AdapterConfig
from tests.quantization.artifacts import write
from tests.quantization.peft_folder import write_peft

SMOKE = "adapter-smoke"


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "source", AdapterConfig(bits=32, bottleneck=4, dropout=0.0), classes=10)[0]


def test_tables_and_files(petkit, source, tmp_path):
    out = tmp_path / "out"
    code, text, err = petkit("quantize", source, "--bits", "1", "-o", out)
    assert (code, err) == (0, "")
    assert "blocks.0.adaptformer.down" in text
    assert "SQNR (dB)" in text
    assert "shift, scale" in text
    assert "ok: reload" in text
    assert read_artifact(out).manifest.adapter["bits"] == 1
    assert all(check.ok for check in verify(out))
    assert json.loads((out / "checks.json").read_text())["ok"]
    assert json.loads((out / "result.json").read_text())["status"] == "completed"
    assert "1 bit, for timm/test_vit" in (out / "README.md").read_text()


def test_json_holds_errors_ledger_and_checks(petkit, source, tmp_path):
    code, text, _ = petkit("quantize", source, "--bits", "4", "-o", tmp_path / "out", "--json")
    result = json.loads(text)
    assert code == 0
    assert result["schema_version"] == 1
    assert len(result["errors"]) == 12
    assert set(result["errors"][0]) == {"name", "relative_error", "cosine", "sqnr", "output_error"}
    assert (
        sum(entry["bytes"] for entry in result["ledger"]) + result["bytes"]["header_bytes"]
        == result["bytes"]["bytes"]
    )
    assert result["outputs"] is None
    assert result["bytes"]["full_model_bytes"] is None


def test_the_training_runs_record_gives_the_size_of_the_whole_model(petkit, source, tmp_path):
    (source / "result.json").write_text(json.dumps({"bytes": {"full_model_fp32": 5_000_000}}))
    _, text, _ = petkit("quantize", source, "-o", tmp_path / "out", "--json")
    assert json.loads(text)["bytes"]["full_model_bytes"] == 5_000_000


def test_data_gives_output_errors_and_the_divergence_of_logits(petkit, source, tmp_path):
    arguments = ("--data", SMOKE, "--calibration-batches", 2, "--batch-size", 8, "--json")
    results = {}
    for method in ("nearest", "least_squares"):
        out = tmp_path / method
        code, text, _ = petkit("quantize", source, "--method", method, "-o", out, *arguments)
        assert code == 0
        results[method] = json.loads(text)
    outputs = results["least_squares"]["outputs"]
    assert outputs["count"] == 16
    assert outputs["held_out"]
    assert outputs["kl"] >= 0
    assert [check["name"] for check in results["nearest"]["checks"]] == [
        "reload",
        "reloaded artifact gives the same logits",
    ]
    better = [
        fitted["output_error"] <= plain["output_error"]
        for fitted, plain in zip(
            results["least_squares"]["errors"], results["nearest"]["errors"], strict=True
        )
    ]
    assert all(better)
    code, text, _ = petkit("quantize", source, "-o", tmp_path / "text", *arguments[:-1])
    assert "logits on held-out inputs: KL" in text
    assert "output error" in text
    assert "times smaller than the whole model" in text


def test_a_result_that_is_larger_is_said_to_be_larger(petkit, tmp_path):
    # A file of 6 sites with one hidden unit each is mostly names.
    config = AdapterConfig(bits=32, bottleneck=1, dropout=0.0)
    source, _ = write(tmp_path / "source", config)
    result = petkit("quantize", source, "--bits", "8", "-o", tmp_path / "out")
    assert "times larger than in float32" in result.out
    assert "times larger than in float32" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("file", ["petkit.json", "adapter_packed", "checks.json", "result.json", "README.md"])
def test_a_full_disk_ends_with_1_and_leaves_nothing(petkit, source, tmp_path, full_disk, file):
    full_disk(file)
    out = tmp_path / "new" / "out"
    code, text, err = petkit("quantize", source, "-o", out)
    assert (code, text) == (1, "")
    assert err.startswith(f"error: cannot write {out}")
    assert err.endswith("No space left on device; nothing was left under that name\n")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_full_disk_keeps_what_was_to_be_overwritten(petkit, source, tmp_path, full_disk):
    assert petkit("quantize", source, "--bits", "2", "-o", tmp_path / "out").code == 0
    full_disk("checks.json")
    assert petkit("quantize", source, "--bits", "8", "-o", tmp_path / "out", "--overwrite").code == 1
    assert read_artifact(tmp_path / "out").manifest.adapter["bits"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_peft_folder(petkit, tmp_path):
    folder, _ = write_peft(tmp_path / "lora")
    code, text, _ = petkit("quantize", folder, "--bits", "8", "-o", tmp_path / "out")
    assert code == 0
    assert "blocks.1.mlp.fc1.lora.up" in text
    assert read_artifact(tmp_path / "out").manifest.adapter["bits"] == 8


def test_dry_run_writes_nothing(petkit, source, tmp_path):
    code, text, _ = petkit("quantize", source, "--bits", "2", "-o", tmp_path / "out", "--dry-run", "--json")
    plan = json.loads(text)
    assert code == 0
    assert (plan["status"], plan["matrices"], plan["settings"]["bits"]) == ("plan", 12, 2)
    assert not (tmp_path / "out").exists()
    assert petkit("quantize", source, "-o", tmp_path / "out", "--dry-run").code == 0


def test_a_failed_gate_keeps_the_artifact_and_says_so(petkit, source, tmp_path):
    out = tmp_path / "out"
    code, text, err = petkit("quantize", source, "--bits", "1", "-o", out, "--max-error", "0.1")
    assert code == 3
    assert "FAILED: max-error" in text
    assert "max-error: largest relative error" in err
    assert not json.loads((out / "checks.json").read_text())["ok"]
    assert json.loads((out / "result.json").read_text())["status"] == "gate_failed"
    assert petkit("quantize", source, "--bits", "8", "-o", out, "--max-error", "0.1", "--overwrite").code == 0


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)], ids=["run", "dry-run"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bits", "3"), "bits"),
        (("--bits", "32"), "bits"),
        (("--method", "hqq"), "method"),
        (("--rounds", "2"), "rounds"),
        (("--codebook", "nf4"), "codebook"),
        (("--calibration-batches", "2"), "need --data"),
        (("--seed", "2"), "need --data"),
        (("--data", "own"), "--data"),
        (("--data", "no-such-recipe"), "no-such-recipe"),
        (("--device", "tpu"), "--device must be auto, cpu, cuda"),
    ],
)
def test_bad_flags_end_with_2_and_write_nothing(petkit, source, tmp_path, arguments, message, dry_run):
    code, out, err = petkit("quantize", source, "-o", tmp_path / "out", *arguments, *dry_run)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "out").exists()


def test_bad_paths_end_with_2(petkit, source, tmp_path):
    missing = petkit("quantize", tmp_path / "missing", "-o", tmp_path / "out")
    assert (missing.code, missing.out) == (2, "")
    assert "must be a folder" in missing.err
    filled = petkit("quantize", source, "-o", source)
    assert filled.code == 2
    assert "is the adapter itself, whose 32-bit weights would be lost" in filled.err


def test_quantised_adapters_end_with_2(petkit, source, tmp_path):
    assert petkit("quantize", source, "-o", tmp_path / "one").code == 0
    code, _, err = petkit("quantize", tmp_path / "one", "-o", tmp_path / "two")
    assert code == 2
    assert "its adapters are 1-bit already" in err


def test_a_missing_device_ends_with_4(petkit, source, tmp_path):
    assert petkit("quantize", source, "-o", tmp_path / "out", "--device", "cuda:7").code == 4
