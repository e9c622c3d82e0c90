"""Adapters in frozen models: where they act, what is trained, what is stored."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from petkit.errors import ArtifactError, ConfigError, InputError
from petkit.models.config import AdapterConfig
from petkit.models.inserts import (
    adapter_state,
    base_state,
    insert,
    inserts,
    load_adapter_state,
    load_packed,
    merge_into_base,
    pack,
    remove,
)
from petkit.models.projections import PackedLinear
from tests.reference import adapters as reference

METHODS = ("adaptformer", "lora", "houlsby")
# float32 sums of a few hundred terms of order one.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def config(**options):
    return AdapterConfig(**{"bottleneck": 5, "dropout": 0.0, "bits": 1, "scale": 0.7, **options})


def addition(adapter, x, rectify):
    """The adapter's contribution from its latent 1-bit weights, by the NumPy reference."""
    down, up = (
        reference.one_bit(part.weight.detach().double().numpy()) for part in (adapter.down, adapter.up)
    )
    result = reference.bottleneck(x.detach().double().numpy(), down, up, adapter.scale, rectify)
    return torch.from_numpy(result).float()


def test_adaptformer_adds_to_the_block_outside_its_layer_scale(vit, generator, moved):
    untouched = copy.deepcopy(vit)
    insert(vit, config(), generator)
    moved(vit)
    x = torch.randn(2, 5, 24)
    block = untouched.blocks[0]
    residual = x + block.ls1(block.attn(block.norm1(x)))
    plain = residual + block.ls2(block.mlp(block.norm2(residual)))
    expected = plain + addition(vit.blocks[0].adaptformer, residual, rectify=True)
    torch.testing.assert_close(vit.blocks[0](x), expected, **CLOSE)


def test_lora_adds_to_its_slices_of_the_fused_map(vit, generator, moved):
    untouched = copy.deepcopy(vit)
    insert(vit, config(method="lora"), generator)
    moved(vit)
    x = torch.randn(2, 5, 24)
    host = vit.blocks[1].attn.qkv
    expected = untouched.blocks[1].attn.qkv(x).clone()
    expected[..., :24] += addition(host.lora_q, x, rectify=False)
    expected[..., 48:] += addition(host.lora_v, x, rectify=False)
    torch.testing.assert_close(host(x), expected, **CLOSE)


def test_houlsby_follows_both_sublayers(vit, generator, moved):
    untouched = copy.deepcopy(vit)
    insert(vit, config(method="houlsby"), generator)
    moved(vit)
    x = torch.randn(2, 5, 24)
    block, adapted = untouched.blocks[0], vit.blocks[0]
    attended = block.attn(block.norm1(x))
    residual = x + block.ls1(attended + addition(adapted.attn.houlsby, attended, rectify=True))
    transformed = block.mlp(block.norm2(residual))
    expected = residual + block.ls2(transformed + addition(adapted.mlp.houlsby, transformed, rectify=True))
    torch.testing.assert_close(adapted(x), expected, **CLOSE)


def test_adaptformer_in_bert_goes_before_the_second_norm(bert, generator, moved):
    untouched = copy.deepcopy(bert)
    insert(bert, config(), generator)
    moved(bert)
    x = torch.randn(2, 5, 32)
    layer = untouched.encoder.layer[0]
    attended = layer.attention(x)[0]
    summed = layer.output.dense(layer.intermediate(attended)) + attended
    expected = layer.output.LayerNorm(
        summed + addition(bert.encoder.layer[0].adaptformer, attended, rectify=True)
    )
    torch.testing.assert_close(bert.encoder.layer[0](x), expected, **CLOSE)


def test_adaptformer_in_a_decoder_reads_the_residual(llama, tokens, generator, moved):
    untouched = copy.deepcopy(llama)
    insert(llama, config(), generator)
    moved(llama)
    seen = {}
    layer = untouched.model.layers[0]
    layer.post_attention_layernorm.register_forward_pre_hook(lambda _, args: seen.update(residual=args[0]))
    layer.register_forward_hook(lambda _, args, output: seen.update(plain=output))
    llama.model.layers[0].register_forward_hook(lambda _, args, output: seen.update(adapted=output))
    untouched(input_ids=tokens)
    llama(input_ids=tokens)
    expected = seen["plain"] + addition(llama.model.layers[0].adaptformer, seen["residual"], rectify=True)
    torch.testing.assert_close(seen["adapted"], expected, **CLOSE)


@pytest.mark.parametrize("method", METHODS)
def test_zero_up_projections_leave_the_logits_as_they_are(vit, images, method):
    before = vit(images)
    insert(vit, config(method=method, bits=32))
    assert torch.equal(vit(images), before)


@pytest.mark.parametrize("method", METHODS)
def test_base_keys_and_values_stay(vit, method):
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    insert(vit, config(method=method))
    after = vit.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert base_state(vit).keys() == {key for key in before if not key.startswith("head.")}


@pytest.mark.parametrize("method", [*METHODS, "linear_probe"])
def test_gradients_reach_adapters_and_head_alone(vit, images, method, moved):
    insert(vit, config(method=method))
    moved(vit)
    functional.cross_entropy(vit(images), torch.tensor([0, 2])).backward()
    reached = {name for name, parameter in vit.named_parameters() if parameter.grad is not None}
    assert reached == set(adapter_state(vit))
    assert all(vit.get_parameter(name).grad.abs().sum() > 0 for name in reached)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 32])
@pytest.mark.parametrize("method", METHODS)
def test_packed_model_gives_the_trained_models_logits(vit, images, method, bits, moved):
    packed_vit = copy.deepcopy(vit)
    insert(vit, config(method=method, bits=bits))
    moved(vit)
    # Another width at insertion: the artifact's shapes decide.
    insert(packed_vit, config(method=method, bits=bits, bottleneck=9))
    load_packed(packed_vit, *pack(vit))
    torch.testing.assert_close(packed_vit(images), vit(images), **CLOSE)
    kinds = {type(adapter.down) for adapter in inserts(packed_vit).values()}
    assert kinds == ({nn.Linear} if bits == 32 else {PackedLinear})
    assert not any(parameter.requires_grad for parameter in packed_vit.parameters())


def test_packing_a_packed_model_gives_the_same_matrices(vit, moved):
    insert(vit, config(head="binary"))
    moved(vit)
    first, dense = pack(vit)
    load_packed(vit, first, dense)
    second, _ = pack(vit)
    assert dense == {}
    assert first.keys() == second.keys()
    for name, matrix in first.items():
        np.testing.assert_array_equal(matrix.stream, second[name].stream)
        assert (matrix.shift, matrix.scale) == (second[name].shift, second[name].scale)


def test_dense_mode_makes_plain_linear_maps(vit, images, moved):
    dense_vit = copy.deepcopy(vit)
    insert(vit, config(head="binary"))
    moved(vit)
    insert(dense_vit, config(head="binary"))
    load_packed(dense_vit, *pack(vit), as_dense=True)
    assert all(isinstance(adapter.up, nn.Linear) for adapter in inserts(dense_vit).values())
    torch.testing.assert_close(dense_vit(images), vit(images), **CLOSE)


def test_scaling_differs_by_site(vit, images, moved):
    scaled = copy.deepcopy(vit)
    insert(vit, config(bits=32, scale=2.0))
    moved(vit)
    insert(scaled, config(bits=32, scale=1.0))
    load_packed(scaled, *pack(vit), scaling={"blocks.0.adaptformer": 2.0, "blocks.1.adaptformer": 2.0})
    assert torch.equal(scaled(images), vit(images))


def test_merged_lora_gives_the_adapted_logits(vit, images, moved):
    insert(vit, config(method="lora", targets=("q", "v", "mlp"), bits=32))
    moved(vit)
    adapted = vit(images)
    merge_into_base(vit)
    assert not inserts(vit)
    torch.testing.assert_close(vit(images), adapted, **CLOSE)


def test_only_lora_can_be_merged(vit):
    insert(vit, config())
    with pytest.raises(InputError, match=r"blocks\.0\.adaptformer cannot be merged"):
        merge_into_base(vit)


@pytest.mark.parametrize("method", METHODS)
def test_removal_restores_the_model(vit, images, method, moved):
    before, keys = vit(images), vit.state_dict().keys()
    insert(vit, config(method=method))
    moved(vit)
    assert not torch.equal(vit(images), before)
    remove(vit)
    assert torch.equal(vit(images), before)
    assert vit.state_dict().keys() == keys


def test_checkpoint_state_round_trips(vit, images, moved):
    other = copy.deepcopy(vit)
    insert(vit, config())
    moved(vit)
    insert(other, config())
    load_adapter_state(other, adapter_state(vit))
    assert torch.equal(other(images), vit(images))
    state = adapter_state(vit)
    del state["head.bias"]
    with pytest.raises(ArtifactError, match=r"missing head\.bias"):
        load_adapter_state(other, state)
    state["head.bias"] = torch.zeros(4)
    with pytest.raises(ArtifactError, match="does not fit head"):
        load_adapter_state(other, state)


def test_initial_weights_come_from_the_generator(vit):
    twin = copy.deepcopy(vit)
    insert(vit, config(), torch.Generator().manual_seed(4))
    torch.manual_seed(99)
    insert(twin, config(), torch.Generator().manual_seed(4))
    assert all(torch.equal(a, b) for a, b in zip(vit.parameters(), twin.parameters(), strict=True))
    down, up = vit.blocks[0].adaptformer.down.weight, vit.blocks[0].adaptformer.up.weight
    assert down.abs().max() <= 24**-0.5
    assert 0 < up.abs().max() <= 2e-3


def test_binary_head_has_no_bias_and_starts_from_the_same_weight(vit):
    weight = vit.head.weight.detach().clone()
    insert(vit, config(head="binary"))
    assert torch.equal(vit.head.weight, weight)
    assert [name for name in adapter_state(vit) if name.startswith("head")] == ["head.weight"]


def test_binary_head_needs_a_head(llama):
    with pytest.raises(ConfigError, match="LlamaForCausalLM has none"):
        insert(llama, config(head="binary"))


def test_second_insertion_is_refused(vit):
    insert(vit, config())
    with pytest.raises(InputError, match="already holds adapters"):
        insert(vit, config(method="lora"))


def test_nothing_to_pack_is_refused(bert):
    with pytest.raises(InputError, match="neither adapters nor a head"):
        pack(bert)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda packed, dense: packed.pop("blocks.1.adaptformer.up"), r"missing blocks\.1\.adaptformer\.up"),
        (
            lambda packed, dense: packed.update(
                {"blocks.7.adaptformer.up": packed["blocks.0.adaptformer.up"]}
            ),
            "unexpected",
        ),
        (
            lambda packed, dense: packed.update(
                {"blocks.0.adaptformer.up": packed["blocks.0.adaptformer.down"]}
            ),
            r"blocks\.0\.adaptformer: expected down \(h, 24\) and up \(24, h\), got",
        ),
        (
            lambda packed, dense: dense.update({"head.weight": torch.zeros(3, 7)}),
            "expected 3 classes of 24 features",
        ),
        (
            lambda packed, dense: dense.update({"norm.missing": torch.zeros(24)}),
            r"norm\.missing .* is no parameter",
        ),
    ],
)
def test_artifacts_that_do_not_fit_are_refused(vit, change, message):
    other = copy.deepcopy(vit)
    insert(vit, config())
    packed, dense = pack(vit)
    change(packed, dense)
    insert(other, config())
    with pytest.raises(ArtifactError, match=message):
        load_packed(other, packed, dense)


def test_other_trained_tensors_keep_their_names(vit, images):
    insert(vit, config())
    packed, dense = pack(vit)
    load_packed(vit, packed, {**dense, "norm.weight": torch.full((24,), 3.0)})
    assert torch.equal(vit.norm.weight, torch.full((24,), 3.0))
