"""PEFT itself is the judge: an adapter that went through an artifact gives the same logits in PEFT."""

import json

import numpy as np
import peft
import pytest
import safetensors.torch
import timm
import tokenizers
import torch
import transformers

from petkit.artifacts.exporting import export_peft
from petkit.artifacts.importing import import_peft, write_imported
from petkit.artifacts.peft_lora import CONFIG_FILE, TENSOR_FILE
from petkit.errors import ArtifactError, InputError, SafetyError
from petkit.models.inserts import merge_into_base
from petkit.models.loading import load_adapted

pytestmark = [
    # PEFT 0.21 asks transformers for an attribute under the name it is about to lose.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT looks up the base's name on the hub to see whether its vocabulary changed; ours have no name.
    pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning"),
]

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def vit():
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**SIZES, image_size=16, patch_size=8, num_labels=3)
    )


def bert():
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(**SIZES, vocab_size=30, max_position_embeddings=16, num_labels=3)
    )


TEXT = {"vocab_size": 30, "num_labels": 3, "pad_token_id": 0}


def roberta():
    config = transformers.RobertaConfig(**SIZES, **TEXT, max_position_embeddings=16)
    return transformers.RobertaForSequenceClassification(config)


def distilbert():
    config = transformers.DistilBertConfig(
        dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=16, **TEXT
    )
    return transformers.DistilBertForSequenceClassification(config)


def electra():
    config = transformers.ElectraConfig(**SIZES, **TEXT, embedding_size=16, max_position_embeddings=16)
    return transformers.ElectraForSequenceClassification(config)


def modernbert():
    config = transformers.ModernBertConfig(
        **SIZES, **TEXT, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    )
    return transformers.ModernBertForSequenceClassification(config)


def swin():
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4, num_labels=3
    )
    return transformers.SwinForImageClassification(config)


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, vocab_size=30, pad_token_id=0))


def llama_classifier():
    return transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**SIZES, vocab_size=30, pad_token_id=0, num_labels=3)
    )


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)
    )


def timm_vit():
    return timm.create_model(
        "vit_tiny_patch16_224", embed_dim=24, depth=2, num_heads=2, img_size=32, num_classes=3
    )


IMAGES = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)}
TOKENS = {"input_ids": torch.tensor([[3, 7, 1, 9], [2, 2, 8, 5]])}
VIT = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}
CASES = {
    "plain": (vit, IMAGES, VIT),
    "rslora": (vit, IMAGES, {**VIT, "use_rslora": True}),
    "rank pattern": (vit, IMAGES, {**VIT, "rank_pattern": {"0.attention.q_proj": 2, ".*v_proj": 6}}),
    "alpha pattern": (vit, IMAGES, {**VIT, "alpha_pattern": {"layers.1.*": 3}, "lora_alpha": 5}),
    "rslora, both patterns": (
        vit,
        IMAGES,
        {
            **VIT,
            "use_rslora": True,
            "rank_pattern": {"q_proj": 3},
            "alpha_pattern": {"0.attention.v_proj": 7},
        },
    ),
    "regular expression": (vit, IMAGES, {**VIT, "target_modules": r".*layers\.1\..*\.(o_proj|fc1)"}),
    "bert": (bert, TOKENS, {"target_modules": ["query"], "modules_to_save": ["classifier", "pooler"]}),
    "causal": (llama, TOKENS, {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}),
    "causal, saved head": (
        llama,
        TOKENS,
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "task_type": "CAUSAL_LM"},
    ),
    "decoder classifier": (llama_classifier, TOKENS, {"target_modules": ["v_proj"], "task_type": "SEQ_CLS"}),
    "transposed weights": (
        gpt2,
        TOKENS,
        {"target_modules": ["c_attn"], "task_type": "CAUSAL_LM", "fan_in_fan_out": True},
    ),
    "timm": (timm_vit, torch.ones(2, 3, 32, 32), {"target_modules": ["qkv"], "modules_to_save": ["head"]}),
}


def fresh(make):
    torch.manual_seed(0)
    return make().eval()


def logits(model, inputs):
    with torch.no_grad():
        output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return output if isinstance(output, torch.Tensor) else output.logits


def save_adapter(folder, make, options, dtype=torch.float32):
    """A PEFT adapter whose every weight is random, and the model that has it."""
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **options})
    model = peft.get_peft_model(fresh(make), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape).mul(0.5).to(dtype))
                assert "lora_" in name or "modules_to_save" in name
    model.save_pretrained(folder)
    return model.eval()


def loaded(make, folder):
    return peft.PeftModel.from_pretrained(fresh(make), folder).eval()


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


SEQ_CLS = {"task_type": "SEQ_CLS"}
OWN = {
    "bert": (bert, TOKENS, {**SEQ_CLS, "target_modules": ["query"]}),
    "bert without a task": (bert, TOKENS, {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "roberta": (roberta, TOKENS, {**SEQ_CLS, "target_modules": ["query", "value"]}),
    # PEFT's `classifier` saves `pre_classifier` as well, because that ends in it.
    "distilbert": (distilbert, TOKENS, {**SEQ_CLS, "target_modules": ["q_lin"], "rank_pattern": {"0.*": 2}}),
    "electra": (electra, TOKENS, {**SEQ_CLS, "target_modules": ["value"]}),
    "modernbert": (
        modernbert,
        TOKENS,
        {**SEQ_CLS, "target_modules": ["Wqkv"], "modules_to_save": ["classifier", "head"]},
    ),
    "swin": (swin, IMAGES, {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]}),
}


def save_headless(make, folder):
    """A base as people have it: pretrained, without the classifier, and with a tokenizer if it reads text."""
    model = fresh(make)
    getattr(model, model.base_model_prefix).save_pretrained(folder)
    vocabulary = {f"w{index}": index for index in range(30)}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="w0").save_pretrained(folder)


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
