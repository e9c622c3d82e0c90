import json
import re
import struct

import numpy as np
import pytest
import safetensors.numpy

from petkit.artifacts.reader import TENSORS
from petkit.artifacts.tensor_file import RawTensor, read_tensor_file, serialize_tensor_file
from petkit.errors import ArtifactError, SafetyError

NAME = "x.safetensors"
F32 = np.arange(6, dtype=np.float32).reshape(2, 3)
U8 = np.arange(3, dtype=np.uint8)
TENSOR = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


def raw(array):
    dtype = {"float32": "F32", "uint8": "U8", "float16": "F16"}[array.dtype.name]
    return RawTensor(dtype, array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def container(header, payload=b"\0\0\0\0"):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def read(tmp_path, data):
    (tmp_path / NAME).write_bytes(data)
    return read_tensor_file(tmp_path, NAME)


def test_the_safetensors_library_reads_what_is_written(tmp_path):
    (tmp_path / NAME).write_bytes(serialize_tensor_file({"b": raw(U8), "a.c": raw(F32)}, {"k": "v"}))
    loaded = safetensors.numpy.load_file(tmp_path / NAME)
    np.testing.assert_array_equal(loaded["a.c"], F32)
    np.testing.assert_array_equal(loaded["b"], U8)


def test_reads_what_the_safetensors_library_writes(tmp_path):
    safetensors.numpy.save_file({"b": U8, "a": F32}, tmp_path / NAME, metadata={"k": "v"})
    content = read_tensor_file(tmp_path, NAME)
    assert content.metadata == {"k": "v"}
    assert content.tensors["a"].data.view(np.float32).tolist() == F32.reshape(-1).tolist()
    assert content.tensors["b"].shape == (3,)


def test_canonical_bytes_depend_on_content_only():
    one = serialize_tensor_file({"b": raw(U8), "a": raw(F32)}, {"x": "1", "y": "2"})
    other = serialize_tensor_file({"a": raw(F32), "b": raw(U8)}, {"y": "2", "x": "1"})
    assert one == other
    length = struct.unpack("<Q", one[:8])[0]
    assert length % 8 == 0
    assert one[8:9] == b"{"
    # Larger items first, so that float32 is aligned whatever the uint8 tensors' lengths are.
    assert list(json.loads(one[8 : 8 + length])) == ["__metadata__", "a", "b"]


def test_an_empty_tensor_and_a_scalar_are_kept(tmp_path):
    tensors = {"e": raw(np.zeros((0, 3), np.float32)), "s": raw(np.float32([7]).reshape(()))}
    content = read(tmp_path, serialize_tensor_file(tensors, {}))
    assert content.tensors["e"].shape == (0, 3)
    assert content.tensors["s"].shape == ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is truncated: it has 0 bytes"),
        (b"\x10\0\0", "is truncated: it has 3 bytes"),
        (struct.pack("<Q", 50) + b"{}", "is truncated: it states a header of 50 bytes and has 10"),
        (struct.pack("<Q", 2**63) + b"{}", "states a header of 9223372036854775808 bytes, at most 16777216"),
        (container(b"[]"), "header that is not a JSON object"),
        (container(b" {}"), "header that is not a JSON object"),
        (container(b"{\xff}"), "header that is not valid JSON"),
        (container(b'{"a": NaN}'), "NaN is not JSON"),
        (container(b'{"a": {"dtype": "U8", "dtype": "U8"}}'), "duplicate key 'dtype'"),
        (container(b"[" * 100_000), "header that is not valid JSON"),
        (container({"a": TENSOR, "__metadata__": {"k": 1}}), "__metadata__ that is not an object of strings"),
        (container({"a": {**TENSOR, "x": 1}}), "a must have exactly dtype, shape and data_offsets"),
        (container({"a": []}), "a must have exactly dtype, shape and data_offsets"),
        (container({"a": {**TENSOR, "dtype": "F8"}}), "a has dtype 'F8'"),
        (container({"a": {**TENSOR, "dtype": []}}), "a has dtype '[]'"),
        (container({"a": {**TENSOR, "shape": [-4]}}), "a has shape [-4]"),
        (container({"a": {**TENSOR, "shape": [True, 4]}}), "a has shape [True, 4]"),
        (container({"a": {**TENSOR, "shape": [4.0]}}), "a has shape [4.0]"),
        (container({"a": {**TENSOR, "shape": [1] * 9}}), "expected up to 8 counts"),
        (container({"a": {**TENSOR, "shape": [2**62, 2**62]}}), "a of shape"),
        (container({"a": {**TENSOR, "shape": [5]}}), "needs 5 bytes, got 4"),
        (container({"a": {**TENSOR, "dtype": "F32"}}), "needs 16 bytes, got 4"),
        (container({"a": {**TENSOR, "data_offsets": [4, 0]}}), "expected [begin, end]"),
        (container({"a": {**TENSOR, "data_offsets": [0, 4, 4]}}), "expected [begin, end]"),
        (container({"a": TENSOR}, b"\0\0\0"), "is truncated: the tensors need 4 bytes and 3 follow"),
        (container({"a": TENSOR}, b"\0\0\0\0\xff"), "is longer than its header says"),
        (container({"a": TENSOR, "b": TENSOR}), "b begins at byte 0 of the payload and overlaps"),
        (container({"a": {**TENSOR, "data_offsets": [1, 5]}}, bytes(5)), "leaves a hole before it"),
    ],
)
def test_refuses_damage(tmp_path, data, message):
    with pytest.raises(ArtifactError, match=re.escape(message)):
        read(tmp_path, data)


def test_counts_tensors_before_looking_at_them(tmp_path, monkeypatch):
    monkeypatch.setattr("petkit.artifacts.tensor_file.MAX_TENSORS", 1)
    with pytest.raises(ArtifactError, match="names 2 tensors, at most 1"):
        read(tmp_path, container({"a": TENSOR, "b": TENSOR}))


def test_allocates_nothing_for_a_header_that_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "empty", lambda *_, **__: pytest.fail("allocated"))
    with pytest.raises(ArtifactError, match="truncated"):
        read(tmp_path, container({"a": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}))


@pytest.mark.parametrize("name", ["../a", "a/b", "", "a\\b", "a b", "é", "x" * 129, ".."])
def test_refuses_names_that_are_not_plain(tmp_path, name):
    # What could be a path is refused for safety; anything else is damage.
    could_be_a_path = not name or set(name) & set("/\\") or name == ".."
    with pytest.raises(SafetyError if could_be_a_path else ArtifactError, match="must match"):
        read(tmp_path, container({name: TENSOR}))
    with pytest.raises(SafetyError, match="must match"):
        serialize_tensor_file({name: raw(U8)}, {})


@pytest.mark.parametrize(
    "head", [b"PK\x03\x04" + bytes(40), b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(9)]
)
def test_recognises_a_pickle_by_its_first_bytes(tmp_path, head):
    with pytest.raises(SafetyError, match="is a pickle, which can run code"):
        read(tmp_path, head)


def test_refuses_a_symlink_that_leads_out(tmp_path):
    (tmp_path / "secret").write_bytes(container({"a": TENSOR}))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / TENSORS).symlink_to(tmp_path / "secret")
    with pytest.raises(SafetyError, match="symlink that leaves the artifact folder"):
        read_tensor_file(folder, TENSORS)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / NAME)
    with pytest.raises(ValueError, match="must be a regular file"):
        read_tensor_file(tmp_path, NAME)
