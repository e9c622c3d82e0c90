"""base+adapter as a model: transformers loads it, and it computes what PEFT computes."""

import json
import logging
import shutil
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file, save_file

from petkit.errors import InputError
from petkit.merging.adapted import open_source, read_named
from petkit.merging.config import read_merge_config
from petkit.merging.folders import merge_folders
from petkit.merging.sources import open_model
from petkit.models.config import AdapterConfig
from tests.artifacts import peft_models
from tests.artifacts.peft_models import IMAGES, TOKENS, logits
from tests.merging.peft_adapters import load_base, save_adapter, save_base, with_adapters, write_yaml
from tests.serving.text_models import save_bert, save_llama, save_tokenizer, write_text

# PEFT 0.21 asks transformers for an attribute under the name it is about to lose.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CASES = {
    "llama": (
        peft_models.llama,
        TOKENS,
        {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"},
    ),
    "rslora, rank pattern": (
        peft_models.llama,
        TOKENS,
        {
            "target_modules": ["q_proj", "v_proj"],
            "task_type": "CAUSAL_LM",
            "use_rslora": True,
            "rank_pattern": {"v_proj": 2},
        },
    ),
    "saved head": (
        peft_models.llama,
        TOKENS,
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "task_type": "CAUSAL_LM"},
    ),
    # c_attn, c_fc and c_proj are transposed, one of each c_proj is square.
    "gpt2": (
        peft_models.gpt2,
        TOKENS,
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "task_type": "CAUSAL_LM", "fan_in_fan_out": True},
    ),
    # transformers renames these tensors on loading.
    "vit": (
        peft_models.vit,
        IMAGES,
        {"target_modules": ["q_proj", "fc1"], "modules_to_save": ["classifier"]},
    ),
    "bert": (peft_models.bert, TOKENS, {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
}


def merge(yaml, output):
    config = read_merge_config(yaml)
    return merge_folders(config, {"from": "a test"}, output, shard_bytes=10**9, progress=silent)


def silent(_):
    return nullcontext(lambda count: None)


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_what_peft_computes(tmp_path, case):
    make, inputs, options = CASES[case]
    base = save_base(tmp_path / "base", make)
    adapter = save_adapter(tmp_path / "lora", base, **options)
    yaml = write_yaml(tmp_path / "m.yml", "passthrough", [f"{base}+{adapter}"])
    assert merge(yaml, tmp_path / "out")["changed"] > 0
    wanted = logits(with_adapters(base, adapter), inputs)
    torch.testing.assert_close(logits(load_base(tmp_path / "out"), inputs), wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - logits(load_base(base), inputs)).abs().max() > 1e-2
    assert json.loads((tmp_path / "out/checks.json").read_text())["ok"] is True


def test_several_merge_by_any_method(tmp_path):
    base = save_base(tmp_path / "base", peft_models.llama)
    options = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    adapters = [save_adapter(tmp_path / str(seed), base, seed, **options) for seed in (1, 2)]
    weights = [0.7, -0.4]
    models = [(f"{base}+{one}", {"weight": weight}) for one, weight in zip(adapters, weights, strict=True)]
    yaml = write_yaml(tmp_path / "m.yml", "task_arithmetic", models, base_model=str(base))
    merge(yaml, tmp_path / "out")
    model = with_adapters(base, *adapters)
    model.add_weighted_adapter(["0", "1"], weights, "both", combination_type="cat")
    model.set_adapter("both")
    wanted = logits(model, TOKENS)
    torch.testing.assert_close(logits(load_base(tmp_path / "out"), TOKENS), wanted, rtol=1e-5, atol=1e-5)
    trimmed = [(name, {"weight": 1.0, "density": 0.5}) for name, _ in models]
    yaml = write_yaml(tmp_path / "t.yml", "ties", trimmed, base_model=str(base))
    assert merge(yaml, tmp_path / "ties")["changed"] == 4


def test_numbers_are_those_of_float64_in_every_piece(tmp_path):
    base = save_base(tmp_path / "base", peft_models.llama)
    adapter = save_adapter(tmp_path / "lora", base, target_modules=["down_proj"], task_type="CAUSAL_LM")
    name = "model.layers.1.mlp.down_proj"
    own = load_file(tmp_path / "base/model.safetensors")[f"{name}.weight"].double()
    lora = load_file(adapter / "adapter_model.safetensors")
    down, up = (lora[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "AB")
    wanted = (own + 2.0 * up @ down).float().flatten()
    with open_source(f"{base}+{adapter}", {}) as model:
        assert model.folder == base
        for start, count in ((0, wanted.numel()), (5, 1), (23, 50), (wanted.numel() - 3, 3)):
            out = torch.full((count,), torch.nan)
            model.read(f"{name}.weight", start, out)
            torch.testing.assert_close(out, wanted[start : start + count], rtol=1e-6, atol=1e-7)


def test_half_precision_is_rounded_once(tmp_path):
    base = save_base(tmp_path / "base", lambda: peft_models.llama().to(torch.bfloat16))
    adapter = save_adapter(tmp_path / "lora", base, target_modules=["q_proj"], task_type="CAUSAL_LM")
    merge(write_yaml(tmp_path / "m.yml", "passthrough", [f"{base}+{adapter}"]), tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    assert {one.dtype for one in found.values()} == {torch.bfloat16}
    own, lora = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    down, up = (lora[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "AB")
    wanted = own[f"{name}.weight"].double() + 2.0 * up @ down
    assert torch.equal(found[f"{name}.weight"], wanted.float().to(torch.bfloat16))


def test_a_packed_adapter_knows_its_base_by_its_hash(tmp_path):
    from petkit.models.loading import load_adapted

    base = save_llama(tmp_path / "base")
    config = AdapterConfig(method="lora", bits=1, bottleneck=4, targets=("q", "mlp"), dropout=0.0, scale=0.5)
    adapter = write_text(tmp_path / "a", base, config, task="causal_lm")
    merge(write_yaml(tmp_path / "m.yml", "linear", [(f"{base}+{adapter}", {"weight": 1})]), tmp_path / "o")
    wanted = logits(load_adapted(adapter).model, TOKENS)
    torch.testing.assert_close(logits(load_base(tmp_path / "o"), TOKENS), wanted, rtol=1e-5, atol=1e-5)
    # The same weights elsewhere are the same base; others are not, whatever their folder's name.
    shutil.copytree(base, tmp_path / "copy")
    with open_source(f"{tmp_path / 'copy'}+{adapter}", {}) as model:
        assert model.check().ok
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with (
        pytest.raises(
            InputError, match=r"base is not the base of .*a: it has sha256 \w{64}, .* of sha256 \w{64}"
        ),
        open_source(f"{base}+{adapter}", {}),
    ):
        pass


def test_thirds_of_a_transposed_map(tmp_path):
    from petkit.models.loading import load_adapted

    base = save_base(tmp_path / "base", peft_models.gpt2)
    save_tokenizer(base, chat=False)
    config = AdapterConfig(method="lora", bits=32, bottleneck=3, targets=("q", "v"), dropout=0.0, scale=2.0)
    adapter = write_text(tmp_path / "a", base, config, task="causal_lm")
    merge(write_yaml(tmp_path / "m.yml", "passthrough", [f"{base}+{adapter}"]), tmp_path / "out")
    wanted = logits(load_adapted(adapter).model, TOKENS)
    torch.testing.assert_close(logits(load_base(tmp_path / "out"), TOKENS), wanted, rtol=1e-5, atol=1e-5)


def test_a_head_that_has_no_place_is_told(tmp_path, caplog):
    base = save_bert(tmp_path / "bert")
    adapter = write_text(tmp_path / "a", base, AdapterConfig(method="lora", bits=8, bottleneck=2))
    with (
        caplog.at_level(logging.INFO, logger="petkit"),
        open_source(f"{base}+{adapter}", {}) as model,
        open_model(base) as plain,
    ):
        assert set(model.left_out) == {"head.weight", "head.bias"}
        assert model.entries.keys() == plain.entries.keys()
        assert len(model.changes) == 4
    assert "the base has no place for head.bias, head.weight, left out" in caplog.text


def test_fused_maps_of_timm(tmp_path):
    from petkit.models.loading import load_adapted
    from tests.quantization.artifacts import write

    config = AdapterConfig(method="lora", bits=2, bottleneck=3, targets=("q", "v"), dropout=0.0)
    folder, loaded = write(tmp_path / "a", config)
    (tmp_path / "base").mkdir()
    from petkit.models.inserts import base_state, merge_into_base

    save_file(
        {name: one.contiguous() for name, one in base_state(loaded.model).items()},
        tmp_path / "base/model.safetensors",
    )
    manifest = json.loads((folder / "petkit.json").read_text())
    manifest["base"]["sha256"] = None
    (folder / "petkit.json").write_text(json.dumps(manifest))
    (tmp_path / "base").rename(tmp_path / "test_vit")
    adapted = load_adapted(folder).model
    merge_into_base(adapted)
    wanted = base_state(adapted)
    with open_source(f"{tmp_path / 'test_vit'}+{folder}", {}) as model:
        assert len(model.changes) == sum(name.endswith("qkv.weight") for name in wanted)
        for name in model.changes:
            out = torch.empty(wanted[name].numel())
            model.read(name, 0, out)
            torch.testing.assert_close(out.view(wanted[name].shape), wanted[name], rtol=1e-6, atol=1e-7)


def test_an_adapter_of_zeros_exits_with_3(tmp_path):
    from petkit.errors import GateError

    base = save_base(tmp_path / "base", peft_models.llama)
    adapter = save_adapter(tmp_path / "lora", base, target_modules=["q_proj"], task_type="CAUSAL_LM")
    file = adapter / "adapter_model.safetensors"
    save_file({name: 0 * one for name, one in load_file(file).items()}, file, {"format": "pt"})
    yaml = write_yaml(tmp_path / "m.yml", "passthrough", [f"{base}+{adapter}"])
    with pytest.raises(GateError, match=r"differs from its base: the adapter changes 0 of 2 tensors"):
        merge(yaml, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").exists()


def named(tmp_path, base, adapter):
    with pytest.raises(InputError) as error, open_source(f"{base}+{adapter}", {}):
        pass
    return str(error.value)


def test_an_activation_cannot_be_folded(tmp_path):
    base = save_llama(tmp_path / "base")
    config = AdapterConfig(method="adaptformer", bits=1, bottleneck=2)
    adapter = write_text(tmp_path / "a", base, config, task="causal_lm")
    message = named(tmp_path, base, adapter)
    assert "cannot be added to" in message
    assert "it is adaptformer, and no weight does the same, since there is an activation" in message


def test_an_adapter_that_does_not_fit(tmp_path):
    base = save_base(tmp_path / "base", peft_models.llama)
    adapter = save_adapter(tmp_path / "lora", base, target_modules=["q_proj"], task_type="CAUSAL_LM")
    other = tmp_path / "other"
    other.mkdir()
    save_base(other / "base", peft_models.gpt2)
    assert "is beside model.layers.0.self_attn.q_proj" in named(tmp_path, other / "base", adapter)
    save_base(other / "nobase", peft_models.llama)
    assert "may not be the base of" in named(tmp_path, other / "nobase", adapter)
    assert "petkit convert" in named(tmp_path, other / "nobase", adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    wide = {name: torch.cat([one, one], 1) if "lora_A" in name else one for name, one in tensors.items()}
    save_file(wide, adapter / "adapter_model.safetensors", {"format": "pt"})
    assert "changes a matrix of shape (16, 32)" in named(tmp_path, base, adapter)


def test_what_is_no_adapter_or_no_model(tmp_path):
    base = save_base(tmp_path / "base", peft_models.llama)
    adapter = save_adapter(tmp_path / "lora", base, target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert "must be an adapter of petkit or of PEFT (LoRA), it is none" in named(tmp_path, base, base)
    assert "lora is an adapter, where a whole model is needed" in named(tmp_path, adapter, adapter)
    assert "gone, which is not there" in named(tmp_path, base, tmp_path / "gone")
    with pytest.raises(InputError, match="not there"):
        read_named(str(tmp_path / "gone"))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_a_tied_head_that_an_adapter_replaced_is_refused(tmp_path):
    base = save_base(tmp_path / "base", peft_models.gpt2)
    adapter = save_adapter(
        tmp_path / "lora",
        base,
        target_modules=["c_attn"],
        modules_to_save=["lm_head"],
        task_type="CAUSAL_LM",
        fan_in_fan_out=True,
    )
    assert "holds lm_head.weight, and" in named(tmp_path, base, adapter)
