"""The fixed batch: the same output for the same weights, by folder or in memory."""

import json

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file

from petkit.errors import InputError
from petkit.models.fixed_batch import fixed_output
from tests.serving.text_models import save_llama

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(params=["llama", "bert", "vit", "timm"])
def folder(request, tmp_path):
    torch.manual_seed(3)
    path = tmp_path / request.param
    if request.param == "llama":
        return save_llama(path)
    if request.param == "bert":
        transformers.BertModel(transformers.BertConfig(vocab_size=50, **SIZES)).save_pretrained(path)
    if request.param == "vit":
        config = transformers.ViTConfig(image_size=16, patch_size=8, **SIZES)
        transformers.ViTForImageClassification(config).save_pretrained(path)
    if request.param == "timm":
        settings = {"depth": 1, "embed_dim": 24, "img_size": 32}
        model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **settings)
        path.mkdir()
        save_file(model.state_dict(), path / "model.safetensors")
        content = {
            "architecture": "vit_tiny_patch16_224",
            "num_classes": 5,
            "model_args": {**settings, "num_classes": 5},
        }
        (path / "config.json").write_text(json.dumps(content))
    return path


def test_the_same_weights_say_the_same(folder):
    state = load_file(f"{folder}/model.safetensors")
    written = fixed_output(folder)
    assert written.isfinite().all()
    torch.testing.assert_close(fixed_output(folder, state), written, rtol=0, atol=0)
    other = {name: one * 1.5 if one.is_floating_point() else one for name, one in state.items()}
    assert not torch.equal(fixed_output(folder, other), written)


def test_weights_that_do_not_fit(folder):
    state = load_file(f"{folder}/model.safetensors")
    state.pop(sorted(state)[0])
    save_file(state, f"{folder}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="does not fit: it lacks"):
        fixed_output(folder)


def test_a_folder_that_says_nothing(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json"):
        fixed_output(tmp_path)
