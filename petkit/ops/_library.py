"""Loads the compiled extension or defines the same operators in pure torch, and says which runs and why."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from petkit.errors import InputError, MissingError

KERNELS_VARIABLE = "PETKIT_CPU_KERNELS"

# torch leaves this class untyped.
_Library: Any = torch.library.Library


class _State:
    """What was loaded. One instance, filled by `_load` when this module is first imported."""

    compiled: Any = None
    cuda: Any = None
    why: str = ""
    cuda_why: str = ""
    kernels: str = "torch"


_state = _State()
_defaults: dict[str, Callable[..., Any]] = {}
_fragment: Any = None
_implementations = _Library("petkit", "IMPL")
_override: Any = None


def define(schema: str, default: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Give an operator its pure-torch default and its fake; define it first when nothing compiled did.

    Args:
        schema: the operator's schema as in cpp/library.cpp, e.g. `"f(Tensor x) -> Tensor"`.
        default: runs on every device that has no compiled kernel.
        fake: gives outputs of the right shape and dtype without data.
    """
    name = schema.split("(", 1)[0]
    if _state.compiled is None:
        _definitions().define(schema)
    _implementations.impl(name, default, "CompositeExplicitAutograd")
    torch.library.register_fake(f"petkit::{name}", fake, lib=_implementations)
    _defaults[name] = default


def differentiable_once(name: str, instead: str) -> None:
    """Refuse a derivative of an operator's gradient, which torch would silently take for zero.

    Args:
        name: of the operator; its gradient is the operator `name_backward`.
        instead: what to do, as the end of the message.
    """

    def refuse(ctx: Any, *_: Any) -> None:
        raise InputError(f"{name} can be differentiated once: for a gradient of its gradient {instead}")

    torch.library.register_autograd(f"petkit::{name}_backward", refuse)


def default_of(name: str) -> Callable[..., Any]:
    """The pure-torch default of an operator of petkit.ops; a peer for benchmarks."""
    # Defining it is what its module does when it is imported.
    import_module(f"petkit.ops.{name}")
    return _defaults[name]


def backend() -> dict[str, Any]:
    """Which kernels run the operators, and why.

    Returns:
        `compiled` (is petkit._C loaded), `cpu_kernels` (avx512, avx2, neon, scalar or torch), `available`
        (what runs here), `why` (one sentence), `cuda` (is petkit._C_cuda loaded), `cuda_why`, and of the
        build `compiler`, `torch_built_with`, `instruction_sets` and `cuda_archs`.
    """
    facts = _state.compiled.build_facts() if _state.compiled else {}
    return {
        "compiled": _state.compiled is not None,
        "cpu_kernels": _state.kernels,
        "available": available_kernels(),
        "why": _state.why,
        "cuda": _state.cuda is not None,
        "cuda_why": _state.cuda_why,
        "compiler": facts.get("compiler"),
        "torch_built_with": facts.get("torch"),
        "instruction_sets": facts.get("instruction_sets", []),
        "cuda_archs": _state.cuda.build_facts()["archs"] if _state.cuda else [],
    }


def available_kernels() -> list[str]:
    """Names that `use_kernels` accepts on this machine, the preferred one first."""
    compiled = list(_state.compiled.available_kernels()) if _state.compiled else []
    return [*compiled, "torch"]


def use_kernels(name: str) -> None:
    """Switch the CPU kernels of this process; for tests and benchmarks.

    Args:
        name: one of `available_kernels()`.

    Raises:
        MissingError: the name is not available here.
    """
    global _override
    if name not in available_kernels():
        names = ", ".join(available_kernels())
        raise MissingError(f"{KERNELS_VARIABLE} must be one of {names} on this machine, got {name!r}")
    if _override is not None:
        _override._destroy()
        _override = None
    if name != "torch":
        _state.compiled.use_kernels(name)
    elif _state.compiled is not None:
        _override = _Library("petkit", "IMPL")
        for op, default in _defaults.items():
            _override.impl(op, default, "CPU", allow_override=True)
    _state.kernels = name


def _definitions() -> Any:
    global _fragment
    if _fragment is None:
        _fragment = _Library("petkit", "DEF")
    return _fragment


def _load() -> None:
    wanted = os.environ.get(KERNELS_VARIABLE, "")
    if wanted == "torch":
        _state.why = f"{KERNELS_VARIABLE}=torch asks for the pure-torch defaults"
        return
    try:
        compiled = import_module("petkit._C")
    except ImportError as error:
        _state.why = f"petkit._C does not load ({error}); pure-torch defaults run instead"
    else:
        _state.compiled = compiled
        _state.kernels = compiled.current_kernels()
        _state.why = "the best instruction set that this machine and the build share"
    if wanted:
        use_kernels(wanted)
        _state.why = f"{KERNELS_VARIABLE}={wanted}"
    _load_cuda()


def _load_cuda() -> None:
    if torch.version.cuda is None:
        _state.cuda_why = "this torch has no CUDA"
        return
    try:
        _state.cuda = import_module("petkit._C_cuda")
    except ImportError as error:
        _state.cuda_why = f"petkit._C_cuda does not load ({error}); pure-torch defaults run on CUDA tensors"
    else:
        _state.cuda_why = "compiled kernels run on CUDA tensors"


_load()
