import pytest
import torch

from petkit.errors import InputError
from petkit.quantization.noise import add_noise, gaussian_noise


def test_noise_has_the_asked_for_deviation():
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(0)) * 0.05
    noisy = gaussian_noise(weight, 0.5, torch.Generator().manual_seed(1))
    # 60,000 draws: the estimate is within 1 % at three standard errors.
    assert float((noisy - weight).std()) == pytest.approx(0.5 * float(weight.std()), rel=0.01)


def test_no_noise_changes_nothing():
    weight = torch.randn(4, 5)
    assert torch.equal(gaussian_noise(weight, 0.0, torch.Generator()), weight)


def test_the_order_of_the_mapping_does_not_matter_and_what_is_no_matrix_stays():
    weights = {"b": torch.randn(3, 3), "a": torch.randn(2, 4), "bias": torch.randn(3)}
    first = add_noise(weights, 1.0, torch.Generator().manual_seed(5))
    second = add_noise(dict(reversed(weights.items())), 1.0, torch.Generator().manual_seed(5))
    assert list(first) == ["b", "a", "bias"]
    assert all(torch.equal(first[name], second[name]) for name in weights)
    assert first["bias"] is weights["bias"]
    assert not torch.equal(first["a"], weights["a"])


@pytest.mark.parametrize("relative", [-0.1, float("inf"), float("nan")])
def test_refusals(relative):
    with pytest.raises(InputError, match="relative noise must be at least 0 and finite"):
        gaussian_noise(torch.ones(2, 2), relative, torch.Generator())
