"""The adapter site of a bank: one module in the host model whose rows each use their own packed adapter."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from petkit.errors import InputError
from petkit.models.inserts import Insert, Site
from petkit.ops import AdapterBank, adapter_bank


class Request:
    """Which adapter each sample of the batch in flight uses: slot numbers, -1 for none."""

    def __init__(self) -> None:
        self.slots = torch.empty(0, dtype=torch.int64)
        self._rows: dict[int, Tensor] = {}

    def begin(self, slots: Tensor) -> None:
        """Start a batch.

        Args:
            slots: int64 (batch,).
        """
        self.slots, self._rows = slots, {}

    def end(self) -> None:
        """Forget the batch."""
        self.begin(self.slots[:0])

    def row_slots(self, x: Tensor) -> Tensor:
        """Slot of every row of a site's input.

        Args:
            x: (batch, ..., features), or (batch * windows, ..., features) with the windows of a sample
                together.

        Returns:
            int64 (rows,), kept for the sites that follow.

        Raises:
            InputError: the first axis is no multiple of the batch.
        """
        batch, rows = len(self.slots), x.shape[:-1].numel()
        if batch == 0 or x.shape[0] % batch:
            raise InputError(
                f"an adapter's input must have {batch} samples on its first axis, got {x.shape[0]}"
            )
        if rows not in self._rows:
            self._rows[rows] = self.slots.repeat_interleave(rows // batch)
        return self._rows[rows]


class BankInsert(Insert):
    """An Insert that holds one packed adapter per slot and adds each sample's own.

    Args:
        site: where it sits.
        hidden: bottleneck width of every adapter.
        bits: 1, 2, 4 or 8.
        kind: codebook.
        activation: "relu" or "identity".
        request: the batch in flight, shared by all sites of a model.
        device: where the packed weights lie.
    """

    def __init__(
        self,
        site: Site,
        hidden: int,
        bits: int,
        kind: str,
        activation: Literal["relu", "identity"],
        request: Request,
        device: torch.device,
    ) -> None:
        nn.Module.__init__(self)
        self.site, self.activation, self._captured = site, activation, None
        self.request = request
        self.bank = AdapterBank.empty(
            0, hidden, site.in_features, site.out_features, bits, kind, activation, device
        )

    def forward(self, x: Tensor) -> Tensor:
        """The addition (..., out) for an input x (..., in), each sample by its own adapter."""
        slots = self.request.row_slots(x)
        addition = adapter_bank(x.reshape(-1, x.shape[-1]), slots, self.bank)
        return addition.reshape(*x.shape[:-1], self.site.out_features)

    def extra_repr(self) -> str:
        """Show the shape of the bank."""
        bank = self.bank
        return f"slots={bank.n}, hidden={bank.hidden}, bits={bank.bits}, activation={self.activation}"
