"""`petkit env` holds what a bug report needs, and no secret."""

import json

import pytest
import torch

from petkit.cli import facts


def test_json_holds_versions_hardware_and_settings(petkit, monkeypatch):
    monkeypatch.setenv("PETKIT_CACHE", "/somewhere")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code, out, err = petkit("env", "--json")
    payload = json.loads(out)
    assert (code, err) == (0, "")
    assert payload["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert payload["torch"]["threads"] == torch.get_num_threads()
    assert payload["hardware"]["memory_bytes"] > 2**28
    assert payload["variables"]["PETKIT_CACHE"] == "/somewhere"
    assert "secret" not in out


def test_text_names_every_section(petkit):
    out = petkit("env").out
    for section in ("versions:", "platform:", "hardware:", "torch:", "kernels:", "tools:", "variables:"):
        assert f"{section}\n" in out
    assert "None" not in out


def test_free_space_of_a_folder_that_is_not_there(tmp_path):
    assert facts.free_bytes(tmp_path / "a" / "b") == facts.free_bytes(tmp_path)


@pytest.mark.parametrize("name", ["PETKIT_API_KEY", "OPENAI_API_KEY", "PETKIT_TOKEN"])
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_key_is_never_printed(petkit, monkeypatch, name, flags):
    monkeypatch.setenv(name, "sk-secret")
    result = petkit("env", *flags)
    assert result.code == 0
    assert name in result.out
    assert "sk-secret" not in result.out + result.err
