"""A translator's folder: written whole, read back, refused where it is damaged."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from petkit.artifacts.kinds import kind_of
from petkit.artifacts.translator import (
    WEIGHTS,
    TranslatorManifest,
    is_translator,
    read_translator,
    write_translator,
)
from petkit.artifacts.verification import verify
from petkit.errors import ArtifactError, InputError, SafetyError

TENSORS = {"body.a": torch.arange(6.0).reshape(2, 3), "crf.left": torch.tensor([0.5])}
VOCABULARY = {"words": ["ä", 1.5, None]}
RECIPE = {"output": "x", "model": {"kind": "nart"}}
MANIFEST = TranslatorManifest(translator=RECIPE, vocabulary_sha256="b" * 64)
FILES = {"vocabulary.json": json.dumps(VOCABULARY).encode()}


@pytest.fixture
def folder(tmp_path):
    return write_translator(tmp_path / "translator", MANIFEST, TENSORS, FILES)


def failed(folder):
    return [check.name for check in verify(folder) if not check.ok]


def rewrite(folder, **changes):
    path = folder / "petkit.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_was_written_is_read(folder):
    found = read_translator(folder)
    assert found.dense.keys() == TENSORS.keys()
    assert all(torch.equal(found.dense[name], tensor) for name, tensor in TENSORS.items())
    assert found.vocabulary == VOCABULARY
    assert found.manifest.translator == RECIPE
    assert (found.nbytes, dict(found.packed), found.tensor_file) == (28, {}, folder / WEIGHTS)
    assert (is_translator(folder), kind_of(folder)) == (True, "translator")
    assert failed(folder) == []


def test_the_same_translator_is_written_with_the_same_bytes(folder, tmp_path):
    again = write_translator(tmp_path / "again", MANIFEST, dict(reversed(TENSORS.items())), FILES)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    with pytest.raises(InputError, match="is not empty"):
        write_translator(folder, MANIFEST, TENSORS, FILES)


@pytest.mark.parametrize("at", [8, 40, -1])
def test_a_flipped_bit_is_refused(folder, at):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[at] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(ArtifactError):
        read_translator(folder)
    assert failed(folder) == [WEIGHTS]


def test_a_truncated_or_missing_file_is_refused(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-1])
    with pytest.raises(ArtifactError):
        read_translator(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(
        ArtifactError, match=r"has no translator.safetensors: the translator was not finished"
    ):
        read_translator(folder)
    assert failed(folder) == [WEIGHTS]


def test_packed_matrices_and_numbers_that_are_none_are_refused(folder, tmp_path):
    other = tmp_path / "other"
    tensors = {"body.a": torch.tensor([1.0, np.nan])}
    with pytest.raises(ArtifactError, match=r"body.a"):
        write_translator(other, TranslatorManifest(translator=RECIPE), tensors, {})
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ArtifactError):
        read_translator(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no vocabulary.json: it was not finished, or not copied whole"),
        ("{", "vocabulary.json is not valid JSON"),
        ('{"a": NaN}', "vocabulary.json is not valid JSON: NaN is not JSON"),
        ('{"a": 1, "a": 1}', "vocabulary.json is not valid JSON: duplicate key 'a'"),
        ("[" * 100_000, "vocabulary.json is not valid JSON"),
    ],
)
def test_a_broken_vocabulary_is_refused(folder, text, message):
    (folder / "vocabulary.json").unlink()
    if text is not None:
        (folder / "vocabulary.json").write_text(text)
    with pytest.raises(ArtifactError, match=message):
        read_translator(folder)
    assert failed(folder) == ["vocabulary.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "tagger"}, "must hold a translator, its petkit.json says kind 'tagger'"),
        ({"kind": 3}, "must hold a translator, its petkit.json says kind '3'"),
        ({"schema_version": 2}, "petkit.json is broken: schema_version: Input should be 1"),
        ({"more": 1}, "petkit.json is broken: more: Extra inputs are not permitted"),
        ({"translator": []}, "petkit.json is broken: translator: Input should be a valid dictionary"),
        ({"tensors_sha256": "abc"}, "petkit.json is broken: tensors_sha256: String should match"),
        ({"vocabulary_sha256": "B" * 64}, "petkit.json is broken: vocabulary_sha256: String should match"),
        ({"tensors_sha256": "b" * 64}, "translator.safetensors has sha256 .* altered or exchanged"),
        ({"tensors_sha256": None}, "translator.safetensors has sha256 .* petkit.json says None"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder, changes, message):
    rewrite(folder, **changes)
    with pytest.raises(ArtifactError, match=message):
        read_translator(folder)


def test_what_is_not_there_is_no_translator(tmp_path):
    assert not is_translator(tmp_path)
    with pytest.raises(InputError, match=r"is no translator: it has no petkit.json"):
        read_translator(tmp_path)
    with pytest.raises(InputError, match=r"expected an artifact folder, .*none is missing"):
        read_translator(tmp_path / "none")


@pytest.mark.parametrize("name", [WEIGHTS, "vocabulary.json", "petkit.json"])
def test_a_link_that_leads_out_is_refused(folder, tmp_path, name):
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(SafetyError):
        read_translator(folder)
    assert "no symlink leads out" in failed(folder)


def test_a_base_has_nothing_to_do_with_it(folder):
    (check,) = (check for check in verify(folder, "c" * 64) if not check.ok)
    assert check.detail == "a translator has no base: all of its weights are its own"
