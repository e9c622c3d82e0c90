import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from petkit.methods.binary_adapter.algorithm import (
    classification_loss,
    classification_step,
    insert_adapters,
    language_step,
    next_token_loss,
    pack_adapters,
    step_function,
)
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.models.inserts import inserts
from petkit.models.loading import load_model


def test_the_classification_loss_is_the_sum_of_negative_log_probabilities() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 6, 3, 3, 1])
    rows = logits.double().numpy()
    expected = sum(np.log(np.exp(row).sum()) - row[label] for row, label in zip(rows, labels, strict=True))
    assert classification_loss(logits, labels).item() == pytest.approx(float(expected), rel=1e-6)
    assert classification_loss(logits.bfloat16(), labels).dtype == torch.float32


def test_the_language_loss_shifts_and_counts_the_assistant_only() -> None:
    logits = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, 2, -100, 5], [-100, -100, -100, 1]])
    loss, count = next_token_loss(logits, labels)
    log_probabilities = logits.log_softmax(-1)
    expected = -(log_probabilities[0, 0, 2] + log_probabilities[0, 2, 5] + log_probabilities[1, 2, 1])
    assert count == 3
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_first_token_is_never_a_target() -> None:
    loss, count = next_token_loss(torch.randn(1, 3, 6), torch.tensor([[4, -100, -100]]))
    assert (loss.item(), count) == (0.0, 0)


class Constant(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        return self.logits


def test_a_classifier_step_gives_sums_and_hits() -> None:
    model = Constant(torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]))
    batch = {"pixel_values": torch.zeros(3, 3, 2, 2), "labels": torch.tensor([0, 0, 0])}
    output = classification_step(model, batch)
    assert output.count == 3
    assert output.correct is not None
    assert output.correct.tolist() == [True, False, True]
    assert output.loss.requires_grad


def test_a_language_step_counts_tokens() -> None:
    model = Constant(torch.zeros(1, 3, 8))
    ids = torch.tensor([[1, 2, 3]])
    output = language_step(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})
    assert (output.count, output.correct) == (2, None)
    assert output.loss.item() == pytest.approx(2 * math.log(8))
    assert step_function("causal_lm") is language_step
    assert step_function("text_classification") is classification_step


def test_insert_and_pack_are_what_the_artifact_holds() -> None:
    model = load_model(ModelConfig(name="timm/test_vit", pretrained=False), "image_classification", 3).model
    sites = insert_adapters(model, AdapterConfig(bottleneck=4), torch.Generator().manual_seed(0))
    assert [site.name for site in sites] == list(inserts(model))
    packed, dense = pack_adapters(model)
    assert set(packed) == {f"{site.name}.{part}" for site in sites for part in ("down", "up")}
    assert set(dense) == {"head.weight", "head.bias"}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"{name}.weight" for name in packed} | set(dense)
