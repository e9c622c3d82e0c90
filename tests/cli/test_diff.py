import json

import numpy as np
from safetensors.torch import load_file

from petkit.artifacts import PackedMatrix
from petkit.artifacts.manifest import Step
from tests.artifacts.support import adapter_matrices, head, manifest, write_small

SITES = {"s": (4, 2, 4)}


def pair(tmp_path):
    packed = adapter_matrices(SITES, 1)
    first = write_small(tmp_path / "a", packed=packed, dense=head())
    codes = packed["s.up"].codes()
    codes[0, 0] ^= 1
    old = packed["s.up"]
    changed = {**packed, "s.up": PackedMatrix.from_codes(codes, old.shift, old.scale, 1)}
    return first, write_small(tmp_path / "b", packed=changed, dense=head())


def test_the_same_artifact(petkit, tmp_path):
    first, _ = pair(tmp_path)
    result = petkit("diff", first, first, "--exit-code")
    assert result.code == 0
    assert "are the same" in result.out
    assert json.loads(petkit("diff", first, first, "--json").out)["differences"] == []


def test_a_difference_is_shown_and_changes_the_exit_code_only_when_asked(petkit, tmp_path):
    first, second = pair(tmp_path)
    result = petkit("diff", first, second)
    assert result.code == 0
    lines = [line.split("  ") for line in result.out.splitlines()]
    # Shift and scale are equal on both sides, so that they have no column.
    assert [cell.strip() for cell in lines[-3] if cell] == ["tensor", "flipped", "changed codes"]
    assert [cell.strip() for cell in lines[-1] if cell] == ["s.up", "1", "12.5% of 8"]
    result = petkit("diff", first, second, "--exit-code", "--json")
    assert result.code == 3
    payload = json.loads(result.out)
    assert payload["same"] is False
    form = {"shape": [4, 2], "bits": 1, "kind": "normal_l1"}
    change = {"flipped_bits": 1, "changed_codes": 1, "codes": 8}
    assert payload["differences"][-1] == {
        "where": "tensors",
        "name": "s.up",
        "first": form,
        "second": form,
        "change": change,
    }


def test_a_matrix_takes_one_line_of_a_terminal(petkit, tmp_path, monkeypatch):
    sites = {f"blocks.{number}.adaptformer": (64, 8, 64) for number in range(12)}
    for folder, seed, created in (("a", 1, "2026-01-01T00:00:00Z"), ("b", 2, "2026-01-02T00:00:00Z")):
        packed = {
            name: PackedMatrix.from_codes(
                np.random.default_rng(seed).integers(0, 2, old.shape).astype(np.uint8),
                -0.0123456 * seed,
                0.0234567 * seed,
                1,
            )
            for name, old in adapter_matrices(sites, 1).items()
        }
        lineage = (Step(command="train adapter", version="0.1.0", config_sha256="0" * 64, created=created),)
        made = manifest().model_copy(update={"lineage": lineage})
        write_small(tmp_path / folder, packed=packed, dense=head(), manifest=made)
    monkeypatch.setenv("COLUMNS", "100")
    # A dumb terminal has 80 columns whatever COLUMNS says.
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lines = petkit("diff", tmp_path / "a", tmp_path / "b").out.splitlines()
    matrices = [line for line in lines if line.startswith("blocks.")]
    assert len(matrices) == 24
    assert all(line.rstrip().endswith("-0.0123 -> -0.0247   0.0235 -> 0.0469") for line in matrices)
    assert sum("1 step, last: train adapter at 0.1.0" in line for line in lines) == 1


def test_a_missing_artifact(petkit, tmp_path):
    first, _ = pair(tmp_path)
    assert petkit("diff", first, tmp_path / "none").code == 2


def test_values_are_whole_off_a_terminal_and_names_in_natural_order(petkit, tmp_path):
    sites = {f"blocks.{number}": (4, 2, 4) for number in (0, 2, 10)}
    for folder, bits in (("a", 1), ("b", 2)):
        write_small(
            tmp_path / folder,
            packed=adapter_matrices(sites, bits),
            dense=head(),
            manifest=manifest(bits=bits),
            config={"x": folder * 90},
        )
    first, second = tmp_path / "a", tmp_path / "b"
    out = petkit("diff", first, second).out
    assert "a" * 90 in out
    assert "…" not in out
    names = [row["name"] for row in json.loads(petkit("diff", first, second, "--json").out)["differences"]]
    ups = [name for name in names if name.endswith(".up")]
    assert ups == ["blocks.0.up", "blocks.2.up", "blocks.10.up"]


def test_two_runs_that_differ_only_in_their_folder_hold_the_same(petkit, tmp_path):
    common = {"packed": adapter_matrices(SITES, 1), "dense": head()}
    first = write_small(tmp_path / "a", **common, config={"output": "runs/a", "seed": 1})
    second = write_small(tmp_path / "b", **common, config={"output": "runs/b", "seed": 1})
    result = petkit("diff", first, second, "--exit-code")
    assert result.code == 0
    assert "runs/b" in result.out
    assert "bit-identical" in result.out
    payload = json.loads(petkit("diff", first, second, "--json").out)
    assert (payload["same"], payload["same_content"]) == (False, True)
    third = write_small(tmp_path / "c", **common, config={"output": "runs/c", "seed": 2})
    assert petkit("diff", first, third, "--exit-code").code == 3


def test_artifacts_of_every_kind(petkit, student, teacher, llama, tmp_path):
    same = petkit("diff", student, student, "--exit-code")
    assert (same.code, "are the same" in same.out) == (0, True)
    payload = json.loads(petkit("diff", student, teacher, "--json").out)
    tensors = [one for one in payload["differences"] if one["where"] == "tensors"]
    assert any("first" in one and "second" not in one for one in tensors)
    for name, weight in (("x", 1.0), ("y", 0.5)):
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(
            f"merge_method: linear\nparameters: {{normalize: false}}\nmodels:\n"
            f"  - {{model: {llama}, parameters: {{weight: {weight}}}}}\n"
        )
        assert petkit("merge", recipe, "-o", tmp_path / name).code == 0
    payload = json.loads(petkit("diff", tmp_path / "x", tmp_path / "y", "--json").out)
    changes = {one["name"]: one["change"] for one in payload["differences"] if one["where"] == "tensors"}
    weight = load_file(llama / "model.safetensors")["model.embed_tokens.weight"]
    assert changes["model.embed_tokens.weight"] == {
        "changed_values": int((weight != 0).sum()),
        "values": weight.numel(),
        "largest_difference": float(weight.abs().max()) / 2,
    }
    mixed = petkit("diff", student, tmp_path / "x")
    assert mixed.code == 2
    assert "is of kind translator and" in mixed.err
