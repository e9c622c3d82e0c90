from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from petkit.benchmarks.serving import _add_layers

NAMES = ["one", "two", "three"]


def peft_model(add: Callable[[Any, LoraConfig], None]) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["0", "2"], init_lora_weights=False)
    layers = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    model = get_peft_model(layers, config, adapter_name="zero")
    add(model, config)
    return model.eval()


def test_adding_layers_makes_the_model_that_add_adapter_makes() -> None:
    def one_by_one(model: Any, config: LoraConfig) -> None:
        for name in NAMES:
            model.add_adapter(name, config)

    expected = peft_model(one_by_one)
    got = peft_model(lambda model, config: _add_layers(model, config, NAMES))
    weights = expected.state_dict()
    assert list(got.state_dict()) == list(weights)
    got.load_state_dict(weights)
    x, names = torch.randn(4, 6), ["two", "zero", "three", "one"]
    torch.testing.assert_close(got(x, adapter_names=names), expected(x, adapter_names=names), rtol=0, atol=0)
