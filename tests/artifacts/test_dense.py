import numpy as np
import pytest
import torch

from petkit.artifacts.dense import all_finite, to_float32, to_raw, to_torch
from petkit.errors import ArtifactError

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_round_trip(dtype, shape):
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    again = to_torch(to_raw(tensor))
    assert again.dtype == dtype
    assert torch.equal(again, tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_float32_holds_the_others_exactly(dtype):
    tensor = torch.tensor([1e-7, -3.14159, 65504.0]).to(dtype)
    assert np.array_equal(to_float32(to_raw(tensor)), tensor.float().numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("value", "finite"), [(1.0, True), (float("nan"), False), (float("-inf"), False)])
def test_finds_what_is_not_finite(dtype, value, finite):
    assert all_finite(to_raw(torch.tensor([0.0, value], dtype=dtype))) is finite


def test_integers_are_no_weights():
    with pytest.raises(ArtifactError, match="expected F32, F16 or BF16 weights, got I64"):
        to_float32(to_raw(torch.ones(2, dtype=torch.int64)))
    with pytest.raises(ArtifactError, match=r"dtype torch\.complex64 cannot be stored"):
        to_raw(torch.ones(2, dtype=torch.complex64))
