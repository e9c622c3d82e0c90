"""transformers bases from local folders: heads, pooling, tokenizers, hashes, refusals."""

import json
import logging

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from petkit.errors import ConfigError, InputError, MissingError, OfflineError, SafetyError
from petkit.models.config import ModelConfig
from petkit.models.loading import load_model

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}


def bert(**options):
    return transformers.BertConfig(vocab_size=60, **SMALL, **options)


def llama():
    return transformers.LlamaConfig(vocab_size=60, num_key_value_heads=2, **SMALL)


def load(path, task="text_classification", classes=3, **options):
    return load_model(ModelConfig(name=str(path), **options), task, classes, torch.Generator().manual_seed(0))


def test_encoder_gets_a_pooled_head(folder):
    loaded = load(folder(bert()))
    batch = loaded.tokenizer(["good bad", "bad"], return_tensors="pt", padding=True)
    logits = loaded.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert logits.shape == (2, 3)
    assert (loaded.kind, loaded.model.pooling) == ("encoder", "cls")
    assert not any(name.startswith("backbone.pooler") for name in loaded.model.state_dict())


def test_hash_is_of_the_saved_weights_without_the_pooler(folder):
    path = folder(bert())
    first = load(path).base_sha256
    state = load_file(path / "model.safetensors")
    # A masked-language checkpoint has no pooler, which transformers would then draw at random.
    kept = {name: value for name, value in state.items() if not name.startswith("pooler")}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    assert load(path).base_sha256 == first
    kept["encoder.layer.0.output.dense.weight"] += 1
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    assert load(path).base_sha256 != first


def test_pooling_follows_the_architecture_a_record_or_the_key(folder):
    path = folder(llama())
    assert load(path).model.pooling == "last"
    assert load(path, pooling="mean").model.pooling == "mean"
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    assert load(path).model.pooling == "mean"


def test_causal_models_keep_their_head(folder):
    loaded = load(folder(llama(), transformers.AutoModelForCausalLM), "causal_lm")
    assert (loaded.kind, loaded.preprocess) == ("causal_lm", None)
    assert loaded.model(input_ids=torch.ones(1, 3, dtype=torch.int64)).logits.shape == (1, 3, 60)
    assert next(loaded.model.parameters()).dtype == torch.float32


def test_images_at_another_size(folder):
    path = folder(transformers.ViTConfig(image_size=16, patch_size=8, **SMALL))
    (path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "resample": 2}))
    native, larger = (load(path, "image_classification", image_size=size) for size in (None, 24))
    assert native.base_sha256 == larger.base_sha256
    assert larger.preprocess == {
        "image_size": 24,
        "mean": [0.1] * 3,
        "std": [0.5] * 3,
        "interpolation": "bilinear",
    }
    assert native.preprocess["image_size"] == 16
    assert larger.model(torch.zeros(2, 3, 24, 24)).shape == (2, 3)
    assert native.tokenizer is None


def test_pixels_are_not_divided_by_zero(folder):
    path = folder(transformers.ViTConfig(image_size=16, patch_size=8, **SMALL))
    (path / "preprocessor_config.json").write_text(json.dumps({"image_std": [0.5, 0, 0.5]}))
    with pytest.raises(InputError, match="must have image_std above 0"):
        load(path, "image_classification")


def test_random_weights_are_the_same_every_time(folder):
    path = folder(bert())
    hashes = {load(path, pretrained=False).base_sha256 for _ in range(2)}
    assert len(hashes) == 1
    assert load(path).base_sha256 not in hashes


def test_local_weight_file(folder, tmp_path):
    path = folder(bert())
    state = load_file(path / "model.safetensors")
    kept = {name: value for name, value in state.items() if not name.startswith("pooler")}
    save_file(kept, tmp_path / "other.safetensors")
    expected = load(path).base_sha256
    assert load(path, weights=str(tmp_path / "other.safetensors")).base_sha256 == expected
    with pytest.raises(SafetyError, match="may hold a pickle"):
        load(path, weights=str(tmp_path / "other.bin"))


def test_incomplete_weights_are_refused(folder):
    path = folder(bert())
    state = load_file(path / "model.safetensors")
    del state["encoder.layer.0.output.dense.bias"]
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"the weights lack encoder\.layer\.0\.output\.dense\.bias"):
        load(path)


def test_pickled_weights_are_refused(folder):
    path = folder(bert())
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(SafetyError, match="is a pickle"):
        load(path)


def test_code_from_the_repository_is_refused(folder):
    path = folder(bert())
    config = json.loads((path / "config.json").read_text())
    config.update(model_type="strange", auto_map={"AutoConfig": "code.Strange", "AutoModel": "code.Strange"})
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SafetyError, match="needs code from its repository"):
        load(path)


@pytest.mark.parametrize(
    ("make", "task", "error", "message"),
    [
        (bert, "image_classification", ConfigError, r"model\.image_size is needed"),
        (
            lambda: transformers.ViTConfig(image_size=16, patch_size=8, **SMALL),
            "text_classification",
            InputError,
            "ViTModel, which does not take text",
        ),
    ],
)
def test_models_of_another_kind_are_refused(folder, make, task, error, message):
    with pytest.raises(error, match=message):
        load(folder(make()), task)


def test_drop_path_without_effect_is_refused(folder):
    with pytest.raises(ConfigError, match=r"model\.drop_path_rate has no effect"):
        load(folder(bert()), drop_path_rate=0.1)


def test_uncached_hub_models_offline():
    with pytest.raises(OfflineError, match=r"hf/nobody/nothing: config\.json or the weights are not in"):
        load("hf/nobody/nothing")


def test_loading_prints_nothing_and_leaves_the_log_level(folder, capfd):
    before = transformers.utils.logging.get_verbosity()
    path = folder(bert())
    capfd.readouterr()
    load(path)
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.get_verbosity() == before
    assert logging.getLogger("transformers").level == before


def test_damaged_gguf_files_are_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="cannot be loaded"):
        load(tmp_path, "causal_lm")


def test_gguf_files_need_a_package(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ImportError("install gguf")

    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    with pytest.raises(
        MissingError, match=r'needs another package \(install gguf\): pip install "petkit\[gguf\]"'
    ):
        load(tmp_path, "causal_lm")
