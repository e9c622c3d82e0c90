"""Where adapters go: finds the blocks and linear maps of a frozen model that an AdapterConfig asks for."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from petkit.errors import ConfigError, InputError
from petkit.models.config import AdapterConfig


@dataclass(frozen=True)
class Site:
    """One place for one adapter. Paths are dotted names in the host model.

    `capture` names the module whose first input (source "input") or first output (source "output") the
    adapter reads; its result is added to the first output of the module `add`, from column `offset` on.
    """

    name: str
    capture: str
    add: str
    in_features: int
    out_features: int
    offset: int = 0
    source: Literal["input", "output"] = "input"


@dataclass(frozen=True)
class BlockRule:
    """How to recognise one family of transformer blocks, and the names inside it ("" is the block itself).

    `residual` is the module whose input is the un-normalised residual stream after attention; the parallel
    adapter's result goes on `add`. `attention` and `mlp` are the two sublayer outputs that a sequential
    bottleneck follows.
    """

    children: tuple[str, ...]
    residual: str
    add: str
    attention: str
    mlp: str
    class_names: tuple[str, ...] = ()


# Order matters: the first rule that fits a block is taken. Within timm's family the children do not tell a
# pre-norm block from a post-norm one, so class names do.
BLOCK_RULES = (
    BlockRule(
        ("norm1", "attn", "norm2", "mlp"),
        residual="mlp",
        add="",
        attention="norm1",
        mlp="norm2",
        class_names=("ResPostBlock", "EvaBlockPostNorm", "ResPostRelPosBlock"),
    ),
    BlockRule(
        ("norm1", "attn", "norm2", "mlp"),
        residual="norm2",
        add="",
        attention="attn",
        mlp="mlp",
        class_names=("Block", "EvaBlock", "LayerScaleBlock", "RelPosBlock"),
    ),
    BlockRule(
        ("layernorm_before", "layernorm_after", "attention", "mlp"), "layernorm_after", "", "attention", "mlp"
    ),
    BlockRule(("norm1", "attention", "norm2", "mlp"), "norm2", "", "attention", "mlp"),
    BlockRule(("layer_norm1", "self_attn", "layer_norm2", "mlp"), "layer_norm2", "", "self_attn", "mlp"),
    BlockRule(
        ("layernorm_before", "layernorm_after", "attention", "intermediate.dense", "output.dense"),
        "layernorm_after",
        "",
        "attention",
        "output.dense",
    ),
    BlockRule(("attn_norm", "attn", "mlp_norm", "mlp"), "mlp_norm", "", "attn", "mlp"),
    BlockRule(
        ("attention.output.dense", "intermediate.dense", "output.dense"),
        "intermediate",
        "output.dense",
        "attention.output.dense",
        "output.dense",
    ),
    BlockRule(
        ("attention.attn.o", "intermediate.dense", "output.dense"),
        "intermediate",
        "output.dense",
        "attention.attn.o",
        "output.dense",
    ),
    BlockRule(("attention", "sa_layer_norm", "ffn", "output_layer_norm"), "ffn", "ffn", "attention", "ffn"),
    BlockRule(
        ("input_layernorm", "self_attn", "pre_feedforward_layernorm", "mlp"),
        "pre_feedforward_layernorm",
        "",
        "self_attn",
        "mlp",
    ),
    BlockRule(
        ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp"),
        "post_attention_layernorm",
        "",
        "self_attn",
        "mlp",
    ),
    BlockRule(("ln_1", "attn", "ln_2", "mlp"), "ln_2", "", "attn", "mlp"),
)
# Blocks that look like one of the rules above but order their norms otherwise.
REFUSED_BLOCKS = {
    "Swinv2Layer": "its norm follows the sublayer and its windows are padded",
    "Swin2SRLayer": "its norm follows the sublayer and its windows are padded",
    "ParallelScalingBlock": "attention and MLP read the same input, so there is no residual between them",
    "DiffParallelScalingBlock": "attention and MLP read the same input, so there is no residual between them",
    "ParallelThingsBlock": "attentions and MLPs run side by side, without one residual between them",
}

# Last parts of the names of the linear maps that an alias stands for, over timm's and transformers' families.
ALIASES = {
    "q": ("q", "q_proj", "query", "q_lin"),
    "k": ("k", "k_proj", "key", "k_lin"),
    "v": ("v", "v_proj", "value", "v_lin"),
    "o": ("attn.proj", "o_proj", "out_proj", "out_lin", "attention.output.dense", "attn.o", "attn.c_proj"),
    "mlp": (
        "fc1",
        "fc2",
        "gate_proj",
        "up_proj",
        "down_proj",
        "lin1",
        "lin2",
        "intermediate.dense",
        "output.dense",
        "fc1_g",
        "fc1_x",
        "c_fc",
        "mlp.c_proj",
    ),
}
FUSED_SLICES = {"q": 0, "k": 1, "v": 2}
# Maps to q, k and v one after the other: timm's, and GPT-2's.
FUSED_MAPS = ("qkv", "c_attn")


def find_sites(model: nn.Module, config: AdapterConfig) -> list[Site]:
    """List the places where the configured adapters go, in the model's own order.

    Args:
        model: The host model, without adapters.
        config: Method and, for lora, the targets.

    Returns:
        Sites in the order of `model.named_modules()`; empty for linear_probe.

    Raises:
        ConfigError: Targets match no linear map; the message names all of these, and the maps there are.
        InputError: The model has no transformer block that the method knows, with the reason.
    """
    if config.method == "linear_probe":
        return []
    if config.method == "lora":
        return _lora_sites(model, config.targets)
    blocks = list(_find_blocks(model))
    if not blocks:
        raise InputError(_no_blocks(model, config.method))
    place = _adaptformer_sites if config.method == "adaptformer" else _houlsby_sites
    return [site for path, block, rule in blocks for site in place(path, block, rule)]


def _find_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module, BlockRule]]:
    found: list[str] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        rule = None if inside else _matching_rule(module)
        if rule is not None:
            found.append(path)
            yield path, module, rule


def _matching_rule(module: nn.Module) -> BlockRule | None:
    name = type(module).__name__
    if name in REFUSED_BLOCKS:
        return None
    for rule in BLOCK_RULES:
        named = not rule.class_names or name in rule.class_names
        complete = all(_child(module, child) is not None for child in rule.children)
        # Norms over two-dimensional maps mean convolutions, where the last axis is not the features.
        if named and complete and not type(_child(module, rule.residual)).__name__.endswith("2d"):
            return rule
    return None


def _child(module: nn.Module, path: str) -> nn.Module | None:
    for part in path.split("."):
        # A child set to None (transformers does so for absent norms) is as good as missing.
        found = getattr(module, part, None)
        if not isinstance(found, nn.Module):
            return None
        module = found
    return module


def _no_blocks(model: nn.Module, method: str) -> str:
    kinds = {type(module).__name__ for module in model.modules()}
    reasons = [f"{kind}: {why}" for kind, why in REFUSED_BLOCKS.items() if kind in kinds]
    reason = "; ".join(reasons) or "no block with the children attention, norm and mlp was found"
    return (
        f"adapter.method {method} needs the transformer blocks of a known ViT, encoder or decoder in "
        f"{type(model).__name__} ({reason}); use adapter.method lora with adapter.targets"
    )


def _adaptformer_sites(path: str, block: nn.Module, rule: BlockRule) -> list[Site]:
    width = _width(block, rule)
    return [Site(_join(path, "adaptformer"), _join(path, rule.residual), _join(path, rule.add), width, width)]


def _houlsby_sites(path: str, block: nn.Module, rule: BlockRule) -> list[Site]:
    width = _width(block, rule)
    sites = []
    for sublayer in (rule.attention, rule.mlp):
        host = _join(path, sublayer)
        if isinstance(_child(block, sublayer), nn.Sequential):
            raise InputError(
                f"houlsby cannot follow {host}: it is an nn.Sequential, where a child would become a step"
            )
        sites.append(Site(_join(host, "houlsby"), host, host, width, width, source="output"))
    return sites


def _width(block: nn.Module, rule: BlockRule) -> int:
    """Width of the residual stream: the input size of the MLP's first linear map, or the size of a norm."""
    residual = _child(block, rule.residual)
    modules = [residual, *block.modules()] if residual is not None else list(block.modules())
    for module in modules:
        if is_linear(module):
            return linear_shape(module)[1]
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dim() == 1:
            return int(weight.numel())
    raise InputError(
        f"the width of {type(block).__name__} cannot be told: it has neither a linear map nor a norm"
    )


def _lora_sites(model: nn.Module, targets: tuple[str, ...] | None) -> list[Site]:
    linears = dict(linear_modules(model))
    sites: dict[str, Site] = {}
    unmatched = []
    for target in targets if targets is not None else ("q", "v"):
        matched = [site for path, linear in linears.items() for site in _match(target, path, linear)]
        sites.update({site.name: site for site in matched})
        if not matched:
            unmatched.append(target)
    if unmatched:
        raise ConfigError(_no_match(unmatched, linears))
    order = {path: index for index, path in enumerate(linears)}
    return sorted(sites.values(), key=lambda site: (order[site.add], site.offset, site.out_features))


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies its last axis by a matrix: nn.Linear, or the Conv1D of GPT-2's family."""
    return isinstance(module, nn.Linear) or _is_transposed(module)


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """The sizes (out, in) of a linear map."""
    rows, columns = linear_weight(module).shape
    return rows, columns


def linear_weight(module: nn.Module) -> Tensor:
    """The weight (out, in) of a linear map: the parameter itself, or a view of it.

    Args:
        module: A module for which `is_linear` holds.
    """
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.T if _is_transposed(module) else weight


def _is_transposed(module: nn.Module) -> bool:
    # transformers' Conv1D is a linear map whose weight is (in, out).
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def linear_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear maps that lora can sit beside, by dotted path.

    Args:
        model: The host model.

    Returns:
        Pairs of path and module, without the classifier `head` and without linear maps that are never
        called as modules (the output projection inside nn.MultiheadAttention).
    """
    for path, module in model.named_modules():
        never_called = type(module).__name__ == "NonDynamicallyQuantizableLinear"
        apart = never_called or path.split(".")[0] in ("head", "head_dist")
        if is_linear(module) and not apart:
            yield path, module


def _match(target: str, path: str, linear: nn.Module) -> list[Site]:
    last = path.rsplit(".", 1)[-1]
    if target in ALIASES:
        if last in FUSED_MAPS and target in FUSED_SLICES:
            return [_slice_site(target, path, linear)]
        named = any(path == ending or path.endswith(f".{ending}") for ending in ALIASES[target])
        # BERT's attention.output.dense ends like the MLP's output.dense and is not part of the MLP.
        matches = named and not (target == "mlp" and path.endswith("attention.output.dense"))
    else:
        matches = fnmatch.fnmatchcase(path, target) or fnmatch.fnmatchcase(last, target)
    out_features, in_features = linear_shape(linear)
    return [Site(f"{path}.lora", path, path, in_features, out_features)] if matches else []


def _slice_site(target: str, path: str, linear: nn.Module) -> Site:
    out_features, in_features = linear_shape(linear)
    if out_features % 3:
        raise InputError(f"{path} has {out_features} outputs, which are not three equal parts q, k and v")
    third = out_features // 3
    return Site(f"{path}.lora_{target}", path, path, in_features, third, offset=third * FUSED_SLICES[target])


def _no_match(targets: Sequence[str], linears: Mapping[str, nn.Module]) -> str:
    endings = list(dict.fromkeys(path.rsplit(".", 1)[-1] for path in linears))
    there = ", ".join(endings) or "none"
    hints = [hint for target in targets if (hint := _hint(target, endings, linears))]
    *first, last = map(repr, targets)
    names = f"{', '.join(first)} and {last} match" if first else f"{last} matches"
    return "; ".join([f"adapter.targets: {names} no linear map", f"this model has {there}", *hints])


def _hint(target: str, endings: Sequence[str], linears: Mapping[str, nn.Module]) -> str | None:
    """What to write instead: the alias of a name that another architecture has, or a name like it."""
    if any(fnmatch.fnmatchcase(path, f"*.{target}") for path in linears):
        return f"for {target!r} write '*.{target}', names begin at the model's root"
    last = target.rsplit(".", 1)[-1]
    meant = [
        alias
        for alias, names in ALIASES.items()
        if last in {name.rsplit(".", 1)[-1] for name in names}
        or (last in FUSED_MAPS and alias in FUSED_SLICES)
    ]
    known = [alias for alias in meant if _is_there(alias, linears)]
    if known:
        return f"for {target!r} write {', '.join(known)}"
    aliases = [alias for alias in ALIASES if _is_there(alias, linears)]
    close = difflib.get_close_matches(target, [*endings, *aliases, *linears], n=1)
    return f"did you mean {close[0]} for {target!r}?" if close else None


def _is_there(alias: str, linears: Mapping[str, nn.Module]) -> bool:
    with suppress(InputError):
        return any(_match(alias, path, linear) for path, linear in linears.items())
    return False


def _join(path: str, child: str) -> str:
    return ".".join(part for part in (path, child) if part)
