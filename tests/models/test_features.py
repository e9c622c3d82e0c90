"""Features of any model are what its last layers are given."""

import pytest
import timm
import torch
from torch import nn

from petkit.errors import InputError
from petkit.models.features import logits_and_features


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet"])
def test_the_last_layer_makes_the_logits_of_the_features(name):
    model = timm.create_model(name, num_classes=5).eval()
    images = torch.randn(3, 3, 64, 64) if name != "test_vit" else torch.randn(3, 3, 160, 160)
    last = model.get_classifier()
    with torch.no_grad():
        logits, features = logits_and_features(model, (last,), images)
        assert torch.equal(logits, model(images))
        torch.testing.assert_close(last(features), logits)
    # No hook is left behind.
    assert not last._forward_pre_hooks


class Two(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.second = self.first if shared else nn.Linear(3, 2)

    def forward(self, images):
        return (self.first(images.mean((2, 3))) + self.second(images.amax((2, 3)))) / 2


@pytest.mark.parametrize("shared", [False, True])
def test_two_last_layers_are_given_their_mean(shared):
    model, images = Two(shared), torch.randn(4, 3, 2, 2)
    _, features = logits_and_features(model, (model.first, model.second), images)
    torch.testing.assert_close(features, (images.mean((2, 3)) + images.amax((2, 3))) / 2)


def test_gradients_flow_through_the_features():
    model, images = Two(True), torch.randn(4, 3, 2, 2, requires_grad=True)
    logits_and_features(model, (model.first,), images)[1].sum().backward()
    assert images.grad.abs().sum() > 0


def test_a_layer_that_is_not_called_has_no_features():
    model = Two(True)
    with pytest.raises(InputError, match="got no call of it"):
        logits_and_features(model, (nn.Linear(1, 1),), torch.zeros(1, 3, 2, 2))
    assert not model.first._forward_pre_hooks


def test_hooks_go_when_the_model_fails():
    model = Two(True)
    with pytest.raises(RuntimeError):
        logits_and_features(model, (model.first,), torch.zeros(1, 5, 2, 2))
    assert not model.first._forward_pre_hooks
