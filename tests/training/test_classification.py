import numpy as np
import pytest
import torch
from torch import Tensor, nn

from petkit.training.classification import classification_loss, classification_step


def test_the_classification_loss_is_the_sum_of_negative_log_probabilities() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 6, 3, 3, 1])
    rows = logits.double().numpy()
    expected = sum(np.log(np.exp(row).sum()) - row[label] for row, label in zip(rows, labels, strict=True))
    assert classification_loss(logits, labels).item() == pytest.approx(float(expected), rel=1e-6)
    assert classification_loss(logits.bfloat16(), labels).dtype == torch.float32


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
