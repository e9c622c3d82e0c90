"""Which predictions of a language model count."""

import torch

from petkit.data.tokens import at_targets


def test_position_t_predicts_the_token_after_it():
    logits = torch.arange(8.0).reshape(2, 4, 1)
    labels = torch.tensor([[-100, 7, 8, -100], [-100, -100, -100, 9]])
    chosen, targets = at_targets(logits, labels)
    assert chosen.flatten().tolist() == [0, 1, 6]
    assert targets.tolist() == [7, 8, 9]


def test_no_target_leaves_nothing():
    chosen, targets = at_targets(torch.randn(1, 3, 5), torch.tensor([[4, -100, -100]]))
    assert (chosen.shape, targets.shape) == ((0, 5), (0,))
