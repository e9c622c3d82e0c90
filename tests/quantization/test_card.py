import torch

from petkit.artifacts import Base, Manifest, step
from petkit.quantization.card import quantization_card
from petkit.quantization.config import QuantizationConfig
from petkit.quantization.errors import MatrixError, OutputError
from petkit.quantization.ledger import make_ledger
from petkit.quantization.nearest import nearest


def card(lost=None, sha256="a" * 64):
    manifest = Manifest(
        base=Base(id="timm/test_vit", sha256=sha256), adapter={"method": "lora"}, lineage=(step("quantize"),)
    )
    errors = [MatrixError("x.down", 0.5, 0.9, 6.0), MatrixError("x.up", 0.7, 0.8, 3.0)]
    ledger = make_ledger({"x.down": nearest(torch.randn(4, 16), 1)}, {})
    return quantization_card(manifest, QuantizationConfig(bits=1), errors, ledger, lost)


def test_it_says_what_was_lost_and_where_the_adapter_comes_from():
    text = card(OutputError(0.0123, 0.95, 400))
    assert "# lora, 1 bit, for timm/test_vit" in text
    assert "mean 0.600, largest 0.700 (x.up)" in text
    assert "KL 0.0123 nats, 95.0% of 400 unchanged" in text
    assert "16 bytes, 16.0 times smaller than in float32" in text
    assert "`petkit quantize`" in text


def test_what_is_not_known_is_said_to_be_so():
    text = card(sha256=None)
    assert "not compared" in text
    assert "not recorded" in text
