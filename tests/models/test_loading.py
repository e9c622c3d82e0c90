"""From a name to a base model, and from an artifact to an adapted one."""

import copy
import logging

import pytest
import torch
import transformers
from torch import nn

from petkit.artifacts.manifest import Base, Manifest, Preprocess, Task
from petkit.artifacts.writer import write_artifact
from petkit.errors import ArtifactError, ConfigError
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.models.inserts import insert, inserts, pack
from petkit.models.loaded import compute_logits
from petkit.models.loading import load_adapted, load_model
from petkit.models.projections import PackedLinear

MODEL = ModelConfig(name="timm/test_vit", pretrained=False, image_size=32)
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def loaded():
    return load_model(MODEL, "image_classification", 3, torch.Generator().manual_seed(0))


@pytest.fixture
def trained(loaded, moved):
    """Insert adapters into a fresh copy of the base, far enough from the start to matter."""

    def make(**options):
        model = copy.deepcopy(loaded.model).eval()
        config = AdapterConfig(**{"bottleneck": 4, "dropout": 0.0, **options})
        insert(model, config, torch.Generator().manual_seed(1))
        moved(model)
        return model, config

    return make


def save(folder, model, config, sha256, section=None, **changes):
    packed, dense = pack(model)
    preprocess = Preprocess(image_size=32, mean=(0.0,) * 3, std=(1.0,) * 3)
    manifest = Manifest(
        base=Base(id=MODEL.name, sha256=sha256),
        model=MODEL.model_dump(mode="json") | (section or {}),
        adapter=config.model_dump(mode="json"),
        task=Task(type="image_classification", classes=CLASSES, preprocess=preprocess),
        **changes,
    )
    return write_artifact(folder, manifest=manifest, config={}, packed=packed, dense=dense)


def test_image_size_does_not_change_the_hash(loaded):
    native = load_model(MODEL.model_copy(update={"image_size": None}), "image_classification", 3)
    assert native.base_sha256 == loaded.base_sha256
    assert (native.preprocess["image_size"], loaded.preprocess["image_size"]) == (160, 32)
    assert loaded.model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize("mode", ["packed", "dense"])
@pytest.mark.parametrize(
    "options", [{"bits": 1}, {"bits": 8, "method": "lora"}, {"bits": 32}, {"head": "binary"}]
)
def test_artifact_gives_the_trained_models_logits(tmp_path, loaded, trained, options, mode):
    model, config = trained(**options)
    save(tmp_path / "artifact", model, config, loaded.base_sha256)
    adapted = load_adapted(tmp_path / "artifact", mode=mode)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(adapted.model(images), model(images), rtol=1e-5, atol=1e-5)
    assert adapted.classes == CLASSES
    assert adapted.preprocess["std"] == (1.0,) * 3
    assert not adapted.model.training
    plain = mode == "dense" or config.bits == 32
    assert {type(adapter.up) for adapter in inserts(adapted.model).values()} == {
        nn.Linear if plain else PackedLinear
    }


@pytest.mark.parametrize("task", ["text_classification", "causal_lm"])
@pytest.mark.parametrize("method", ["adaptformer", "lora"])
def test_artifacts_of_language_models(tmp_path, folder, moved, tokens, task, method):
    architecture = transformers.LlamaConfig(vocab_size=60, num_key_value_heads=2, **SMALL)
    auto = transformers.AutoModelForCausalLM if task == "causal_lm" else transformers.AutoModel
    section = ModelConfig(name=str(folder(architecture, auto)))
    base = load_model(section, task, 3, torch.Generator().manual_seed(0))
    config = AdapterConfig(method=method, bits=2, bottleneck=4, dropout=0.0)
    insert(base.model.eval(), config)
    moved(base.model)
    packed, dense = pack(base.model)
    manifest = Manifest(
        base=Base(id=section.name, sha256=base.base_sha256),
        model=section.model_dump(mode="json"),
        adapter=config.model_dump(mode="json"),
        task=Task(type=task, classes=CLASSES if dense else ()),
    )
    write_artifact(tmp_path / "artifact", manifest=manifest, config={}, packed=packed, dense=dense)
    adapted = load_adapted(tmp_path / "artifact")
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    expected = compute_logits(base.model, batch)
    torch.testing.assert_close(compute_logits(adapted.model, batch), expected, rtol=1e-5, atol=1e-5)
    assert adapted.tokenizer is not None


def test_other_base_is_refused_with_both_hashes(tmp_path, trained, loaded):
    save(tmp_path / "artifact", *trained(), "0" * 64)
    with pytest.raises(ArtifactError, match=f"sha256 {'0' * 64}.* has {loaded.base_sha256}"):
        load_adapted(tmp_path / "artifact")


def test_unknown_base_is_used_and_logged(tmp_path, trained, caplog):
    save(tmp_path / "artifact", *trained(), None)
    with caplog.at_level(logging.WARNING):
        load_adapted(tmp_path / "artifact")
    assert caplog.messages[-1].startswith("artifact does not record its base's hash")


def test_base_can_be_elsewhere(tmp_path, trained, loaded):
    folder = save(tmp_path / "artifact", *trained(), loaded.base_sha256, section={"name": "/moved/away"})
    with pytest.raises(ConfigError, match="got '/moved/away'"):
        load_adapted(folder)
    assert load_adapted(folder, base_override="timm/test_vit").base.base_id == "timm/test_vit"


def test_sites_may_differ_in_scale(tmp_path, trained, loaded):
    model, config = trained()
    scaling = {f"blocks.{index}.adaptformer": 1.0 + index for index in range(6)}
    folder = save(tmp_path / "artifact", model, config, loaded.base_sha256, scaling=scaling)
    assert {name: adapter.scale for name, adapter in inserts(load_adapted(folder).model).items()} == scaling


def test_broken_model_section_is_named(tmp_path, trained, loaded):
    folder = save(tmp_path / "artifact", *trained(), loaded.base_sha256, section={"image_size": "large"})
    with pytest.raises(ArtifactError, match=r"petkit\.json of .*: image_size: "):
        load_adapted(folder)


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        (
            "resnet18",
            "image_classification",
            "must be timm/NAME, .* got 'resnet18', which is none of these",
        ),
        ("timm/test_vit", "causal_lm", "is an image model; task causal_lm needs hf/ORG/NAME"),
        ("timm/tset_vit", "image_classification", "did you mean timm/test_vit"),
        ("timm/local-dir:/tmp", "image_classification", "one of timm's own names"),
    ],
)
def test_names_that_cannot_be_loaded(name, task, message):
    with pytest.raises(ConfigError, match=message):
        load_model(ModelConfig(name=name, pretrained=False), task, 2)


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"a folder without config\.json or a \.gguf file"):
        load_model(ModelConfig(name=str(tmp_path)), "text_classification", 2)
