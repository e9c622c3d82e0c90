import numpy as np
import pytest

from petkit.artifacts import read_artifact
from petkit.artifacts.reader import TENSORS
from petkit.artifacts.summary import describe_foreign, summarize, summary_json
from petkit.errors import ArtifactError, InputError, SafetyError
from tests.artifacts.support import head, write_small


def test_sizes_add_up(tmp_path):
    artifact = read_artifact(
        write_small(tmp_path / "a", bits=4, dense={**head(), "n": np.ones(3, np.float16)})
    )
    summary = summarize(artifact)
    assert summary.nbytes == 4 * (15 + 8) + 4 * 22 + 6
    assert summary.float32_nbytes == 4 * (4 * 30 + 22 + 3)
    assert summary.file_nbytes == (tmp_path / "a" / TENSORS).stat().st_size
    half = next(module for module in summary.modules if module.name == "n")
    assert (half.bits, half.nbytes, half.shift, half.scale) == (16, 6, 1.0, 0.0)


def test_json_has_the_manifest_and_its_version_under_another_name(tmp_path):
    artifact = read_artifact(write_small(tmp_path / "a"))
    content = summary_json(artifact, summarize(artifact))
    assert content["artifact_schema_version"] == 1
    assert "schema_version" not in content
    assert content["base"]["id"] == "timm/tiny"
    assert content["modules"][0]["bytes"] == 12


def test_an_empty_tensor_has_no_mean_to_warn_about(tmp_path):
    artifact = read_artifact(write_small(tmp_path / "a", dense={"e": np.zeros((0, 3), np.float32)}))
    assert next(one for one in summarize(artifact).modules if one.name == "e").nbytes == 0


def test_an_artifact_is_not_foreign(tmp_path):
    assert describe_foreign(write_small(tmp_path / "a")) is None


def test_what_nothing_can_be_made_of(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        describe_foreign(tmp_path / "none")
    (tmp_path / "x.bin").write_bytes(b"raw")
    with pytest.raises(SafetyError, match="is a pickle"):
        describe_foreign(tmp_path / "x.bin")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ArtifactError, match="a file of another kind"):
        describe_foreign(tmp_path / "x.gguf")
