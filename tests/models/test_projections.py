"""The three flavours of linear map and their initial values."""

import numpy as np
import pytest
import torch
from torch import nn

from petkit.models.projections import (
    FakeQuantLinear,
    PackedLinear,
    dense_projection,
    effective_weight,
    initialize_linear,
    initialize_up,
    make_projection,
    pack_projection,
)
from tests.reference import adapters as reference


def test_fake_quantised_map_multiplies_with_the_quantised_weight():
    layer = FakeQuantLinear(11, 5, bits=1)
    x = torch.randn(3, 11)
    expected = x.double().numpy() @ reference.one_bit(layer.weight.detach().double().numpy()).T
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_packed_map_equals_the_fake_quantised_one(bits):
    layer = FakeQuantLinear(13, 6, bits)
    packed = PackedLinear(pack_projection(layer))
    x = torch.randn(2, 3, 13, requires_grad=True)
    torch.testing.assert_close(packed(x), layer(x), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(packed(x).sum(), x)
    torch.testing.assert_close(gradient, effective_weight(layer).sum(0).expand_as(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [1, 8, 32])
def test_all_flavours_agree_on_the_effective_weight(bits):
    layer = make_projection(7, 4, bits, "normal_l1", "exact")
    stored = pack_projection(layer)
    loaded = dense_projection(stored) if bits == 32 else PackedLinear(stored)
    torch.testing.assert_close(effective_weight(loaded), effective_weight(layer))


def test_gradient_flavour_is_passed_on():
    exact, identity = (
        FakeQuantLinear(9, 4, 1, gradient="exact"),
        FakeQuantLinear(9, 4, 1, gradient="identity"),
    )
    identity.load_state_dict(exact.state_dict())
    x = torch.randn(2, 9)
    for layer in (exact, identity):
        layer(x).square().sum().backward()
    assert not torch.equal(exact.weight.grad, identity.weight.grad)


def test_initial_values():
    down, up = torch.empty(64, 400), torch.empty(400, 64)
    initialize_linear(down, 400, torch.Generator().manual_seed(0))
    assert 0.049 < down.abs().max() <= 0.05
    assert abs(float(down.std()) - 0.1 / 12**0.5) < 1e-3
    initialize_up(up, 1, torch.Generator().manual_seed(0))
    assert float(up.abs().max()) <= 2e-3
    # The deviation of a normal of 1e-3 cut at two deviations is 0.88e-3.
    assert abs(float(up.std()) - 0.88e-3) < 2e-5
    initialize_up(up, 32, None)
    assert not up.any()


def test_32_bits_are_a_plain_linear_map_without_bias():
    layer = make_projection(3, 2, 32, "normal_l1", "exact")
    assert isinstance(layer, nn.Linear)
    assert layer.bias is None
