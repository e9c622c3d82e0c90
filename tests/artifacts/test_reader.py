import json
import math
import pickle
import re
import struct
import sys

import numpy as np
import pytest
import torch

from petkit.artifacts import Manifest, PackedMatrix, read_artifact, read_packed
from petkit.artifacts.reader import MANIFEST, TENSORS, read_config
from petkit.errors import ArtifactError, InputError, SafetyError
from tests.artifacts.support import (
    adapter_matrices,
    edit_header,
    edit_manifest,
    edit_tensors,
    head,
    manifest,
    write_small,
)
from tests.reference import format as reference

SITE = "blocks.0.adaptformer"

# A whole tensor file with one 3 x 5 matrix of each width, written by hand from docs/format.md.
HEADER = {
    1: '{"__metadata__":{"format":"petkit.packed.1","m.bits":"1 normal_l1 3x5"},'
    '"m.scale":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
    '"m.shift":{"dtype":"F32","shape":[],"data_offsets":[4,8]},'
    '"m.bits":{"dtype":"U8","shape":[2],"data_offsets":[8,10]}}',
}
HEADER[2] = HEADER[1].replace('"1 n', '"2 n').replace("[2],", "[4],").replace("10]", "12]")
HEADER[4] = HEADER[1].replace('"1 n', '"4 n').replace("[2],", "[8],").replace("10]", "16]")
STREAM = {1: "cd26", 2: "e4e4e424", 4: "1032547698badc0e"}
LENGTH = "f8 00 00 00 00 00 00 00"
CODES = {
    1: [[1, 0, 1, 1, 0], [0, 1, 1, 0, 1], [1, 0, 0, 1, 0]],
    2: [[0, 1, 2, 3, 0], [1, 2, 3, 0, 1], [2, 3, 0, 1, 2]],
    4: np.arange(15).reshape(3, 5).tolist(),
}


def golden(bits):
    text = HEADER[bits].encode().ljust(0xF8)
    payload = bytes.fromhex("0000003f 000080be" + STREAM[bits])  # scale 0.5, shift -0.25
    return bytes.fromhex(LENGTH) + text + payload


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_golden_bytes_are_read(tmp_path, bits):
    (tmp_path / TENSORS).write_bytes(golden(bits))
    matrix = read_packed(tmp_path)["m"]
    assert (matrix.shape, matrix.bits, matrix.kind) == ((3, 5), bits, "normal_l1")
    assert (matrix.shift, matrix.scale) == (-0.25, 0.5)
    assert matrix.codes().tolist() == CODES[bits]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_golden_bytes_are_written(bits):
    from petkit.artifacts.writer import tensor_bytes

    matrix = PackedMatrix.from_codes(np.array(CODES[bits]), -0.25, 0.5, bits)
    assert tensor_bytes({"m": matrix}, {}) == golden(bits)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_reader_written_from_the_page_reads_the_same(tmp_path, bits):
    extra = np.linspace(-1, 1, 6).astype(np.float16).reshape(2, 3)
    folder = write_small(tmp_path / "a", bits, dense={**head(), "norm.weight": extra})
    ours, theirs = read_artifact(folder), reference.read(folder)
    assert ours.packed.keys() == theirs.packed.keys()
    for name, matrix in ours.packed.items():
        other = theirs.packed[name]
        assert np.array_equal(matrix.codes(), other.codes)
        assert (matrix.shift, matrix.scale, matrix.kind) == (other.shift, other.scale, other.codebook)
    assert ours.dense.keys() == theirs.dense.keys()
    for name, tensor in ours.dense.items():
        assert np.array_equal(tensor.float().numpy(), theirs.dense[name])
    assert ours.manifest.model_dump(mode="json") == theirs.manifest


def test_dense_tensors_keep_their_dtype(tmp_path):
    dense = {**head(), "x": torch.tensor([1.5, -2.0], dtype=torch.bfloat16), "s": torch.tensor(3.0)}
    read = read_artifact(write_small(tmp_path / "a", dense=dense)).dense
    assert read["x"].dtype == torch.bfloat16
    assert read["x"].tolist() == [1.5, -2.0]
    assert read["s"].shape == ()


def test_config_is_read_when_asked_for(tmp_path):
    artifact = read_artifact(write_small(tmp_path / "a"))
    assert artifact.config == {"output": "runs/x", "adapter": {"bits": 1}}
    (tmp_path / "a" / "config.yaml").unlink()
    with pytest.raises(ArtifactError, match=r"no config\.yaml"):
        read_config(tmp_path / "a")


def rename(header, old, new):
    header[new] = header.pop(old)


def metadata(**changes):
    return lambda header: header["__metadata__"].update({k.replace("__", "."): v for k, v in changes.items()})


def describe(text):
    return lambda header: header["__metadata__"].update({f"{SITE}.down.bits": text})


HEADER_DAMAGE = [
    (describe("3 normal_l1 3x10"), "metadata must read like"),
    (describe("1 normal_l1 3x011"), "metadata must read like"),
    (describe("1 nf4 3x10"), "metadata must read like"),
    (describe("1 normal_l1 3x99999999999"), "metadata must read like"),
    (describe("1 normal_l1 4x10"), "a 4x10 matrix of 1 bits needs a stream of 5 bytes, got 4"),
    (describe("1 normal_l1 10x3"), "must share the bottleneck"),
    (describe("2 normal_l1 3x10"), "a 3x10 matrix of 2 bits needs a stream of 8 bytes, got 4"),
    (describe("1 petl_vit 3x10"), "has codebook petl_vit, petkit.json says normal_l1"),
    (metadata(format="pt"), "must have format 'petkit.packed.1' in its metadata, got 'pt'"),
    (metadata(extra="1"), "metadata key 'extra' is neither"),
    (lambda h: h.pop("__metadata__"), "must have format"),
    (lambda h: h["__metadata__"].pop(f"{SITE}.down.bits"), "has no description in the metadata"),
    (lambda h: rename(h, f"{SITE}.down.bits", f"{SITE}.down.bitz"), "there is no one-dimensional U8"),
    (
        lambda h: rename(h, f"{SITE}.down.scale", f"{SITE}.down.scald"),
        "scale must be an F32 scalar, got nothing",
    ),
    (lambda h: rename(h, "head.weight", "head.bits"), "head.bits has no description"),
]


@pytest.mark.parametrize(("damage", "message"), HEADER_DAMAGE)
def test_refuses_a_header_with_one_field_changed(tmp_path, damage, message):
    folder = edit_header(write_small(tmp_path / "a"), lambda header: damage(header) and None)
    with pytest.raises(ArtifactError, match=re.escape(message)):
        read_artifact(folder)


@pytest.mark.parametrize("read", [read_packed, read_artifact])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["shift", "scale"])
def test_refuses_a_shift_or_scale_that_is_not_finite(tmp_path, read, part, value):
    folder = write_small(tmp_path / "a")
    old = read_packed(folder)[f"{SITE}.down"]
    good = struct.pack("<f", getattr(old, part))
    edit_tensors(folder, lambda raw: raw.replace(good, struct.pack("<f", value)))
    with pytest.raises(ArtifactError, match="shift and scale must be finite"):
        read(folder)


@pytest.mark.parametrize("read", [read_packed, read_artifact])
def test_refuses_padding_with_ones(tmp_path, read):
    folder = write_small(tmp_path / "a")
    # The U8 streams come last, and 30 codes leave two bits of the last byte.
    edit_tensors(folder, lambda raw: raw[:-1] + bytes([raw[-1] | 0x80]))
    with pytest.raises(ArtifactError, match="padding bits of the last byte must be zero"):
        read(folder)


@pytest.mark.parametrize("read", [read_packed, read_artifact])
def test_refuses_every_truncation_and_extension(tmp_path, read):
    folder = write_small(tmp_path / "a")
    whole = (folder / TENSORS).read_bytes()
    for length in {*range(0, len(whole), 37), 7, 8, 9, len(whole) - 1}:
        edit_tensors(folder, lambda _, length=length: whole[:length])
        with pytest.raises(ArtifactError):
            read(folder)
    edit_tensors(folder, lambda _: whole + b"\0")
    with pytest.raises(ArtifactError, match="longer than its header says"):
        read(folder)


def test_every_single_flipped_byte_is_noticed(tmp_path):
    folder = write_small(tmp_path / "a", packed=adapter_matrices({"s": (4, 2, 4)}, 1), dense={})
    whole = (folder / TENSORS).read_bytes()
    for place in range(len(whole)):
        flipped = whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :]
        edit_tensors(folder, lambda _, flipped=flipped: flipped, restamp=False)
        with pytest.raises((ArtifactError, SafetyError)):
            read_artifact(folder)


def test_refuses_dense_tensors_that_are_not_finite(tmp_path):
    folder = write_small(tmp_path / "a")
    good = np.float32(head()["head.bias"][0]).tobytes()
    edit_tensors(folder, lambda raw: raw.replace(good, np.float32(np.nan).tobytes()))
    with pytest.raises(ArtifactError, match=r"head\.bias holds NaN or infinity"):
        read_artifact(folder)


def pictures(**changes):
    preprocess = {
        "image_size": 32,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        **changes,
    }
    return {"type": "image_classification", "classes": ["cat", "dog"], "preprocess": preprocess}


MANIFEST_DAMAGE = [
    ({"schema_version": 2}, "schema_version 2 is later than 1"),
    ({"schema_version": "1"}, "must have an integer schema_version"),
    ({"schema_version": 0}, "must have an integer schema_version"),
    ({"schema_version": None}, "must have an integer schema_version"),
    ({"kind": "router"}, "describes a router, but an adapter is needed here"),
    ({"base": {}}, "base.id: Field required"),
    ({"base": {"id": "x", "sha256": "xyz"}}, "base.sha256"),
    ({"surprise": 1}, "unknown key surprise"),
    ({"adapter": {"bits": 3}}, "adapter.bits must be one of"),
    ({"adapter": {"bits": [1]}}, "adapter.bits must be one of"),
    ({"adapter": {"codebook": "nf4"}}, "adapter.codebook must be one of"),
    ({"adapter": {"bits": True}}, "adapter.bits must be one of"),
    ({"adapter": {"scale": "big"}}, "adapter.scale must be a number greater than 0, got 'big'"),
    ({"adapter": {"scale": True}}, "adapter.scale must be a number greater than 0, got 'True'"),
    ({"adapter": {"scale": -5}}, "adapter.scale must be a number greater than 0, got '-5'"),
    ({"adapter": {"scale": 0}}, "adapter.scale must be a number greater than 0, got '0'"),
    ({"adapter": {"scale": math.nan}}, "NaN is not JSON"),
    ({"adapter": {"bottleneck": "3"}}, "adapter.bottleneck must be a whole number of at least 1, got '3'"),
    ({"adapter": {"bottleneck": 4}}, "the widest site has 3 units, petkit.json says bottleneck 4"),
    ({"model": {"anything": [math.inf]}}, "Infinity is not JSON"),
    ({"task": pictures(std=[0, 0, 0])}, "task.preprocess.std.0: Input should be greater than 0"),
    ({"task": pictures(std=[0.2, -0.2, 0.2])}, "task.preprocess.std.1: Input should be greater than 0"),
    ({"task": pictures(std=[0.2, math.inf, 0.2])}, "Infinity is not JSON"),
    ({"task": pictures(std=[0.2])}, "task.preprocess.std"),
    ({"task": pictures(mean=[0.5])}, "task.preprocess.mean"),
    ({"task": pictures(interpolation="nearest")}, "task.preprocess.interpolation"),
    ({"adapter": {"bits": 4}}, "has 1 bits, petkit.json says 4"),
    ({"tensors_sha256": "0" * 64}, "the file was altered or exchanged"),
    ({"tensors_sha256": None}, "the file was altered or exchanged"),
    (
        {"task": {"type": "image_classification", "classes": ["cat"]}},
        "the head has 2 rows, petkit.json names 1",
    ),
    ({"scaling": {"blocks.9.adaptformer": 1.0}}, "scaling names blocks.9.adaptformer, which has no weights"),
    ({"scaling": {SITE: math.nan}}, "NaN is not JSON"),
]


@pytest.mark.parametrize(("changes", "message"), MANIFEST_DAMAGE)
def test_refuses_a_manifest_with_one_field_changed(tmp_path, changes, message):
    folder = edit_manifest(write_small(tmp_path / "a"), **changes)
    with pytest.raises(ArtifactError, match=re.escape(message)):
        read_artifact(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"schema_version": 1}'])
def test_refuses_a_broken_manifest(tmp_path, content):
    folder = write_small(tmp_path / "a")
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"petkit\.json"):
        read_artifact(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"kind":', '"kind": "adapter", "kind":', "duplicate key 'kind'"),
        ('"bits": 1', '"bits": 1, "bits": 1', "duplicate key 'bits'"),
        ('"scale": 0.5', '"scale": 1e999', "1e999 is too large for a number"),
        ('"scale": 0.5', '"scale": -Infinity', "-Infinity is not JSON"),
    ],
)
def test_refuses_a_manifest_that_only_python_reads(tmp_path, old, new, message):
    path = write_small(tmp_path / "a") / MANIFEST
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ArtifactError, match=re.escape(f"{path} is not valid JSON: {message}")):
        read_artifact(path.parent)


def test_the_bottleneck_is_the_width_of_the_widest_site(tmp_path):
    packed = adapter_matrices({"a": (10, 3, 10), "b": (10, 2, 10)}, 1)
    folder = write_small(tmp_path / "a", packed=packed, manifest=manifest(width=3))
    assert read_artifact(folder).manifest.adapter["bottleneck"] == 3
    with pytest.raises(ArtifactError, match="the widest site has 3 units"):
        write_small(tmp_path / "b", packed=packed, manifest=manifest(width=2))


def test_refuses_a_manifest_without_end(tmp_path):
    folder = write_small(tmp_path / "a")
    with (folder / MANIFEST).open("wb") as file:
        file.truncate(5 * 2**20)
    with pytest.raises(ArtifactError, match="at most 4194304 are read"):
        read_artifact(folder)


def test_says_what_a_folder_is_when_it_is_no_artifact(tmp_path):
    with pytest.raises(InputError, match=r"expected an artifact folder, .* is missing"):
        read_artifact(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        read_artifact(tmp_path / "file")
    with pytest.raises(ArtifactError, match=r"has no petkit\.json"):
        read_artifact(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_text("x")
    with pytest.raises(ArtifactError, match="is a PEFT adapter: petkit convert"):
        read_artifact(tmp_path)


def test_refuses_pickles_under_any_name(tmp_path):
    (tmp_path / "adapter.pt").write_bytes(pickle.dumps({"a": 1}))
    for path in (tmp_path / "adapter.pt", tmp_path):
        with pytest.raises(SafetyError, match="is a pickle"):
            read_artifact(path)
    folder = write_small(tmp_path / "a")
    torch.save({"a": torch.ones(2)}, folder / TENSORS)
    with pytest.raises(SafetyError, match="is a pickle"):
        read_artifact(folder)


@pytest.mark.parametrize("name", [MANIFEST, TENSORS, "config.yaml"])
def test_refuses_symlinks_that_lead_out_and_follows_those_inside(tmp_path, name):
    folder = write_small(tmp_path / "a")
    (folder / name).rename(folder / "moved")
    (folder / name).symlink_to("moved")
    assert read_artifact(folder).config
    (folder / "moved").rename(tmp_path / "outside")
    (folder / name).unlink()
    (folder / name).symlink_to("../outside")
    with pytest.raises(SafetyError, match="symlink that leaves the artifact folder"):
        _ = read_artifact(folder).config


def test_an_artifact_behind_a_symlink_is_read(tmp_path):
    write_small(tmp_path / "a")
    (tmp_path / "link").symlink_to("a")
    assert read_artifact(tmp_path / "link").packed


@pytest.mark.parametrize(
    ("packed", "dense", "message"),
    [
        ({"s.down": (3, 10)}, {}, "s needs both down and up, it has only down"),
        ({"s.up": (3, 10)}, {}, "s needs both down and up, it has only up"),
        ({"s.down": (3, 10), "s.up": (10, 4)}, {}, "must share the bottleneck"),
        ({"s.down": (3, 10)}, {"s.up.weight": (10, 3)}, "s.up is dense, petkit.json says 1 bits"),
        ({"s.down": (3, 10), "s.up": (10, 3)}, {"s.up.weight": (10, 3)}, "s.up is both packed and dense"),
        ({"s.down": (3, 10), "s.up": (10, 3)}, {"head.weight": (2,)}, "head must be a matrix"),
    ],
)
def test_writer_refuses_parts_that_do_not_fit(tmp_path, packed, dense, message):
    matrices = {
        name: PackedMatrix.from_codes(np.ones(shape, int), 0.0, 1.0, 1) for name, shape in packed.items()
    }
    arrays = {name: np.ones(shape, np.float32) for name, shape in dense.items()}
    with pytest.raises(ArtifactError, match=re.escape(message)):
        write_small(tmp_path / "a", packed=matrices, dense=arrays, manifest=manifest(task=None))
    assert not (tmp_path / "a").exists()


def test_32_bit_adapters_are_dense(tmp_path):
    dense = {"s.down.weight": np.ones((3, 4), np.float32), "s.up.weight": np.zeros((4, 3), np.float32)}
    folder = write_small(
        tmp_path / "a", bits=32, packed={}, dense=dense, manifest=manifest(bits=32, task=None)
    )
    artifact = read_artifact(folder)
    assert not artifact.packed
    assert artifact.nbytes == 2 * 48


def test_reading_does_not_import_torch():
    import subprocess

    code = "import petkit.artifacts, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_manifest_text_is_canonical_and_reads_back(tmp_path):
    folder = write_small(tmp_path / "a")
    text = (folder / MANIFEST).read_text()
    content = json.loads(text)
    assert text == json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert Manifest(**content).to_json() == text
