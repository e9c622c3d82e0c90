import json

import pytest

from petkit.artifacts import Base, Check, write_checks
from tests.artifacts.support import edit_tensors, manifest, write_small

HASH = "ab" * 32


@pytest.fixture
def sound(tmp_path):
    return write_small(tmp_path / "a", manifest=manifest(base=Base(id="timm/tiny", sha256=HASH)))


def test_a_sound_artifact(petkit, sound):
    result = petkit("verify", sound)
    assert result.code == 0
    assert "FAILED" not in result.out
    content = json.loads(petkit("verify", sound, "--json").out)
    assert content["ok"] is True
    assert len(content["checks"]) == 9


def test_damage_gives_2(petkit, sound):
    edit_tensors(sound, lambda raw: raw[:-2] + bytes([raw[-2] ^ 1]) + raw[-1:], restamp=False)
    result = petkit("verify", sound, "--json")
    assert result.code == 2
    assert [check["name"] for check in json.loads(result.out)["checks"] if not check["ok"]] == [
        "tensors sha256"
    ]


def test_a_failed_recorded_check_gives_3(petkit, sound):
    write_checks(sound, [Check("reload", False, "logits differ")])
    result = petkit("verify", sound)
    assert result.code == 3
    assert "recorded: reload" in result.out


def test_a_pickle_beside_gives_5(petkit, sound):
    (sound / "optimizer.pt").write_bytes(b"")
    assert petkit("verify", sound).code == 5


def test_the_base_is_compared_by_hash(petkit, sound):
    assert petkit("verify", sound, "--base", HASH.upper()).code == 0
    result = petkit("verify", sound, "--base", "cd" * 32)
    assert result.code == 3
    assert f"the adapter was trained on {HASH} (timm/tiny)" in result.out


def test_the_base_is_compared_by_loading_it(petkit, tmp_path):
    from petkit.models.config import ModelConfig
    from petkit.models.loading import load_model

    settings = {"name": "timm/vit_tiny_patch16_224", "pretrained": False, "image_size": 32}
    base = load_model(ModelConfig(**settings), "image_classification")
    about = manifest(base=Base(id=settings["name"], sha256=base.base_sha256), model=settings)
    folder = write_small(tmp_path / "a", manifest=about)
    assert petkit("verify", folder, "--base", settings["name"]).code == 0
    assert petkit("verify", folder, "--base", "timm/vit_tiny_patch16_384").code == 3
    assert petkit("verify", folder, "--base", "nowhere").code == 2


def test_a_base_of_another_kind_names_the_flag(petkit, sound, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    for base in (other, "nowhere", "timm/no_such_vit"):
        result = petkit("verify", sound, "--base", base)
        assert (result.code, result.out) == (2, "")
        assert (
            f"error: --base {base} does not load as the artifact's kind (image_classification)" in result.err
        )
        assert "model.name" not in result.err


def test_a_missing_folder(petkit, tmp_path):
    result = petkit("verify", tmp_path / "none")
    assert (result.code, result.out) == (2, "")
