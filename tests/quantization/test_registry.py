from typing import get_args

from petkit.quantization.config import QuantizationConfig
from petkit.quantization.registry import METHODS


def test_every_method_of_the_settings_is_registered_with_its_paper():
    offered = get_args(QuantizationConfig.model_fields["method"].annotation)
    assert set(METHODS) == set(offered)
    assert all(method.paper.startswith("https://") and method.summary for method in METHODS.values())
