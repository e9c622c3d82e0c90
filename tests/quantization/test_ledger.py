import pytest
import torch

from petkit.quantization.ledger import make_ledger, size_against
from petkit.quantization.nearest import nearest


def ledger_of_a_kitti_adapter():
    """The paper's AdaptFormer of ViT-B/16: 12 sites, h = 32, 1 bit, and a head of 4 classes."""
    matrix = {"down": nearest(torch.randn(32, 768), 1), "up": nearest(torch.randn(768, 32), 1)}
    packed = {f"blocks.{i}.adaptformer.{part}": matrix[part] for i in range(12) for part in matrix}
    head = {"head.weight": torch.zeros(4, 768), "head.bias": torch.zeros(4)}
    return make_ledger(packed, head, file_bytes=90_000, full_model_bytes=343_206_928)


def test_bytes_are_those_of_the_published_files():
    ledger = ledger_of_a_kitti_adapter()
    summary = ledger.summary()
    assert summary["codes_bytes"] + summary["shift_scale_bytes"] == 73_920
    assert summary["head_bytes"] == 12_304
    assert summary["header_bytes"] == 90_000 - 86_224
    assert ledger.nbytes == 90_000
    assert summary["parameters"] == 12 * 2 * 768 * 32 + 769 * 4
    assert summary["float32_bytes"] == 4 * summary["parameters"]
    assert summary["ratio_to_float32"] == pytest.approx(summary["float32_bytes"] / 90_000)
    assert summary["full_model_bytes"] == 343_206_928
    assert summary["ratio_to_full_model"] == pytest.approx(343_206_928 / 90_000)


def test_weight_and_bias_of_one_module_are_one_entry():
    head = ledger_of_a_kitti_adapter().entries[-1]
    assert (head.module, head.parameters, head.dense, head.codes) == ("head", 769 * 4, 12_304, 0)


def test_without_the_base_its_ratio_is_left_out():
    summary = make_ledger({}, {"cls_token": torch.zeros(3)}).summary()
    assert summary["full_model_bytes"] is None
    assert summary["ratio_to_full_model"] is None
    assert summary["bytes"] == 12


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (4.21, "4.2 times smaller than in float32"),
        (1.04, "as large as in float32"),
        (1.0, "as large as in float32"),
        (0.97, "as large as in float32"),
        (0.9, "1.1 times larger than in float32"),
        (0.25, "4.0 times larger than in float32"),
        (16.0, "16.0 times smaller than in float32"),
        (3813.4, "3,813 times smaller than in float32"),
    ],
)
def test_a_ratio_is_told_in_the_direction_it_has(ratio, text):
    assert size_against(ratio, "in float32") == text
