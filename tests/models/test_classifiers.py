"""Published classifiers: their classes, names and last layers; teachers are tested with their method."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from petkit.errors import ConfigError, InputError
from petkit.models.classifiers import load_classifier, load_features
from petkit.models.config import ModelConfig


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=7).state_dict(), tmp_path / "w.safetensors")
    return str(tmp_path / "w.safetensors")


def test_a_weight_file_says_how_many_classes_there_are(weights):
    found = load_classifier(ModelConfig(name="timm/test_vit", weights=weights))
    assert (found.classes, found.names) == (7, None)
    assert found.model(torch.zeros(1, 3, 160, 160)).shape == (1, 7)
    assert not found.model.training
    assert not any(parameter.requires_grad for parameter in found.model.parameters())


def test_a_record_says_it_where_nothing_is_loaded():
    assert load_classifier(ModelConfig(name="timm/test_vit", pretrained=False)).classes == 1000


def test_features_have_no_classes(weights):
    found = load_features(ModelConfig(name="timm/test_vit", weights=weights, image_size=32))
    assert (found.classes, found.preprocess["image_size"]) == (0, 32)
    assert found.model(torch.zeros(2, 3, 32, 32)).shape == (2, 64)
    assert load_features(ModelConfig(name="timm/test_resnet", pretrained=False)).classes == 0


def test_the_hash_is_of_all_weights(weights):
    config = ModelConfig(name="timm/test_vit", weights=weights)
    assert load_classifier(config).sha256 != load_features(config).sha256
    again = load_classifier(config.model_copy(update={"image_size": 64}))
    assert again.sha256 == load_classifier(config).sha256


@pytest.mark.parametrize("names", [None, ("cat", "dog", "fox")])
def test_names_of_transformers(tmp_path, names):
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    named = {"id2label": dict(enumerate(names))} if names else {"num_labels": 3}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, **sizes, **named)).save_pretrained(
        tmp_path
    )
    found = load_classifier(ModelConfig(name=str(tmp_path)))
    assert (found.classes, found.names) == (3, names)


def test_files_that_do_not_fit(tmp_path, weights):
    with pytest.raises(InputError, match=r"does not fit ResNet|must hold the classifier of ResNet"):
        load_classifier(ModelConfig(name="timm/test_resnet", weights=weights))
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="is damaged"):
        load_classifier(ModelConfig(name="timm/test_vit", weights=str(tmp_path / "bad.safetensors")))
    with pytest.raises(ConfigError, match="did you mean"):
        load_classifier(ModelConfig(name="timm/test_vitt"))
