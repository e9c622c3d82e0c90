"""Kinds and layers by the names of real models."""

import pytest

from petkit.merging.analysis.kinds import KINDS, OUTSIDE, kind_of, layers_of

NAMES = {
    "attention": [
        "model.layers.3.self_attn.q_proj.weight",
        "blocks.0.attn.qkv.bias",
        "blocks.0.attn.proj.weight",
        "bert.encoder.layer.1.attention.self.query.weight",
        "encoder.layer.1.attention.output.dense.bias",
        "transformer.h.0.attn.c_attn.weight",
        "h.0.attn.c_proj.weight",
        "distilbert.transformer.layer.0.attention.out_lin.weight",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
    ],
    "mlp": [
        "model.layers.3.mlp.down_proj.weight",
        "model.layers.3.block_sparse_moe.experts.1.w1.weight",
        "blocks.0.mlp.fc1.weight",
        "encoder.layer.1.intermediate.dense.weight",
        "encoder.layer.1.output.dense.weight",
        "transformer.h.0.mlp.c_fc.bias",
        "distilbert.transformer.layer.0.ffn.lin1.weight",
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
        "model.decoder.layers.0.fc2.weight",
    ],
    "norm": [
        "model.layers.3.post_attention_layernorm.weight",
        "model.layers.3.self_attn.q_norm.weight",
        "model.norm.weight",
        "blocks.0.norm1.weight",
        "fc_norm.weight",
        "encoder.layer.1.attention.output.LayerNorm.weight",
        "embeddings.LayerNorm.bias",
        "transformer.h.0.ln_1.weight",
        "transformer.ln_f.bias",
        "blocks.1.0.bn2.weight",
    ],
    "embedding": [
        "model.embed_tokens.weight",
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "bert.embeddings.word_embeddings.weight",
        "transformer.wte.weight",
        "wpe.weight",
        "shared.weight",
    ],
    "head": [
        "lm_head.weight",
        "head.weight",
        "classifier.bias",
        "cls.predictions.transform.dense.weight",
        "score.weight",
        "fc.weight",
    ],
    "other": ["blocks.0.ls1.gamma", "model.layers.0.self.inv", "pooler.dense.weight", "conv_stem.weight"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_kinds(kind, name):
    assert kind_of(name) == kind


def test_all_kinds_are_tried():
    assert set(NAMES) == set(KINDS)


def test_layers_come_by_number_and_what_is_outside_last():
    names = ["b.head", "m.layers.10.w", "m.layers.2.w", "m.layers.2.v", "embed"]
    found = layers_of(names)
    assert list(dict.fromkeys(found.values())) == ["2", "10", OUTSIDE]
    assert found["b.head"] == OUTSIDE


def test_two_stacks_are_told_apart():
    found = layers_of(["encoder.block.0.w", "decoder.block.0.w", "decoder.block.1.experts.3.w"])
    assert set(found.values()) == {"encoder.block.0", "decoder.block.0", "decoder.block.1"}
