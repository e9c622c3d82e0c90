"""PEFT itself is the judge: an adapter that went through an artifact gives the same logits in PEFT."""

import json

import numpy as np
import peft
import pytest
import safetensors.torch
import torch

from petkit.artifacts.exporting import export_peft
from petkit.artifacts.importing import import_peft, write_imported
from petkit.artifacts.peft_lora import CONFIG_FILE, TENSOR_FILE
from petkit.errors import ArtifactError, InputError, SafetyError
from petkit.models.inserts import merge_into_base
from petkit.models.loading import load_adapted
from tests.artifacts.peft_models import (
    CASES,
    IMAGES,
    OWN,
    SEQ_CLS,
    TOKENS,
    VIT,
    bert,
    distilbert,
    fresh,
    gpt2,
    llama,
    loaded,
    logits,
    save_adapter,
    save_headless,
    vit,
)

pytestmark = [
    # PEFT 0.21 asks transformers for an attribute under the name it is about to lose.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT looks up the base's name on the hub to see whether its vocabulary changed; ours have no name.
    pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning"),
]


@pytest.mark.parametrize("case", CASES)
def test_round_trip_gives_identical_logits(tmp_path, case):
    make, inputs, options = CASES[case]
    original = save_adapter(tmp_path / "peft", make, options)
    artifact, checks = write_imported(import_peft(tmp_path / "peft"), tmp_path / "artifact")
    assert all(check.ok for check in checks)
    exported = export_peft(artifact, tmp_path / "again")
    assert all(check.ok for check in exported.checks)
    assert not exported.notes
    expected = logits(original, inputs)
    assert not torch.equal(expected, logits(fresh(make), inputs))
    assert torch.equal(logits(loaded(make, tmp_path / "again"), inputs), expected)
    assert json.loads((tmp_path / "again" / CONFIG_FILE).read_text()) == json.loads(
        (tmp_path / "peft" / CONFIG_FILE).read_text()
    )


@pytest.mark.parametrize("case", ["rslora, both patterns", "decoder classifier", "causal", "timm"])
def test_a_configuration_written_anew_gives_identical_logits(tmp_path, case):
    make, inputs, options = CASES[case]
    original = save_adapter(tmp_path / "peft", make, options)
    imported = import_peft(tmp_path / "peft")
    # Without the original's file, ranks and alphas must be told again, layer by layer.
    settings = {**imported.manifest.source.settings, "adapter_config": None}
    source = imported.manifest.source.model_copy(update={"settings": settings})
    object.__setattr__(imported, "manifest", imported.manifest.model_copy(update={"source": source}))
    artifact, _ = write_imported(imported, tmp_path / "artifact")
    export_peft(artifact, tmp_path / "again")
    config = json.loads((tmp_path / "again" / CONFIG_FILE).read_text())
    assert config["use_rslora"] is False
    np.testing.assert_allclose(
        logits(loaded(make, tmp_path / "again"), inputs), logits(original, inputs), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tensors_come_back_as_they_were(tmp_path, dtype):
    save_adapter(tmp_path / "peft", vit, VIT)
    path = tmp_path / "peft" / TENSOR_FILE
    halves = {name: tensor.to(dtype) for name, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(halves, path, metadata={"format": "pt"})
    artifact, _ = write_imported(import_peft(tmp_path / "peft"), tmp_path / "artifact")
    assert all(raw.dtype == "F32" for raw in artifact.raw_dense.values())
    export_peft(artifact, tmp_path / "again")
    again = safetensors.torch.load_file(tmp_path / "again" / TENSOR_FILE)
    assert again.keys() == halves.keys()
    assert all(
        torch.equal(again[name], tensor) and again[name].dtype == dtype for name, tensor in halves.items()
    )


def load_in_petkit(tmp_path, make, options):
    """The same adapter in PEFT and, from its artifact, in petkit."""
    original = save_adapter(tmp_path / "peft", make, options)
    fresh(make).save_pretrained(tmp_path / "base")
    write_imported(import_peft(tmp_path / "peft"), tmp_path / "artifact")
    return original, load_adapted(tmp_path / "artifact", base_override=str(tmp_path / "base")).model


@torch.no_grad()
def test_petkit_computes_what_peft_computes_on_a_vit(tmp_path):
    original, ours = load_in_petkit(tmp_path, vit, CASES["rslora, both patterns"][2])
    torch.testing.assert_close(ours(IMAGES["pixel_values"]), logits(original, IMAGES), rtol=0, atol=1e-5)


@torch.no_grad()
def test_petkit_computes_what_peft_computes_on_transposed_weights(tmp_path):
    original, ours = load_in_petkit(tmp_path, gpt2, CASES["transposed weights"][2])
    expected = logits(original, TOKENS)
    torch.testing.assert_close(ours(**TOKENS).logits, expected, rtol=0, atol=1e-5)
    merge_into_base(ours)
    torch.testing.assert_close(ours(**TOKENS).logits, expected, rtol=0, atol=1e-5)


def test_petkit_computes_what_peft_computes_on_a_decoder(tmp_path):
    original = save_adapter(tmp_path / "peft", llama, CASES["causal"][2])
    artifact, _ = write_imported(import_peft(tmp_path / "peft"), tmp_path / "artifact")
    from petkit.models.config import AdapterConfig
    from petkit.models.inserts import insert, load_packed

    model = fresh(llama)
    insert(model, AdapterConfig(**artifact.manifest.adapter))
    load_packed(model, artifact.packed, artifact.dense, artifact.manifest.scaling)
    torch.testing.assert_close(logits(model.eval(), TOKENS), logits(original, TOKENS), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, r"DoRA \(use_dora\)"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "LoRA with bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    ],
)
# PEFT itself takes the bias vectors for matrices that were not gathered.
@pytest.mark.filterwarnings("ignore:Adapter 'default'. .* LoRA tensor.s. have invalid shape")
def test_refuses_what_peft_really_writes_for_other_features(tmp_path, options, message):
    model = peft.get_peft_model(fresh(vit), peft.LoraConfig(target_modules=["q_proj"], **options))
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        import_peft(tmp_path)


@pytest.mark.parametrize("config", [peft.IA3Config, peft.VeraConfig, peft.LoHaConfig, peft.AdaLoraConfig])
def test_refuses_other_methods_by_name(tmp_path, config):
    options = {"total_step": 10} if config is peft.AdaLoraConfig else {}
    options |= {"feedforward_modules": []} if config is peft.IA3Config else {}
    peft.get_peft_model(fresh(vit), config(target_modules=["q_proj"], **options)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"cannot keep the method {config(**options).peft_type.value}"):
        import_peft(tmp_path)


def edit(folder, change):
    path = folder / TENSOR_FILE
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


LAYER = "base_model.model.vit.layers.0.attention.q_proj"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.pop(f"{LAYER}.lora_B.weight"), InputError, "must have two matrices"),
        (
            lambda t: t.update({f"{LAYER}.lora_A.weight": torch.ones(5, 16)}),
            ArtifactError,
            "contradicting ranks",
        ),
        (lambda t: t.update({f"{LAYER}.lora_A.weight": torch.ones(4, 16, 1, 1)}), InputError, "two matrices"),
        (
            lambda t: t.update({f"{LAYER}.lora_magnitude_vector": torch.ones(4)}),
            InputError,
            "cannot keep the tensor",
        ),
        (
            lambda t: t.update({"x.lora_A.weight": torch.ones(4, 4)}),
            InputError,
            "does not begin with base_model",
        ),
        (
            lambda t: t.update({f"{LAYER}.lora_A.weight": torch.full((4, 16), torch.nan)}),
            ArtifactError,
            "NaN",
        ),
        (
            lambda t: [t.pop(name) for name in list(t) if "lora_" in name],
            ArtifactError,
            "no lora_A and lora_B",
        ),
    ],
)
def test_refuses_tensors_that_do_not_fit(tmp_path, change, error, message):
    save_adapter(tmp_path / "peft", vit, VIT)
    edit(tmp_path / "peft", change)
    with pytest.raises(error, match=message):
        write_imported(import_peft(tmp_path / "peft"), tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


def test_a_pickled_adapter_needs_permission(tmp_path):
    original = save_adapter(tmp_path / "peft", vit, VIT)
    state = safetensors.torch.load_file(tmp_path / "peft" / TENSOR_FILE)
    torch.save(state, tmp_path / "peft" / "adapter_model.bin")
    (tmp_path / "peft" / TENSOR_FILE).unlink()
    with pytest.raises(SafetyError, match="--allow-pickle"):
        import_peft(tmp_path / "peft")
    artifact, _ = write_imported(import_peft(tmp_path / "peft", allow_pickle=True), tmp_path / "artifact")
    export_peft(artifact, tmp_path / "again")
    assert torch.equal(logits(loaded(vit, tmp_path / "again"), IMAGES), logits(original, IMAGES))


def test_what_is_no_peft_folder(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        import_peft(tmp_path / "none")
    with pytest.raises(InputError, match=f"has no {TENSOR_FILE}"):
        import_peft(tmp_path)
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / TENSOR_FILE)
    with pytest.raises(InputError, match=f"has no {CONFIG_FILE}"):
        import_peft(tmp_path)


@pytest.mark.parametrize("case", OWN)
@torch.no_grad()
def test_classifiers_with_layers_of_their_own_compute_what_peft_computes(tmp_path, case):
    make, inputs, options = OWN[case]
    original = save_adapter(tmp_path / "peft", make, options)
    save_headless(make, tmp_path / "base")
    imported = import_peft(tmp_path / "peft")
    assert imported.manifest.model["pooling"] == "own"
    assert imported.manifest.task.classes == ("0", "1", "2")
    artifact, checks = write_imported(imported, tmp_path / "artifact")
    assert all(check.ok for check in checks)
    adapted = load_adapted(tmp_path / "artifact", base_override=str(tmp_path / "base"))
    expected = logits(original, inputs)
    torch.testing.assert_close(adapted.model(**inputs), expected, rtol=0, atol=1e-5)
    export_peft(artifact, tmp_path / "again")
    assert torch.equal(logits(loaded(make, tmp_path / "again"), inputs), expected)


def test_the_hash_of_a_base_does_not_depend_on_its_classifier(tmp_path):
    from petkit.models.config import ModelConfig
    from petkit.models.loading import load_model

    save_headless(bert, tmp_path / "headless")
    save_headless(bert, tmp_path / "whole")
    fresh(bert).save_pretrained(tmp_path / "whole")
    hashes = {
        load_model(
            ModelConfig(name=str(tmp_path / name), pooling="own"), "text_classification", classes
        ).base_sha256
        for name in ("headless", "whole")
        for classes in (0, 3, 5)
    }
    assert len(hashes) == 1


def test_a_layer_that_neither_the_base_nor_the_adapter_has_is_refused(tmp_path):
    options = {**SEQ_CLS, "target_modules": ["q_lin"], "modules_to_save": ["classifier"]}
    save_adapter(tmp_path / "peft", distilbert, options)
    save_headless(distilbert, tmp_path / "base")
    edit(tmp_path / "peft", lambda t: [t.pop(name) for name in list(t) if "pre_classifier" in name])
    write_imported(import_peft(tmp_path / "peft"), tmp_path / "artifact")
    with pytest.raises(ArtifactError, match=r"both lack pre_classifier\.bias, pre_classifier\.weight"):
        load_adapted(tmp_path / "artifact", base_override=str(tmp_path / "base"))


def test_a_bare_classifier_keeps_petkits_own_head(tmp_path):
    save_adapter(tmp_path / "vit", vit, VIT)
    manifest = import_peft(tmp_path / "vit").manifest
    assert "pooling" not in manifest.model
    assert all(target.startswith("backbone.layers.") for target in manifest.adapter["targets"])


def test_the_task_is_told_by_the_folder_or_by_the_caller(tmp_path):
    save_adapter(tmp_path / "causal", llama, {"target_modules": ["q_proj"]})
    assert import_peft(tmp_path / "causal").manifest.task.type == "causal_lm"
    with pytest.raises(InputError, match="is for causal_lm, --task says text_classification"):
        import_peft(tmp_path / "causal", task="text_classification")
    path = tmp_path / "causal" / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_mapping": None}))
    assert import_peft(tmp_path / "causal").manifest.task is None
    assert import_peft(tmp_path / "causal", task="causal_lm").manifest.task.type == "causal_lm"
