"""Adapters or whole models, by what the folders hold."""

import pytest

from petkit.errors import ConfigError
from petkit.merging.config import read_merge_config
from petkit.merging.recognition import lists_adapters
from tests.merging.peft_adapters import write_yaml


@pytest.fixture
def folders(tmp_path):
    files = {
        "petkit": ("petkit.json", '{"kind": "adapter"}'),
        "broken": ("petkit.json", "{"),
        "peft": ("adapter_config.json", "{}"),
        "merged": ("petkit.json", '{"kind": "merged"}'),
        "model": ("model.safetensors", ""),
    }
    for name, (file, text) in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    (tmp_path / "broken/adapter_packed.safetensors").touch()
    # transformers reads a model with an adapter beside it as a model.
    (tmp_path / "model/adapter_config.json").write_text("{}")
    return tmp_path


def asked(folders, *names):
    return read_merge_config(write_yaml(folders / "c.yml", "linear", [folders / name for name in names]))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["petkit", "peft", "broken"], True),
        (["model"], False),
        (["merged", "model"], False),
        (["model+peft"], False),
        (["gone"], False),
    ],
)
def test_by_content(folders, names, found):
    assert lists_adapters(asked(folders, *names)) is found


def test_both_kinds_are_named(folders):
    with pytest.raises(ConfigError) as error:
        lists_adapters(asked(folders, "model", "peft"))
    assert f"{folders}/peft is an adapter, {folders}/model is none" in str(error.value)
