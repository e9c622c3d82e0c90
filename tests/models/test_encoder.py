"""Pooled heads on transformers encoders."""

import numpy as np
import pytest
import torch
from torch import nn

from petkit.models.encoder import EncoderClassifier, pool
from tests.reference import adapters as reference

MASKS = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_pooling_sees_tokens_only(pooling):
    hidden = torch.randn(3, 4, 5)
    expected = reference.pooled(hidden.double().numpy(), MASKS.numpy(), pooling)
    np.testing.assert_allclose(pool(hidden, MASKS, pooling).numpy(), expected, rtol=1e-6, atol=1e-6)
    unmasked = reference.pooled(hidden.double().numpy(), np.ones((3, 4), int), pooling)
    np.testing.assert_allclose(pool(hidden, None, pooling).numpy(), unmasked, rtol=1e-6, atol=1e-6)


def test_padding_does_not_change_the_logits(bert, tokens):
    model = EncoderClassifier(bert, nn.Linear(32, 3), "mean")
    padded = torch.cat([tokens, torch.zeros(2, 3, dtype=torch.int64)], dim=1)
    mask = torch.tensor([[1] * 5 + [0] * 3] * 2)
    torch.testing.assert_close(model(input_ids=padded, attention_mask=mask), model(input_ids=tokens))
