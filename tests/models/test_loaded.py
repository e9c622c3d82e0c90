"""New heads, fixed random bases and logits of any kind of model."""

import torch
from torch import nn

from petkit.models.encoder import EncoderClassifier
from petkit.models.loaded import compute_logits, new_head, randomly_initialized


def test_head_comes_from_the_generator():
    heads = [new_head(16, 3, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert torch.equal(heads[0].bias, heads[1].bias)
    assert heads[0].weight.abs().max() <= 0.25


def test_random_bases_are_the_same_every_time_and_touch_no_global_state():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = randomly_initialized(lambda: nn.Linear(4, 4))
    assert torch.equal(torch.rand(1), expected)
    second = randomly_initialized(lambda: nn.Linear(4, 4))
    assert torch.equal(first.weight, second.weight)


def test_logits_of_every_kind(vit, images, bert, llama, tokens):
    labels = torch.zeros(2, dtype=torch.int64)
    assert torch.equal(compute_logits(vit, {"pixel_values": images, "labels": labels}), vit(images))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
    classifier = EncoderClassifier(bert, nn.Linear(32, 4), "cls")
    assert compute_logits(classifier, batch).shape == (2, 4)
    assert compute_logits(llama, batch).shape == (2, 5, 60)
