"""`adapter_bank`: one batch whose rows each use their own low-bit adapter, and the bank of the adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops import _library
from petkit.ops._checks import check_float, check_tensor, row_bytes
from petkit.ops._packing import decode_rows, values_of
from petkit.ops.lowbit_codebook import levels_on
from petkit.ops.lowbit_dequantize import transpose_packed
from petkit.ops.lowbit_quantize import lowbit_quantize

NO_GRADIENT = "adapter_bank has no gradient, a bank serves finished adapters: use torch.no_grad()"
CONSTANTS = ("down_shift", "down_scale", "up_shift", "up_scale", "scaling")


class AdapterBank:
    """The packed weights of n adapters of one shape: y = scaling * W_up act(W_down x).

    A slot that was never set, or was cleared, gives zeros. `down` is uint8 (n, hidden, row_bytes(in)), `up`
    is kept transposed as (n, hidden, row_bytes(out)), `constants` is float32 (n, 5) in the order of
    `CONSTANTS`.
    """

    def __init__(
        self,
        down: Tensor,
        up: Tensor,
        constants: Tensor,
        in_features: int,
        out_features: int,
        bits: int,
        kind: str = "normal_l1",
        activation: str = "relu",
    ) -> None:
        if activation not in ("relu", "identity"):
            raise InputError(f"activation must be relu or identity, got {activation!r}")
        levels_on(bits, kind, down.device)
        self.down, self.up, self.constants = down, up, constants
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.kind, self.activation = bits, kind, activation

    @classmethod
    def empty(
        cls,
        capacity: int,
        hidden: int,
        in_features: int,
        out_features: int,
        bits: int,
        kind: str = "normal_l1",
        activation: str = "relu",
        device: torch.device | str = "cpu",
    ) -> AdapterBank:
        """A bank of `capacity` empty slots.

        Args:
            capacity: number of slots.
            hidden: bottleneck width.
            in_features: width of x.
            out_features: width of y.
            bits: 1, 2, 4 or 8.
            kind: the codebook, see `lowbit_codebook`.
            activation: "relu" or "identity", between down and up.
            device: where the bank lies.

        Returns:
            The bank; every slot gives zeros.
        """
        down = torch.zeros((capacity, hidden, row_bytes(in_features, bits)), dtype=torch.uint8, device=device)
        up = torch.zeros((capacity, hidden, row_bytes(out_features, bits)), dtype=torch.uint8, device=device)
        constants = torch.zeros((capacity, len(CONSTANTS)), device=device)
        return cls(down, up, constants, in_features, out_features, bits, kind, activation)

    @classmethod
    def from_dense(
        cls,
        down: Tensor,
        up: Tensor,
        scaling: Tensor,
        bits: int,
        kind: str = "normal_l1",
        activation: str = "relu",
    ) -> AdapterBank:
        """Quantise n dense adapters into a bank.

        Args:
            down: (n, hidden, in) float32, bfloat16 or float16.
            up: (n, out, hidden).
            scaling: (n,), the factor on each adapter's output.
            bits: 1, 2, 4 or 8.
            kind: the codebook, see `lowbit_codebook`.
            activation: "relu" or "identity", between down and up.

        Returns:
            The bank, on down's device.

        Raises:
            InputError: shapes that do not fit, or weights that cannot be quantised.
        """
        if (
            down.dim() != 3
            or up.dim() != 3
            or up.shape[::2] != down.shape[:2]
            or scaling.shape != down.shape[:1]
        ):
            raise InputError(
                "down, up and scaling must be (n, hidden, in), (n, out, hidden) and (n,), "
                f"got {tuple(down.shape)}, {tuple(up.shape)} and {tuple(scaling.shape)}"
            )
        n, hidden, in_features = down.shape
        bank = cls.empty(n, hidden, in_features, up.shape[1], bits, kind, activation, down.device)
        for index in range(n):
            packed_down, packed_up = (lowbit_quantize(dense[index], bits, kind) for dense in (down, up))
            bank.set(index, *packed_down, *packed_up, scaling[index])
        return bank

    @property
    def n(self) -> int:
        """Number of slots."""
        return self.down.shape[0]

    @property
    def hidden(self) -> int:
        """Bottleneck width."""
        return self.down.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights and their constants."""
        return self.down.nbytes + self.up.nbytes + self.constants.nbytes

    def set(
        self,
        index: int,
        down_packed: Tensor,
        down_shift: Tensor | float,
        down_scale: Tensor | float,
        up_packed: Tensor,
        up_shift: Tensor | float,
        up_scale: Tensor | float,
        scaling: Tensor | float = 1.0,
    ) -> None:
        """Put one adapter into a slot.

        Args:
            index: the slot.
            down_packed: uint8 (hidden, row_bytes(in)), as `lowbit_quantize` gives it.
            down_shift: float or scalar.
            down_scale: float or scalar.
            up_packed: uint8 (out, row_bytes(hidden)).
            up_shift: float or scalar.
            up_scale: float or scalar.
            scaling: the factor on the adapter's output.

        Raises:
            InputError: a slot that is not there, or shapes that do not fit.
        """
        numbers = (down_shift, down_scale, up_shift, up_scale, scaling)
        constants = torch.tensor([[float(number) for number in numbers]])
        self.set_many([index], down_packed[None], up_packed[None], constants)

    def set_many(
        self, indices: Sequence[int] | Tensor, down_packed: Tensor, up_packed: Tensor, constants: Tensor
    ) -> None:
        """Put many adapters into their slots at once.

        Args:
            indices: the k slots.
            down_packed: uint8 (k, hidden, row_bytes(in)).
            up_packed: uint8 (k, out, row_bytes(hidden)).
            constants: float32 (k, 5), columns as in `CONSTANTS`.

        Raises:
            InputError: a slot that is not there, shapes that do not fit, or a constant that is not finite.
        """
        slots = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
        self._check_slots(slots)
        expected = {
            "down_packed": (down_packed, (len(slots), self.hidden, row_bytes(self.in_features, self.bits))),
            "up_packed": (up_packed, (len(slots), self.out_features, row_bytes(self.hidden, self.bits))),
            "constants": (constants, (len(slots), len(CONSTANTS))),
        }
        for name, (tensor, shape) in expected.items():
            if tuple(tensor.shape) != shape:
                raise InputError(f"{name} must be {shape} for this bank, got {tuple(tensor.shape)}")
        if not bool(torch.isfinite(constants).all()):
            raise InputError(f"constants ({', '.join(CONSTANTS)}) must be finite, got {constants.tolist()}")
        device = self.down.device
        slots = slots.to(device)
        # index_copy_ moves whole slots; indexed assignment moves single bytes, on all threads.
        self.down.index_copy_(0, slots, down_packed.to(device))
        self.up.index_copy_(0, slots, transpose_packed(up_packed.to(device), self.bits, self.hidden))
        self.constants.index_copy_(0, slots, constants.to(device, torch.float32))

    def clear(self, index: int) -> None:
        """Empty a slot: its rows give zeros from now on.

        Args:
            index: the slot.

        Raises:
            InputError: a slot that is not there.
        """
        self._check_slots(torch.tensor([index]))
        for tensor in (self.down, self.up, self.constants):
            tensor[index] = 0

    def resize(self, capacity: int) -> None:
        """Change the number of slots; those beyond the new end are dropped, new ones are empty.

        Args:
            capacity: the new number of slots.
        """
        for name in ("down", "up", "constants"):
            old: Tensor = getattr(self, name)
            new = old.new_zeros((capacity, *old.shape[1:]))
            new[: len(old)] = old[:capacity]
            setattr(self, name, new)

    def to(self, device: torch.device | str) -> AdapterBank:
        """The same bank on a device.

        Args:
            device: where to.

        Returns:
            A new bank; it shares memory when the device is the same.
        """
        down, up, constants = (tensor.to(device) for tensor in (self.down, self.up, self.constants))
        sizes = (self.in_features, self.out_features, self.bits)
        return AdapterBank(down, up, constants, *sizes, self.kind, self.activation)

    def _check_slots(self, slots: Tensor) -> None:
        wrong = slots[(slots < 0) | (slots >= self.n)]
        if len(wrong):
            raise InputError(f"index must be a slot of this bank, 0 to {self.n - 1}, got {wrong.tolist()}")


def adapter_bank(x: Tensor, adapter_ids: Tensor, bank: AdapterBank, add_to: Tensor | None = None) -> Tensor:
    """Row i of the result is the output of adapter `adapter_ids[i]` on row i of x.

    Args:
        x: (tokens, in) float32, bfloat16 or float16.
        adapter_ids: integers (tokens,); -1 means no adapter.
        bank: the adapters, on x's device.
        add_to: (tokens, out) of x's dtype, or None for a new tensor. The outputs are added to it in place,
            which saves writing and reading them once more, and it is returned.

    Returns:
        (tokens, out) of x's dtype, summed in float32; zeros (nothing added) where the id is -1.

    Raises:
        InputError: shapes, dtypes or ids that do not fit; and, on backward, always: there is no gradient.
    """
    check_float("x", x)
    check_tensor("adapter_ids", adapter_ids)
    if not isinstance(bank, AdapterBank):
        raise InputError(f"bank, the third argument, must be an AdapterBank, got {type(bank).__name__}")
    if x.dim() != 2 or x.shape[1] != bank.in_features or adapter_ids.shape != x.shape[:1]:
        raise InputError(
            f"x and adapter_ids must be (tokens, {bank.in_features}) and (tokens,), "
            f"got {tuple(x.shape)} and {tuple(adapter_ids.shape)}"
        )
    if adapter_ids.is_floating_point() or adapter_ids.dtype == torch.bool:
        raise InputError(f"adapter_ids must be integers, got {adapter_ids.dtype}")
    ids = adapter_ids.to(torch.int64)
    _check_ids(ids, bank.n)
    levels, relu = levels_on(bank.bits, bank.kind, x.device), bank.activation == "relu"
    packed = (bank.down, bank.up, bank.constants, levels, bank.bits)
    if add_to is None:
        y: Tensor = torch.ops.petkit.adapter_bank(x, ids, *packed, bank.out_features, relu)
        return y
    _check_target(add_to, x, bank.out_features)
    torch.ops.petkit.adapter_bank_add_(add_to, x, ids, *packed, relu)
    return add_to


def _check_target(add_to: Tensor, x: Tensor, out_features: int) -> None:
    if add_to.shape != (x.shape[0], out_features) or add_to.dtype != x.dtype:
        raise InputError(
            f"add_to must be {x.dtype} ({x.shape[0]}, {out_features}), "
            f"got {add_to.dtype} {tuple(add_to.shape)}"
        )
    if torch.is_grad_enabled() and (add_to.requires_grad or x.requires_grad):
        raise InputError(NO_GRADIENT)


def _check_ids(ids: Tensor, n: int) -> None:
    # Reading ids of a device would stall it, and a compiler's trace has no ids to read.
    if torch.compiler.is_compiling() or ids.device.type != "cpu" or ids.numel() == 0:
        return
    low, high = (int(end) for end in ids.aminmax())
    if low < -1 or high >= n:
        raise InputError(f"adapter_ids must lie between -1 and {n - 1}, got {low if low < -1 else high}")


def _default(
    x: Tensor,
    adapter_ids: Tensor,
    down: Tensor,
    up: Tensor,
    constants: Tensor,
    levels: Tensor,
    bits: int,
    out_features: int,
    relu: bool,
) -> Tensor:
    y = x.new_zeros((x.shape[0], out_features))
    for index in torch.unique(adapter_ids).tolist():
        if index < 0:
            continue
        rows = (adapter_ids == index).nonzero()[:, 0]
        down_shift, down_scale, up_shift, up_scale, scaling = constants[index]
        wide_down = decode_rows(down[index], values_of(down_shift, down_scale, levels), bits, x.shape[1])
        wide_up = decode_rows(up[index], values_of(up_shift, up_scale, levels), bits, out_features)
        hidden = x[rows].float() @ wide_down.T
        hidden = hidden.relu() if relu else hidden
        y[rows] = ((hidden * scaling) @ wide_up).to(x.dtype)
    return y


def _fake(
    x: Tensor,
    adapter_ids: Tensor,
    down: Tensor,
    up: Tensor,
    constants: Tensor,
    levels: Tensor,
    bits: int,
    out_features: int,
    relu: bool,
) -> Tensor:
    return x.new_empty((x.shape[0], out_features))


def _add_default(
    y: Tensor,
    x: Tensor,
    adapter_ids: Tensor,
    down: Tensor,
    up: Tensor,
    constants: Tensor,
    levels: Tensor,
    bits: int,
    relu: bool,
) -> None:
    y += _default(x, adapter_ids, down, up, constants, levels, bits, y.shape[1], relu)


def _add_fake(
    y: Tensor,
    x: Tensor,
    adapter_ids: Tensor,
    down: Tensor,
    up: Tensor,
    constants: Tensor,
    levels: Tensor,
    bits: int,
    relu: bool,
) -> None:
    pass


def _backward(ctx: Any, grad: Tensor) -> None:
    raise InputError(NO_GRADIENT)


_library.define(
    "adapter_bank(Tensor x, Tensor adapter_ids, Tensor down, Tensor up, Tensor constants, Tensor levels, "
    "int bits, int out_features, bool relu) -> Tensor",
    _default,
    _fake,
)
_library.define(
    "adapter_bank_add_(Tensor(a!) y, Tensor x, Tensor adapter_ids, Tensor down, Tensor up, Tensor constants, "
    "Tensor levels, int bits, bool relu) -> ()",
    _add_default,
    _add_fake,
)
torch.library.register_autograd("petkit::adapter_bank", _backward)
