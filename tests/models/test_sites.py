"""Where adapters go, over many architectures: recognised blocks, selectors, refusals."""

import pytest
import timm
import torch
import transformers
from torch import nn

from petkit.errors import ConfigError, InputError
from petkit.models.config import AdapterConfig
from petkit.models.inserts import insert as insert_adapters
from petkit.models.inserts import inserts
from petkit.models.sites import find_sites

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {"vocab_size": 60, **SMALL}
DECODER = {**TEXT, "num_key_value_heads": 2, "pad_token_id": 0}
IMAGE = {"image_size": 16, "patch_size": 8, **SMALL}
TINY = {"depth": 1, "embed_dim": 32, "num_heads": 4, "num_classes": 2}

TIMM = {
    "vit_tiny_patch16_224": TINY,
    "deit3_small_patch16_224": TINY,
    "deit_tiny_distilled_patch16_224": TINY,
    "beit_base_patch16_224": TINY,
    "eva02_tiny_patch14_224": TINY,
    "vit_small_patch16_dinov3": TINY,
    "vit_small_patch14_dinov2": {**TINY, "img_size": 28},
    "vit_relpos_small_patch16_224": TINY,
    "vit_relpos_medium_patch16_rpn_224": TINY,
    "cait_xxs24_224": {**TINY, "depth_token_only": 1},
}
ENCODERS = {
    "ViT": transformers.ViTConfig(**IMAGE),
    "Beit": transformers.BeitConfig(**IMAGE),
    "Dinov2": transformers.Dinov2Config(**IMAGE),
    "Dinov3": transformers.DINOv3ViTConfig(**IMAGE),
    "Siglip": transformers.SiglipVisionConfig(**IMAGE),
    "Data2Vec": transformers.Data2VecVisionConfig(**IMAGE),
    "Llama": transformers.LlamaConfig(**DECODER),
    "Qwen3": transformers.Qwen3Config(**DECODER, head_dim=8),
    "Gemma3": transformers.Gemma3TextConfig(**DECODER, head_dim=8),
    "GPT2": transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=4),
    "Bert": transformers.BertConfig(**TEXT),
    "Roberta": transformers.RobertaConfig(**TEXT),
    "MPNet": transformers.MPNetConfig(**TEXT),
    "DistilBert": transformers.DistilBertConfig(vocab_size=60, dim=32, n_layers=1, n_heads=4, hidden_dim=48),
}
POST_NORM = ("Bert", "Roberta", "MPNet", "DistilBert")


def make(name):
    torch.manual_seed(0)
    if name in TIMM:
        return timm.create_model(name, **TIMM[name]).eval()
    return transformers.AutoModel.from_config(ENCODERS[name]).eval()


def run(model):
    if isinstance(model, transformers.PreTrainedModel):
        if model.main_input_name == "pixel_values":
            return model(pixel_values=torch.randn(1, 3, 16, 16)).last_hidden_state
        return model(input_ids=torch.arange(1, 7)[None]).last_hidden_state
    size = getattr(model.patch_embed, "img_size", (224, 224))
    return model(torch.randn(1, 3, *size))


def silence(module, args, output):
    return torch.zeros_like(output[0] if isinstance(output, tuple) else output)


@pytest.mark.parametrize("name", [name for name in (*TIMM, *ENCODERS) if name not in POST_NORM])
def test_parallel_adapters_read_what_the_block_adds_its_mlp_to(name):
    """With the MLP silenced, a pre-norm block returns the residual stream: what the adapter must read."""
    model = make(name)
    (site,) = find_sites(model, AdapterConfig(method="adaptformer"))
    mlp = find_sites(model, AdapterConfig(method="houlsby"))[1].add
    seen = {}

    def capture(module, args, kwargs):
        seen["read"] = (args or tuple(kwargs.values()))[0]

    def result(module, args, output):
        seen["block"] = output[0] if isinstance(output, tuple) else output

    model.get_submodule(site.capture).register_forward_pre_hook(capture, with_kwargs=True)
    model.get_submodule(mlp).register_forward_hook(silence)
    model.get_submodule(site.add).register_forward_hook(result)
    run(model)
    assert torch.equal(seen["read"], seen["block"])
    assert site.in_features == site.out_features == seen["read"].shape[-1]


@pytest.mark.parametrize("name", POST_NORM)
def test_parallel_adapters_of_post_norm_blocks_act_before_the_norm(name):
    model = make(name)
    (site,) = find_sites(model, AdapterConfig(method="adaptformer"))
    read = []
    model.get_submodule(site.capture).register_forward_pre_hook(lambda _, args: read.append(args[0]))
    model.get_submodule(site.add).register_forward_hook(silence)
    output = run(model)
    norm = nn.LayerNorm(32, elementwise_affine=False, eps=1e-12)
    torch.testing.assert_close(output, norm(read[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["adaptformer", "houlsby", "lora"])
@pytest.mark.parametrize("name", [*TIMM, *ENCODERS])
def test_every_adapter_takes_part(name, method):
    """A hook on a module that the model never calls would leave its adapter silent."""
    model = make(name)
    insert_adapters(model, AdapterConfig(method=method, bits=1, bottleneck=3, dropout=0.0))
    called = []
    for path, adapter in inserts(model).items():
        adapter.register_forward_hook(lambda *_, path=path: called.append(path))
    run(model)
    assert sorted(called) == sorted(inserts(model))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, ["attn.qkv.lora_q", "attn.qkv.lora_v"]),
        (("q", "k", "v"), ["attn.qkv.lora_q", "attn.qkv.lora_k", "attn.qkv.lora_v"]),
        (("o",), ["attn.proj.lora"]),
        (("mlp",), ["mlp.fc1.lora", "mlp.fc2.lora"]),
        (("qkv",), ["attn.qkv.lora"]),
        (("blocks.*.fc[12]",), ["mlp.fc1.lora", "mlp.fc2.lora"]),
        (("v", "o", "proj"), ["attn.qkv.lora_v", "attn.proj.lora"]),
    ],
)
def test_targets_of_a_fused_attention(vit, targets, expected):
    sites = find_sites(vit, AdapterConfig(method="lora", targets=targets))
    assert [site.name for site in sites] == [
        f"blocks.{block}.{name}" for block in (0, 1) for name in expected
    ]


def test_slices_of_a_fused_map(vit):
    sites = find_sites(vit, AdapterConfig(method="lora", targets=("q", "k", "v")))[:3]
    assert [(site.offset, site.in_features, site.out_features) for site in sites] == [
        (n, 24, 24) for n in (0, 24, 48)
    ]


@pytest.mark.parametrize(
    ("name", "alias", "endings"),
    [
        ("Bert", "q", ["self.query"]),
        ("Bert", "o", ["attention.output.dense"]),
        ("Bert", "mlp", ["intermediate.dense", "0.output.dense"]),
        ("DistilBert", "v", ["v_lin"]),
        ("MPNet", "k", ["attn.k"]),
        ("Llama", "mlp", ["gate_proj", "up_proj", "down_proj"]),
        ("Llama", "o", ["o_proj"]),
        ("ViT", "v", ["v_proj"]),
        ("GPT2", "v", ["attn.c_attn"]),
        ("GPT2", "o", ["attn.c_proj"]),
        ("GPT2", "mlp", ["mlp.c_fc", "mlp.c_proj"]),
    ],
)
def test_aliases_across_families(name, alias, endings):
    sites = find_sites(make(name), AdapterConfig(method="lora", targets=(alias,)))
    assert len(sites) == len(endings)
    assert all(site.add.endswith(ending) for site, ending in zip(sites, endings, strict=True))


def test_head_is_never_a_target(vit):
    names = [site.add for site in find_sites(vit, AdapterConfig(method="lora", targets=("*",)))]
    assert "head" not in names
    assert len(names) == 8


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "quary",
            "'quary' matches no linear map; this model has query, key, value, dense; "
            "did you mean query for 'quary'",
        ),
        ("zzz", "'zzz' matches no linear map; this model has query, key, value, dense$"),
        ("attention.self.q*", r"for 'attention\.self\.q\*' write '\*\.attention\.self\.q\*', names begin"),
        ("q_proj", "query, key, value, dense; for 'q_proj' write q$"),
        ("*.qkv", r"query, key, value, dense; for '\*\.qkv' write q, k, v$"),
    ],
)
def test_a_selector_that_matches_nothing_is_refused(bert, target, message):
    with pytest.raises(ConfigError, match=message):
        find_sites(bert, AdapterConfig(method="lora", targets=("query", target)))


def test_all_selectors_that_match_nothing_are_told_at_once_with_what_there_is(vit):
    targets = ("q_proj", "fc1", "v_proj", "gate_proj", "zzz")
    with pytest.raises(ConfigError) as caught:
        find_sites(vit, AdapterConfig(method="lora", targets=targets))
    assert str(caught.value) == (
        "adapter.targets: 'q_proj', 'v_proj', 'gate_proj' and 'zzz' match no linear map; this model has "
        "qkv, proj, fc1, fc2; for 'q_proj' write q; for 'v_proj' write v; for 'gate_proj' write mlp"
    )


def test_linear_probe_has_no_sites(vit):
    assert find_sites(vit, AdapterConfig(method="linear_probe")) == []


def test_parallel_blocks_are_refused_with_the_reason():
    model = timm.create_model("vit_small_patch16_18x2_224", **TINY)
    with pytest.raises(InputError, match="ParallelThingsBlock: attentions and MLPs run side by side"):
        find_sites(model, AdapterConfig(method="adaptformer"))
    assert find_sites(model, AdapterConfig(method="lora"))


def test_models_without_blocks_are_refused():
    with pytest.raises(InputError, match="no block with the children attention, norm and mlp"):
        find_sites(nn.Sequential(nn.Linear(3, 3)), AdapterConfig(method="houlsby"))


def test_a_sequential_cannot_host_a_bottleneck():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
            self.attn, self.mlp = nn.Identity(), nn.Sequential(nn.Linear(4, 4))

    with pytest.raises(InputError, match=r"houlsby cannot follow 0\.mlp"):
        find_sites(nn.Sequential(Block()), AdapterConfig(method="houlsby"))
