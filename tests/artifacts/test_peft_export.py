"""petkit's own LoRA in PEFT: PEFT computes what petkit computes."""

import json

import numpy as np
import peft
import pytest
import safetensors.torch
import timm
import torch
import transformers

from petkit.artifacts import Base, read_artifact, write_artifact
from petkit.artifacts.exporting import export_peft
from petkit.artifacts.peft_lora import CONFIG_FILE
from petkit.errors import InputError
from petkit.models.config import AdapterConfig
from petkit.models.encoder import EncoderClassifier
from petkit.models.inserts import insert, load_packed, pack
from tests.artifacts.support import adapter_matrices, head, manifest, write_small

# PEFT 0.21 asks transformers for an attribute under the name it is about to lose.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def timm_vit():
    torch.manual_seed(0)
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 32, "num_classes": 3}
    return timm.create_model("vit_tiny_patch16_224", **sizes).eval()


def backbone():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=16)
    return transformers.ViTModel(config, add_pooling_layer=False).eval()


def adapted(model, folder, base, **settings):
    """Write a model's random lora adapters; return the artifact and the model that reads it."""
    config = AdapterConfig(**{"method": "lora", "bottleneck": 3, "scale": 0.7, "dropout": 0, **settings})
    insert(model, config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name or name.startswith("head."):
                parameter.copy_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
                )
    packed, dense = pack(model)
    about = manifest(adapter=config.model_dump(mode="json"), base=Base(id=base), task=None)
    artifact = read_artifact(write_artifact(folder, manifest=about, config={}, packed=packed, dense=dense))
    load_packed(model, artifact.packed, artifact.dense, as_dense=True)
    return artifact, model.eval()


@torch.no_grad()
def check_timm(tmp_path, artifact, model, tolerance):
    exported = export_peft(artifact, tmp_path / "peft")
    assert all(check.ok for check in exported.checks)
    found = peft.PeftModel.from_pretrained(timm_vit(), tmp_path / "peft").eval()(IMAGES)
    expected = model(IMAGES)
    assert (expected - timm_vit()(IMAGES)).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    return exported


@pytest.mark.parametrize("targets", [["q", "v"], ["k"], ["q", "k", "v"], ["blocks.1.attn.qkv", "fc1", "o"]])
@pytest.mark.parametrize("bits", [32, 1])
def test_a_timm_vit_with_parts_of_its_fused_layer(tmp_path, targets, bits):
    artifact, model = adapted(timm_vit(), tmp_path / "a", "timm/x", targets=targets, bits=bits)
    exported = check_timm(tmp_path, artifact, model, 2e-5)
    assert any("dequantised" in note for note in exported.notes) == (bits == 1)
    assert any("blocks" in note for note in exported.notes) == (len(targets[0]) == 1)
    config = json.loads((tmp_path / "peft" / CONFIG_FILE).read_text())
    assert config["r"] == (3 if "fc1" in targets else 3 * len(targets))
    assert config["modules_to_save"] == ["head"]


def test_a_binary_head_gets_a_bias_of_zeros(tmp_path):
    artifact, model = adapted(timm_vit(), tmp_path / "a", "timm/x", bits=2, head="binary")
    exported = check_timm(tmp_path, artifact, model, 2e-5)
    assert "the binary head is written as float32 with a bias of zeros" in exported.notes


def test_sites_with_other_factors_get_patterns(tmp_path):
    artifact, model = adapted(timm_vit(), tmp_path / "a", "timm/x", targets=["fc1"], bits=32)
    scaling = {"blocks.0.mlp.fc1.lora": 0.3, "blocks.1.mlp.fc1.lora": 2.0}
    about = artifact.manifest.model_copy(update={"scaling": scaling})
    folder = write_artifact(tmp_path / "b", manifest=about, config={}, packed={}, dense=artifact.dense)
    load_packed(model, {}, artifact.dense, scaling)
    check_timm(tmp_path, read_artifact(folder), model, 2e-5)
    config = json.loads((tmp_path / "peft" / CONFIG_FILE).read_text())
    assert config["alpha_pattern"] == {"blocks.0.mlp.fc1": pytest.approx(0.9)}


@torch.no_grad()
def test_an_encoder_goes_to_the_bare_backbone_and_its_head_apart(tmp_path):
    model = EncoderClassifier(backbone(), torch.nn.Linear(16, 3), "cls")
    artifact, model = adapted(model, tmp_path / "a", "hf/org/name", bits=4)
    exported = export_peft(artifact, tmp_path / "peft")
    assert any("head.safetensors" in note for note in exported.notes)
    hidden = (
        peft.PeftModel.from_pretrained(backbone(), tmp_path / "peft").eval()(IMAGES).last_hidden_state[:, 0]
    )
    saved = safetensors.torch.load_file(tmp_path / "peft" / "head.safetensors")
    logits = hidden @ saved["head.weight"].T + saved["head.bias"]
    torch.testing.assert_close(logits, model(IMAGES), rtol=0, atol=2e-5)
    config = json.loads((tmp_path / "peft" / CONFIG_FILE).read_text())
    assert config["base_model_name_or_path"] == "org/name"
    assert config["modules_to_save"] is None


@pytest.mark.parametrize("method", ["adaptformer", "houlsby", "linear_probe"])
def test_other_methods_are_refused_with_the_reason(tmp_path, method):
    packed = {} if method == "linear_probe" else adapter_matrices({"blocks.0.adaptformer": (10, 2, 10)}, 1)
    artifact = read_artifact(write_small(tmp_path / "a", packed=packed, manifest=manifest(method)))
    with pytest.raises(
        InputError, match=f"PEFT cannot hold this {method} adapter: its LoRA is beside one linear"
    ):
        export_peft(artifact, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_parts_that_differ_cannot_be_one_lora(tmp_path):
    sites = {"a.qkv.lora_q": (8, 2, 8), "a.qkv.lora_v": (8, 2, 4)}
    folder = write_small(
        tmp_path / "a", packed=adapter_matrices(sites, 1), dense={}, manifest=manifest("lora")
    )
    with pytest.raises(InputError, match=r"adapters of a\.qkv as one: widths \{8, 4\}"):
        export_peft(read_artifact(folder), tmp_path / "peft")
    sites = {"a.qkv.lora_q": (8, 2, 8), "a.qkv.lora_v": (8, 2, 8)}
    about = manifest("lora", scaling={"a.qkv.lora_q": 2.0})
    folder = write_small(tmp_path / "b", packed=adapter_matrices(sites, 1), dense={}, manifest=about)
    with pytest.raises(InputError, match="scalings"):
        export_peft(read_artifact(folder), tmp_path / "peft")


def test_adapters_at_other_places_are_refused(tmp_path):
    folder = write_small(tmp_path / "a", manifest=manifest("lora"))
    with pytest.raises(InputError, match=r"cannot hold the adapter blocks\.0\.adaptformer: it is not LoRA"):
        export_peft(read_artifact(folder), tmp_path / "peft")


def test_output_folders_are_respected(tmp_path):
    sites = {"a.lora": (8, 2, 8)}
    artifact = read_artifact(
        write_small(
            tmp_path / "a", packed=adapter_matrices(sites, 1), dense=head(8), manifest=manifest("lora")
        )
    )
    export_peft(artifact, tmp_path / "peft")
    with pytest.raises(InputError, match="is not empty"):
        export_peft(artifact, tmp_path / "peft")
    export_peft(artifact, tmp_path / "peft", overwrite=True)
    with pytest.raises(InputError, match="--overwrite replaces a PEFT folder"):
        export_peft(artifact, tmp_path / "a", overwrite=True)
    with pytest.raises(InputError, match="must be a folder, it is a file"):
        export_peft(artifact, tmp_path / "a" / "petkit.json")


def test_two_exports_give_the_same_bytes(tmp_path):
    folder = write_small(
        tmp_path / "a", packed=adapter_matrices({"a.lora": (8, 2, 8)}, 2), dense=head(8), bits=2,
        manifest=manifest("lora", 2),
    )  # fmt: skip
    for name in ("x", "y"):
        export_peft(read_artifact(folder), tmp_path / name)
    for file in (tmp_path / "x").iterdir():
        assert file.read_bytes() == (tmp_path / "y" / file.name).read_bytes()
    weights = safetensors.torch.load_file(tmp_path / "x" / "adapter_model.safetensors")
    expected = read_artifact(folder).packed["a.lora.down"].dequantize()
    assert np.array_equal(weights["base_model.model.a.lora_A.weight"].numpy(), expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@torch.no_grad()
def test_a_text_classifier_loads_in_peft_as_the_page_on_serving_says(tmp_path):
    from petkit.models.config import AdapterConfig
    from petkit.models.loading import load_adapted
    from tests.serving.text_models import save_bert, write_text

    base = save_bert(tmp_path / "base")
    write_text(tmp_path / "a", base, AdapterConfig(method="lora", bottleneck=2, bits=4))
    artifact = read_artifact(tmp_path / "a")
    export_peft(artifact, tmp_path / "peft")
    model = peft.AutoPeftModelForFeatureExtraction.from_pretrained(tmp_path / "peft").eval()
    head = safetensors.torch.load_file(tmp_path / "peft" / "head.safetensors")
    inputs = {"input_ids": torch.tensor([[4, 5, 6]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    logits = model(**inputs).last_hidden_state[:, 0] @ head["head.weight"].T + head["head.bias"]
    expected = load_adapted(tmp_path / "a").model(**inputs)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)
