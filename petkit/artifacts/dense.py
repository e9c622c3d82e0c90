"""Dense tensors in three forms: torch (imported when it is needed), NumPy, and the raw bytes of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from petkit.artifacts.tensor_file import RawTensor
from petkit.errors import ArtifactError

if TYPE_CHECKING:
    import torch

_NUMPY = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
}  # fmt: skip
_NAMES = {name: numpy_name for numpy_name, name in _NUMPY.items()}


def to_raw(tensor: torch.Tensor | NDArray[Any]) -> RawTensor:
    """Return the raw form; it shares memory with a tensor or array that is contiguous and on the CPU."""
    if not isinstance(tensor, np.ndarray):
        return _torch_to_raw(tensor)
    name = _NUMPY.get(tensor.dtype.name)
    if name is None or tensor.dtype.byteorder == ">":
        raise ArtifactError(
            f"dtype {tensor.dtype} cannot be stored: use one of {', '.join(_NUMPY)}, little-endian"
        )
    return RawTensor(name, tensor.shape, np.ascontiguousarray(tensor).reshape(-1).view(np.uint8))


def _torch_to_raw(tensor: torch.Tensor) -> RawTensor:
    import torch

    name = _NUMPY.get(str(tensor.dtype).removeprefix("torch."))
    if name is None:
        raise ArtifactError(f"dtype {tensor.dtype} cannot be stored: use one of {', '.join(_NUMPY)}")
    # A tensor of no dimensions cannot be viewed as bytes, hence the reshape first.
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return RawTensor(name, tuple(tensor.shape), flat.numpy())


def to_torch(raw: RawTensor) -> torch.Tensor:
    """Return a new torch tensor of the raw tensor's dtype and shape."""
    import torch

    dtype: torch.dtype = getattr(torch, _NAMES[raw.dtype])
    # An empty array comes from NumPy with a stride of 0, which torch refuses to view as another dtype.
    if not raw.data.size:
        return torch.empty(raw.shape, dtype=dtype)
    return torch.from_numpy(raw.data.copy()).view(dtype).reshape(raw.shape)


def to_float32(raw: RawTensor) -> NDArray[np.float32]:
    """Return an F32, F16 or BF16 tensor as a float32 array; exact, since float32 holds all three."""
    if raw.dtype == "BF16":
        widened = raw.data.view(np.uint16).astype(np.uint32) << np.uint32(16)
        return widened.view(np.float32).reshape(raw.shape)
    if raw.dtype not in ("F32", "F16"):
        raise ArtifactError(f"expected F32, F16 or BF16 weights, got {raw.dtype}")
    return raw.data.view(_NAMES[raw.dtype]).astype(np.float32).reshape(raw.shape)


def all_finite(raw: RawTensor) -> bool:
    """Tell whether a raw tensor holds no NaN and no infinity; integers and booleans never do."""
    if raw.dtype in ("F32", "F16", "F64"):
        return bool(np.isfinite(raw.data.view(_NAMES[raw.dtype])).all())
    return raw.dtype != "BF16" or bool(np.isfinite(to_float32(raw)).all())
