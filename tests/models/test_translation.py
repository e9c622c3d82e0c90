from __future__ import annotations

import pytest
import torch

from petkit.errors import InputError
from petkit.models.translation import NonAutoregressiveTransformer, TranslationShape, spread

SOURCE = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
SOURCE_MASK = SOURCE != 0
TARGET_MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()


def made(**changes):
    torch.manual_seed(0)
    shape = {
        "vocab_size": 20,
        "hidden": 16,
        "feed_forward": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "heads": 2,
    }
    return NonAutoregressiveTransformer(TranslationShape(**(shape | {"max_positions": 12} | changes))).eval()


def run(model, source=SOURCE, source_mask=SOURCE_MASK, target_mask=TARGET_MASK):
    memory = model.encode(source, source_mask)
    return model.emissions(model.decode(memory, source, source_mask, target_mask))


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("decoder_input", ["unknown", "copy"])
def test_shapes_and_that_padding_does_not_matter(positional, decoder_input):
    model = made(positional_attention=positional, decoder_input=decoder_input)
    together = run(model)
    assert together.shape == (2, 5, 20)
    alone = run(model, SOURCE[1:, :2], SOURCE_MASK[1:, :2], TARGET_MASK[1:, :3])
    assert torch.allclose(together[1, :3], alone[0], atol=1e-5)
    filled = SOURCE.masked_fill(~SOURCE_MASK, 3)
    assert torch.allclose(run(model, filled)[1, :3], together[1, :3], atol=1e-5)


def test_every_position_sees_every_other():
    model = made()
    memory = model.encode(SOURCE, SOURCE_MASK)
    states = torch.zeros(2, 5, 16).normal_(generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = model.decoder[0](states, ~TARGET_MASK, memory, ~SOURCE_MASK, states)
    (gradient,) = torch.autograd.grad(out[0, 0].sum(), states)
    assert (gradient[0].abs().sum(-1) > 0).all()
    assert not gradient[1].any()


@pytest.mark.parametrize("change", ["positional_attention", "decoder_input"])
def test_options_have_an_effect(change):
    value = {"positional_attention": True, "decoder_input": "copy"}[change]
    assert not torch.allclose(run(made()), run(made(**{change: value})))


def test_the_output_is_the_embedding():
    model = made()
    hidden = torch.randn(1, 2, 16)
    assert torch.equal(model.emissions(hidden), hidden @ model.embedding.weight.T)
    assert not model.embedding.weight[0].any()


def test_lengths_come_from_the_set_positions():
    model = made()
    memory = model.encode(SOURCE, SOURCE_MASK)
    found = model.length_logits(memory, SOURCE_MASK)
    assert found.shape == (2, 256)
    spoiled = memory.masked_fill(~SOURCE_MASK[:, :, None], 9.0)
    assert torch.allclose(model.length_logits(spoiled, SOURCE_MASK), found)


def test_every_parameter_has_a_gradient():
    model = made(positional_attention=True, decoder_input="copy")
    memory = model.encode(SOURCE, SOURCE_MASK)
    hidden = model.decode(memory, SOURCE, SOURCE_MASK, TARGET_MASK)
    total = model.emissions(hidden)[TARGET_MASK].logsumexp(-1).sum()
    (total + model.length_logits(memory, SOURCE_MASK).pow(2).sum()).backward()
    without = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    # Adding the same to every key does not change a softmax.
    assert all("in_proj_bias" in name for name in without)


def test_sentences_that_are_too_long_are_refused():
    model = made()
    long = torch.full((1, 13), 5)
    with pytest.raises(InputError, match="the model has 12 positions, got a sentence of 13 tokens"):
        model.encode(long, long > 0)
    memory = model.encode(SOURCE, SOURCE_MASK)
    with pytest.raises(InputError, match="the model has 12 positions, got a sentence of 13 tokens"):
        model.decode(memory, SOURCE, SOURCE_MASK, torch.ones(2, 13, dtype=torch.bool))


def test_spreading_meets_both_ends():
    found = spread(torch.tensor([3, 1, 5]), torch.tensor([6, 4, 1]), 6)
    assert found.tolist() == [[0, 0, 1, 1, 2, 2], [0] * 6, [0, 4, 4, 4, 4, 4]]
