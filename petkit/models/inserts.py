"""Adapters in a frozen model: put in, list, save, pack, load, merge and take out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from petkit.artifacts.packed import PackedMatrix
from petkit.errors import ArtifactError, ConfigError, InputError
from petkit.models.adapter import Insert, detach_all
from petkit.models.config import AdapterConfig
from petkit.models.projections import (
    FakeQuantLinear,
    PackedLinear,
    Projection,
    dense_projection,
    effective_weight,
    initialize_linear,
    initialize_up,
    make_projection,
    pack_projection,
)
from petkit.models.sites import Site, find_sites, is_linear, linear_weight

__all__ = [
    "Insert",
    "Site",
    "adapter_state",
    "base_state",
    "find_sites",
    "insert",
    "inserts",
    "load_adapter_state",
    "load_packed",
    "merge_into_base",
    "pack",
    "remove",
    "set_head",
    "trained_modules",
]


def insert(model: nn.Module, config: AdapterConfig, generator: torch.Generator | None = None) -> list[Site]:
    """Freeze the model and put trainable adapters into it; the state-dict keys of the base stay as they are.

    Args:
        model: The host model, changed in place; its `head`, if it has one, stays trainable.
        config: Method, bits, bottleneck and targets.
        generator: Source of the initial weights; None uses torch's global one.

    Returns:
        The sites that now hold an adapter, in the model's order.

    Raises:
        ConfigError: A target matches nothing, or a binary head is asked of a model without a head.
        InputError: The model already holds adapters, or has no block that the method knows.

    Source: Jie, Wang, Deng 2023 (arXiv 2307.16867), sections 3 and 4.
    """
    if inserts(model):
        raise InputError(
            f"{type(model).__name__} already holds adapters: remove them before inserting others"
        )
    sites = find_sites(model, config)
    model.requires_grad_(False)
    _prepare_head(model, config)
    device = next(model.parameters()).device
    for site in sites:
        adapter = _make_insert(site, config, generator).to(device)
        host, _, name = site.name.rpartition(".")
        model.get_submodule(host).add_module(name, adapter)
        adapter.attach(model)
        adapter.train(model.training)
    _call_fused_maps_as_modules(model, sites)
    return sites


def inserts(model: nn.Module) -> dict[str, Insert]:
    """The adapters of a model by site name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Insert)}


def remove(model: nn.Module) -> None:
    """Take every adapter and its hooks out of the model; the head and the frozen base stay."""
    detach_all(model)
    for name in inserts(model):
        host, _, child = name.rpartition(".")
        delattr(model.get_submodule(host), child)


def set_head(model: nn.Module, head: nn.Module) -> None:
    """Make `head` the model's classifier, also for the second token of a distilled ViT.

    Args:
        model: A model with the attribute `head`, changed in place.
        head: Map from (..., features) to (..., classes).
    """
    model.head = head
    # PiT has the attribute without a distilled head, as None, and takes its value for the answer.
    if getattr(model, "head_dist", None) is not None:
        # The distilled ViT averages the logits of two heads; one shared head sees the mean of both tokens.
        model.head_dist = head


def trained_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Everything that is not the frozen base: the adapters by site name and, if there is one, the `head`."""
    modules: dict[str, nn.Module] = dict(inserts(model))
    head = getattr(model, "head", None)
    if isinstance(head, nn.Module) and head.state_dict():
        modules["head"] = head
    return modules


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Latent adapter weights and the head's tensors, by full name: what a checkpoint of training holds."""
    modules = trained_modules(model)
    return {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `adapter_state` returned.

    Args:
        model: A model with the same adapters and head, changed in place.
        state: Tensors by full name.

    Raises:
        ArtifactError: A tensor is missing, unexpected or of another shape.
    """
    _check_names(adapter_state(model).keys(), state.keys(), "checkpoint")
    for name, module in trained_modules(model).items():
        own = {key: state[f"{name}.{key}"] for key in module.state_dict()}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise ArtifactError(
                f"the checkpoint does not fit {name}: {' '.join(str(error).split())}"
            ) from error


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the frozen base alone, without adapters and head."""
    apart = tuple(f"{name}." for name in [*inserts(model), "head", "head_dist"])
    return {key: value for key, value in model.state_dict().items() if not key.startswith(apart)}


def pack(model: nn.Module) -> tuple[dict[str, PackedMatrix], dict[str, Tensor]]:
    """The adapters and the head in the form that the artifact stores.

    Args:
        model: A model with adapters, a head, or both.

    Returns:
        Packed matrices by module name (`<site>.down`, `<site>.up`, a binary `head`), and dense float32
        tensors by full name (`head.weight`, `head.bias`, and `<site>.down.weight` where adapters have 32
        bits).

    Raises:
        InputError: There is neither an adapter nor a head.
    """
    packed: dict[str, PackedMatrix] = {}
    dense: dict[str, Tensor] = {}
    for name, projection in _projections(model).items():
        stored = pack_projection(projection)
        if isinstance(stored, Tensor):
            dense[f"{name}.weight"] = stored
        else:
            packed[name] = stored
    head = trained_modules(model).get("head")
    if isinstance(head, nn.Linear) and head.bias is not None:
        dense["head.bias"] = head.bias.detach().float().cpu().clone()
    if not packed and not dense:
        raise InputError(
            f"{type(model).__name__} holds neither adapters nor a head: there is nothing to pack"
        )
    return packed, dense


def load_packed(
    model: nn.Module,
    packed: Mapping[str, PackedMatrix],
    dense: Mapping[str, Tensor],
    scaling: Mapping[str, float] | None = None,
    as_dense: bool = False,
) -> None:
    """Replace the trainable maps of a model's adapters and head by the ones of an artifact.

    Args:
        model: A model into which `insert` put the artifact's adapters, changed in place. The artifact's
            shapes decide the width of each bottleneck.
        packed, dense: As returned by `pack`; a dense tensor of any other name goes to the parameter of
            that name.
        scaling: Factor by site, where sites differ; the configured one holds elsewhere.
        as_dense: Dequantise into `nn.Linear` instead of computing from the packed bits.

    Raises:
        ArtifactError: A matrix is missing, belongs to no adapter of this model, or has the wrong shape.
    """
    wanted = _projections(model)
    given = {
        *packed,
        *(name.removesuffix(".weight") for name in dense if name.removesuffix(".weight") in wanted),
    }
    _check_names(wanted.keys(), given, "artifact")
    make = partial(_projection_from, packed=packed, dense=dense, as_dense=as_dense)
    device = next(model.parameters()).device
    for name, adapter in inserts(model).items():
        down, up = make(f"{name}.down"), make(f"{name}.up")
        _check_shapes(adapter.site, down, up)
        adapter.down, adapter.up = down.to(device), up.to(device)
        adapter.scale = (scaling or {}).get(name, adapter.scale)
    if "head" in wanted:
        _load_head(model, make("head").to(device), dense.get("head.bias"))
    _load_extra(model, {key: value for key, value in dense.items() if key.rpartition(".")[0] not in wanted})
    model.requires_grad_(False)


@torch.no_grad()
def merge_into_base(model: nn.Module) -> None:
    """Add every lora adapter to the weight of its linear map and take it out: the same outputs, no extra
    work.

    Args:
        model: A model whose adapters are all lora, changed in place. Quantised maps merge with their
            dequantised weights.

    Raises:
        InputError: An adapter has a nonlinearity or is not beside a linear map, so that no weight can hold
            it.
    """
    for name, adapter in inserts(model).items():
        linear = model.get_submodule(adapter.site.add)
        if adapter.activation != "identity" or not is_linear(linear):
            raise InputError(
                f"{name} cannot be merged: only lora beside a linear map is a change of its weight"
            )
        up, down = effective_weight(adapter.up).double(), effective_weight(adapter.down).double()
        rows = slice(adapter.site.offset, adapter.site.offset + adapter.site.out_features)
        # One rounding at the end: the sum is made in float64.
        weight = linear_weight(linear)
        weight[rows] = (weight[rows].double() + adapter.scale * (up @ down)).to(weight.dtype)
    remove(model)


def _make_insert(site: Site, config: AdapterConfig, generator: torch.Generator | None) -> Insert:
    make = partial(make_projection, bits=config.bits, kind=config.codebook, gradient=config.gradient)
    down, up = make(site.in_features, config.bottleneck), make(config.bottleneck, site.out_features)
    initialize_linear(_weight(down), site.in_features, generator)
    initialize_up(_weight(up), config.bits, generator)
    activation = "identity" if config.method == "lora" else "relu"
    return Insert(site, down, up, activation, config.dropout, config.scale)  # type: ignore[arg-type]


def _weight(projection: Projection) -> Tensor:
    if isinstance(projection, PackedLinear):
        raise InputError("packed bits have no latent weight to initialise")
    return projection.weight


def _prepare_head(model: nn.Module, config: AdapterConfig) -> None:
    head = getattr(model, "head", None)
    if config.head == "binary":
        if not isinstance(head, nn.Linear):
            raise ConfigError(
                f"adapter.head binary needs a linear classifier, and {type(model).__name__} has none"
            )
        binary = FakeQuantLinear(head.in_features, head.out_features, 1, config.codebook, config.gradient)
        binary.weight.data.copy_(head.weight.data)
        set_head(model, binary.to(head.weight.device))
    elif isinstance(head, nn.Module):
        head.requires_grad_(True)


def _call_fused_maps_as_modules(model: nn.Module, sites: list[Site]) -> None:
    """Make timm's BEiT and EVA call their fused map; by default they read its weight, unseen by hooks."""
    for site in sites:
        host = model.get_submodule(site.add.rpartition(".")[0])
        if hasattr(host, "qkv_bias_separate"):
            host.qkv_bias_separate = True  # type: ignore[assignment]


def _projections(model: nn.Module) -> dict[str, Projection]:
    found: dict[str, Projection] = {}
    for name, module in trained_modules(model).items():
        if isinstance(module, Insert):
            found[f"{name}.down"], found[f"{name}.up"] = module.down, module.up
        elif isinstance(module, Projection):
            found[name] = module
        else:
            raise InputError(f"{name} is a {type(module).__name__}: only linear classifiers can be stored")
    return found


def _projection_from(
    name: str, packed: Mapping[str, PackedMatrix], dense: Mapping[str, Tensor], as_dense: bool
) -> Projection:
    if name not in packed:
        return dense_projection(dense[f"{name}.weight"])
    if as_dense:
        return dense_projection(torch.as_tensor(packed[name].dequantize()))
    return PackedLinear(packed[name])


def _check_names(wanted: Collection[str], given: Collection[str], source: str) -> None:
    missing, unknown = set(wanted) - set(given), set(given) - set(wanted)
    if missing or unknown:
        listed = [f"missing {name}" for name in sorted(missing)] + [
            f"unexpected {name}" for name in sorted(unknown)
        ]
        more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
        raise ArtifactError(f"the {source} does not fit the model's adapters: {', '.join(listed[:4])}{more}")


def _check_shapes(site: Site, down: Projection, up: Projection) -> None:
    got = (down.in_features, down.out_features, up.in_features, up.out_features)
    if got[0] != site.in_features or got[3] != site.out_features or got[1] != got[2]:
        raise ArtifactError(
            f"{site.name}: expected down (h, {site.in_features}) and up ({site.out_features}, h), "
            f"got ({got[1]}, {got[0]}) and ({got[3]}, {got[2]})"
        )


def _load_head(model: nn.Module, head: Projection, bias: Tensor | None) -> None:
    present = _projections(model)["head"]
    shape = (present.in_features, present.out_features)
    if (head.in_features, head.out_features) != shape:
        raise ArtifactError(
            f"head: expected {shape[1]} classes of {shape[0]} features, "
            f"got {head.out_features} of {head.in_features}"
        )
    if bias is not None and isinstance(head, nn.Linear):
        head.bias = nn.Parameter(bias.detach().clone().to(head.weight.device), requires_grad=False)
    set_head(model, head)


@torch.no_grad()
def _load_extra(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise ArtifactError(
                f"{name} {tuple(value.shape)} of the artifact is no parameter of {type(model).__name__}"
            )
        parameters[name].copy_(value)
