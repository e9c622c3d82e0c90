"""Every command that reads an artifact refuses a broken `petkit.json`: one line, exit code 2."""

import json
import re

import pytest
from PIL import Image

from petkit.artifacts.reader import MANIFEST
from petkit.models.config import AdapterConfig
from tests.quantization.artifacts import write

DAMAGE = {
    "scale NaN": ('"scale": 1.0', '"scale": NaN', "NaN is not JSON"),
    "scale below 0": ('"scale": 1.0', '"scale": -5', "scale must be a number greater than 0, got '-5'"),
    "method": ('"method": "lora"', '"method": "banana"', "banana|method"),
    "adapter key": ('"bits": 32', '"bits": 32, "colour": 1', "colour"),
    "model key": ('"pretrained": false', '"pretrained": false, "depth": 1', "depth"),
    "duplicate key": ('"bits": 32', '"bits": 32, "bits": 32', "duplicate key 'bits'"),
    "std 0": (r'"std": \[[^]]*\]', '"std": [0, 0, 0]', r"preprocess\.std"),
    "bottleneck": ('"bottleneck": 4', '"bottleneck": 8', "the widest site has 4 units"),
}
COMMANDS = {
    "verify": (),
    "inspect": (),
    "diff": ("ARTIFACT",),
    "eval": ("--data", "adapter-smoke"),
    "predict": ("PICTURE",),
    "quantize": ("-o", "OUT"),
    "export": ("--format", "peft", "-o", "OUT"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    config = AdapterConfig(method="lora", bits=32, bottleneck=4, targets=("fc1",))
    return write(tmp_path_factory.mktemp("sound") / "a", config, classes=10)[0]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "grey.png"
    Image.new("RGB", (32, 32), (90, 90, 90)).save(path)
    return path


@pytest.fixture
def broken(sound, tmp_path):
    def make(old, new):
        folder = tmp_path / "broken"
        folder.mkdir()
        for file in sound.iterdir():
            content = file.read_bytes()
            if file.name == MANIFEST:
                text, count = re.subn(old, new, content.decode(), count=1)
                assert count == 1, old
                content = text.encode()
            (folder / file.name).write_bytes(content)
        return folder

    return make


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_manifest_is_refused(petkit, broken, picture, tmp_path, damage, command):
    old, new, message = DAMAGE[damage]
    folder = broken(old, new)
    places = {"ARTIFACT": folder, "PICTURE": picture, "OUT": tmp_path / "out"}
    result = petkit(command, folder, *(places.get(word, word) for word in COMMANDS[command]))
    assert result.code == 2
    assert re.search(message, result.out + result.err)
    if command == "verify":
        assert "FAILED" in result.out
    else:
        assert result.out == ""
        assert result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


# `eval` needs the classes of the data: its own tests have an artifact that was trained on them.
@pytest.mark.parametrize("command", [one for one in COMMANDS if one != "eval"])
def test_the_sound_one_passes(petkit, sound, picture, tmp_path, command):
    places = {"ARTIFACT": sound, "PICTURE": picture, "OUT": tmp_path / "out"}
    result = petkit(command, sound, *(places.get(word, word) for word in COMMANDS[command]))
    assert result.code == 0, result.err


def test_verify_names_the_failed_check(petkit, broken):
    folder = broken('"method": "lora"', '"method": "banana"')
    checks = json.loads(petkit("verify", folder, "--json").out)["checks"]
    assert [check["name"] for check in checks if not check["ok"]] == [MANIFEST]
    assert petkit("verify", folder, "--base", "timm/test_vit").code == 2
