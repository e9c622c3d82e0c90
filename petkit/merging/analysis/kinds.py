"""Which part of a model a tensor belongs to, by its name: its kind and its layer. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, get_args

Kind = Literal["attention", "mlp", "norm", "embedding", "head", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)

OUTSIDE = "outside"
"""The layer of tensors that are in none."""

LAYER = re.compile(r"^(.*?)\.(\d+)\.")
NORM = re.compile(r"norm|^ln(_|\d|$)|^bn\d*$")
ATTENTION = re.compile(r"attn|attention|^(q|k|v|o|out)_(proj|lin)$|^qkv$|^(query|key|value)$")
MLP = re.compile(
    r"mlp|ffn|feed_?forward|intermediate|moe|^fc\d*$|^c_fc$|^(gate|up|down)_proj$|^lin\d$|^wi(_\d)?$"
)
EMBEDDING = re.compile(r"embed|^(wte|wpe|shared)$|^(cls|dist|reg|mask|register)_tokens?$")
# Also of vision models whose last layer is called fc.
HEAD = re.compile(r"^(lm_head|head|head_dist|classifier|score|qa_outputs|embed_out|vocab_projector|fc|cls)$")


def kind_of(tensor: str) -> Kind:
    """Tell what a tensor is part of.

    Args:
        tensor: its name, as Llama, GPT-2, BERT, T5, timm's vision transformers and their like have it.

    Returns:
        The kind; a norm within attention is a norm.
    """
    in_layer = LAYER.match(tensor)
    parts = tensor.lower().split(".")
    # The norms of Llama are called after what stands before them: post_attention_layernorm.
    if any(map(NORM.search, parts)):
        return "norm"
    if not in_layer and any(map(HEAD.search, parts)):
        return "head"
    if any(map(EMBEDDING.search, parts)):
        return "embedding"
    if any(map(ATTENTION.search, parts)):
        return "attention"
    # BERT's second half of a feed-forward network is called output.dense, as that of attention within it.
    if any(map(MLP.search, parts)) or (in_layer and "output" in parts):
        return "mlp"
    return "other"


def layers_of(tensors: Iterable[str]) -> dict[str, str]:
    """Tell which layer each tensor is in.

    Args:
        tensors: all names of a model.

    Returns:
        The layer of each: its number; with what stands before it where a model has several stacks, as
        `encoder.block.0`; or `outside`. In the order of stacks and numbers, `outside` last.
    """
    found = {tensor: LAYER.match(tensor) for tensor in tensors}
    stacks = list(dict.fromkeys(match[1] for match in found.values() if match))

    def place(item: tuple[str, re.Match[str] | None]) -> tuple[int, int]:
        match = item[1]
        return (len(stacks), 0) if match is None else (stacks.index(match[1]), int(match[2]))

    def label(match: re.Match[str] | None) -> str:
        if match is None:
            return OUTSIDE
        return match[2] if len(stacks) == 1 else f"{match[1]}.{match[2]}"

    return {tensor: label(match) for tensor, match in sorted(found.items(), key=place)}
