import math

import pytest
import torch
from torch import Tensor, nn

from petkit.methods.binary_adapter.algorithm import language_step, next_token_loss, step_function
from petkit.training.classification import classification_step


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


def test_a_language_step_counts_tokens() -> None:
    model = Constant(torch.zeros(1, 3, 8))
    ids = torch.tensor([[1, 2, 3]])
    output = language_step(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})
    assert (output.count, output.correct) == (2, None)
    assert output.loss.item() == pytest.approx(2 * math.log(8))
    assert step_function("causal_lm") is language_step
    assert step_function("text_classification") is classification_step
