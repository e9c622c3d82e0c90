"""The size ledger: where every byte of an adapter file goes, and what the same adapter costs in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Protocol

from petkit.artifacts.packed import PackedMatrix


class Shaped(Protocol):
    """A dense tensor, as far as its size matters: torch, NumPy or an unread tensor of a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        ...


@dataclass(frozen=True)
class Entry:
    """Bytes of one module.

    Args:
        module: name, such as `blocks.0.adaptformer.down` or `head`.
        parameters: weights and biases it stands for.
        codes: bytes of packed codes.
        scales: bytes of shift and scale.
        dense: bytes of float tensors that are stored as they are.
    """

    module: str
    parameters: int
    codes: int
    scales: int
    dense: int

    @property
    def nbytes(self) -> int:
        """All bytes of the module."""
        return self.codes + self.scales + self.dense

    def payload(self) -> dict[str, str | int]:
        """The entry as JSON values, its bytes summed."""
        return {**asdict(self), "bytes": self.nbytes}


@dataclass(frozen=True)
class Ledger:
    """Bytes of a whole adapter.

    Args:
        entries: one a module, in the order of the file.
        header: bytes of the file that are no tensor: names, shapes, padding.
        full_model_bytes: float32 bytes of the whole model with this head, or None when it is not known.
    """

    entries: tuple[Entry, ...]
    header: int = 0
    full_model_bytes: int | None = None

    @property
    def parameters(self) -> int:
        """Trained parameters."""
        return sum(entry.parameters for entry in self.entries)

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return self.header + sum(entry.nbytes for entry in self.entries)

    @property
    def float32_bytes(self) -> int:
        """Bytes that the same parameters take in float32, without a header."""
        return 4 * self.parameters

    def summary(self) -> dict[str, int | float | None]:
        """Totals by name, for a table or JSON; ratios say how many times smaller the file is."""
        full = self.full_model_bytes
        return {
            "bytes": self.nbytes,
            "codes_bytes": sum(entry.codes for entry in self.entries),
            "shift_scale_bytes": sum(entry.scales for entry in self.entries),
            "head_bytes": sum(entry.nbytes for entry in self.entries if entry.module == "head"),
            "header_bytes": self.header,
            "parameters": self.parameters,
            "float32_bytes": self.float32_bytes,
            "ratio_to_float32": self.float32_bytes / self.nbytes,
            "full_model_bytes": full,
            "ratio_to_full_model": None if full is None else full / self.nbytes,
        }


def size_against(ratio: float, what: str) -> str:
    """Say how a file's size compares with that of something else.

    Args:
        ratio: the other size divided by the file's.
        what: the other thing, such as `in float32`.

    Returns:
        `4.2 times smaller than in float32`, `1.1 times larger than in float32` or `as large as in float32`.
    """
    factor = ratio if ratio >= 1 else 1 / ratio
    # From a hundred on a decimal says nothing.
    text = f"{factor:.1f}" if factor < 99.95 else f"{factor:,.0f}"
    if text == "1.0":
        return f"as large as {what}"
    return f"{text} times {'smaller' if ratio > 1 else 'larger'} than {what}"


def make_ledger(
    packed: Mapping[str, PackedMatrix],
    dense: Mapping[str, Shaped],
    file_bytes: int | None = None,
    full_model_bytes: int | None = None,
) -> Ledger:
    """Count the bytes of an adapter's tensors.

    Args:
        packed: quantised matrices by module name.
        dense: float32 tensors by tensor name, such as `head.weight`.
        file_bytes: size of the file that holds them; None counts no header.
        full_model_bytes: float32 bytes of the whole model with this head, what full fine-tuning would store;
            None leaves that ratio out.

    Returns:
        The ledger; packed modules come first, in their order.

    Source:
        The file format of petkit (docs/format.md).
    """
    entries = {
        name: Entry(name, prod(matrix.shape), matrix.stream.size, 8, 0) for name, matrix in packed.items()
    }
    for name, tensor in dense.items():
        module = name.rpartition(".")[0] or name
        old = entries.get(module, Entry(module, 0, 0, 0, 0))
        count = prod(tensor.shape)
        entries[module] = Entry(module, old.parameters + count, old.codes, old.scales, old.dense + 4 * count)
    tensors = sum(entry.nbytes for entry in entries.values())
    header = 0 if file_bytes is None else file_bytes - tensors
    return Ledger(tuple(entries.values()), header, full_model_bytes)
