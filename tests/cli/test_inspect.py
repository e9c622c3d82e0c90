import json
import pickle
from pathlib import Path

import pytest

from petkit.artifacts.reader import TENSORS
from tests.artifacts.support import (
    adapter_matrices,
    edit_header,
    edit_manifest,
    edit_tensors,
    manifest,
    write_small,
)

PETL_VIT = Path(__file__).parents[1] / "data" / "petl_vit" / "lora-kitti-bit1-dim32.bin"


def test_names_every_module_with_its_bits_and_bytes(petkit, tmp_path):
    result = petkit("inspect", write_small(tmp_path / "a"))
    assert result.code == 0
    row = next(line for line in result.out.splitlines() if line.startswith("blocks.0.adaptformer.down"))
    assert row.split() == ["blocks.0.adaptformer.down", "3x10", "1", "12", "-0.01", "0.03"]
    assert "base     timm/tiny, sha256 unknown" in result.out
    assert "136 bytes of tensors, 568 as float32: 4.2 times more" in result.out


def test_a_random_base_is_told_and_no_key_without_a_value(petkit, tmp_path):
    adapter = {"method": "adaptformer", "bits": 1, "targets": None}
    made = manifest().model_copy(update={"adapter": adapter, "model": {"pretrained": False}})
    lines = petkit("inspect", write_small(tmp_path / "a", manifest=made)).out.splitlines()
    assert lines[2] == "         drawn at random (model.pretrained: false), not a published model"
    assert lines[3] == "adapter  bits 1, method adaptformer"
    made = made.model_copy(update={"model": {"pretrained": True}})
    assert "drawn at random" not in petkit("inspect", write_small(tmp_path / "b", manifest=made)).out


def test_json_adds_up(petkit, tmp_path):
    folder = write_small(tmp_path / "a", bits=2)
    result = petkit("inspect", folder, "--json")
    content = json.loads(result.out)
    assert content["kind"] == "adapter"
    assert content["bytes"] == sum(module["bytes"] for module in content["modules"])
    assert content["file_bytes"] == (folder / TENSORS).stat().st_size
    assert [module["name"] for module in content["modules"]][-1] == "head.weight"
    assert content["float32_bytes"] == 4 * (4 * 30 + 20 + 2)


def test_blocks_are_in_natural_order(petkit, tmp_path):
    from tests.artifacts.support import adapter_matrices

    packed = adapter_matrices({f"blocks.{block}.adaptformer": (4, 1, 4) for block in (10, 2, 0)}, 1)
    content = json.loads(
        petkit("inspect", write_small(tmp_path / "a", packed=packed, dense={}), "--json").out
    )
    assert [module["name"][:9] for module in content["modules"][::2]] == [
        "blocks.0.",
        "blocks.2.",
        "blocks.10",
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: edit_tensors(folder, lambda raw: raw[:-1]), "is truncated"),
        (
            lambda folder: edit_tensors(folder, lambda raw: b"\0\0\0\x7f" + raw[4:]),
            "at most 16777216 are read",
        ),
        (lambda folder: edit_manifest(folder, schema_version=2), "schema_version 2 is later than 1"),
        (lambda folder: (folder / "petkit.json").write_text("{"), "is not valid JSON"),
        (lambda folder: edit_header(folder, lambda header: []), "is not a JSON object"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_refuses_damage_with_exit_2_and_an_empty_stdout(petkit, tmp_path, damage, message, flags):
    damage(folder := write_small(tmp_path / "a"))
    result = petkit("inspect", folder, *flags)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_says_what_can_be_converted(petkit, tmp_path):
    assert "petkit convert" in petkit("inspect", PETL_VIT).out
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    content = json.loads(petkit("inspect", tmp_path, "--json").out)
    assert content["kind"] == "peft"
    assert "LORA, rank 8" in content["detail"]
    (tmp_path / "adapter_config.json").write_text("[]")
    assert petkit("inspect", tmp_path).code == 2


def test_refuses_pickles_with_exit_5_and_other_files_with_2(petkit, tmp_path):
    (tmp_path / "x.pt").write_bytes(b"whatever")
    (tmp_path / "x.bin").write_bytes(pickle.dumps([1]))
    (tmp_path / "x.txt").write_text("text")
    assert petkit("inspect", tmp_path / "x.pt").code == 5
    assert petkit("inspect", tmp_path / "x.bin").code == 5
    assert petkit("inspect", tmp_path / "x.txt").code == 2
    assert petkit("inspect", tmp_path / "none").code == 2


def test_a_symlink_that_leads_out_gives_5(petkit, tmp_path):
    folder = write_small(tmp_path / "a")
    (folder / TENSORS).rename(tmp_path / "outside")
    (folder / TENSORS).symlink_to("../outside")
    result = petkit("inspect", folder)
    assert result.code == 5
    assert "symlink that leaves the artifact folder" in result.err


@pytest.mark.parametrize(
    ("sites", "bits", "told"),
    [
        ({"s": (40, 2, 40)}, 1, "640 as float32: 17.8 times more"),
        ({"s": (1, 1, 1)}, 8, "8 as float32: 2.2 times less"),
    ],
)
def test_sizes_are_compared_in_the_direction_they_have(petkit, tmp_path, sites, bits, told):
    packed = adapter_matrices(sites, bits)
    folder = write_small(tmp_path / "a", packed=packed, dense={}, manifest=manifest(bits=bits, task=None))
    assert told in petkit("inspect", folder).out


def test_equal_sizes_are_said_to_be_equal(petkit, tmp_path):
    folder = write_small(tmp_path / "a", packed={})
    assert "88 bytes of tensors, 88 as float32: as many" in petkit("inspect", folder).out
