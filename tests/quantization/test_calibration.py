import numpy as np
import pytest
import torch

from petkit.errors import InputError
from petkit.models.config import AdapterConfig
from petkit.models.inserts import inserts
from petkit.models.loading import load_model
from petkit.quantization.calibration import predictions, second_moments
from tests.quantization.artifacts import MODEL, adapted_model


class TokenModel(torch.nn.Module):
    """A stand-in for a text model: token features go straight through one adapter."""

    def __init__(self, adapter):
        super().__init__()
        self.adapter = adapter

    def forward(self, input_ids, attention_mask):
        return self.adapter(input_ids)


@pytest.fixture
def model():
    return adapted_model(AdapterConfig(bits=32, bottleneck=4, dropout=0.1)).model


def batches(count, size=3):
    generator = torch.Generator().manual_seed(0)
    return [{"pixel_values": torch.randn(size, 3, 32, 32, generator=generator)} for _ in range(count)]


def recorded_inputs(model, data):
    seen = {}
    handles = [
        getattr(adapter, part).register_forward_pre_hook(
            lambda module, args, name=f"{site}.{part}": seen.setdefault(name, []).append(args[0])
        )
        for site, adapter in inserts(model).items()
        for part in ("down", "up")
    ]
    model.eval()
    with torch.no_grad():
        for batch in data:
            model(batch["pixel_values"])
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).flatten(0, 1).double().numpy() for name, parts in seen.items()}


def test_moments_are_the_mean_outer_product_of_the_inputs(model):
    moments = second_moments(model, batches(2))
    for name, rows in recorded_inputs(model, batches(2)).items():
        # Products are made in float32, so that entries near zero carry the rounding of the large ones.
        np.testing.assert_allclose(
            moments[name], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5 * np.abs(rows).max() ** 2
        )


def test_the_model_is_left_as_it_was(model):
    model.train()
    second_moments(model, batches(1))
    predictions(model, batches(1))
    assert model.training
    assert not any(
        module._forward_pre_hooks for adapter in inserts(model).values() for module in adapter.children()
    )


def test_padding_is_left_out():
    adapter = next(iter(inserts(adapted_model(AdapterConfig(bits=32, bottleneck=4)).model).values()))
    tokens = torch.randn(2, 5, 64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    got = second_moments(TokenModel(adapter), [{"input_ids": tokens, "attention_mask": mask}])
    kept = tokens[mask.bool()].double()
    torch.testing.assert_close(got["adapter.down"], kept.T @ kept / 8, rtol=1e-4, atol=1e-5)


def test_predictions_of_all_batches_come_one_after_another(model):
    got = predictions(model, batches(2))
    model.eval()
    with torch.no_grad():
        expected = torch.cat([model(batch["pixel_values"]) for batch in batches(2)])
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


class Position(torch.nn.Module):
    """A stand-in for a language model whose logits tell the position that they come from."""

    def forward(self, input_ids, attention_mask):
        return torch.arange(input_ids.numel()).reshape(*input_ids.shape, 1)


def test_a_language_model_is_compared_where_it_predicts_a_target():
    batch = {
        "input_ids": torch.zeros(2, 4, dtype=torch.int64),
        "attention_mask": torch.ones(2, 4),
        "labels": torch.tensor([[-100, 5, 6, -100], [-100, -100, -100, 7]]),
    }
    # Tokens 1 and 2 of the first row are predicted at positions 0 and 1, token 3 of the second at 4 + 2.
    assert predictions(Position(), [batch]).flatten().tolist() == [0, 1, 6]


def test_refusals(model):
    with pytest.raises(InputError, match=r"a batch that reaches every adapter, got none for blocks\.0"):
        second_moments(model, [])
    with pytest.raises(InputError, match="needs a model with adapters, got none"):
        second_moments(load_model(MODEL, "image_classification", 2).model, batches(1))
    with pytest.raises(InputError, match="at least one batch is needed"):
        predictions(model, [])
