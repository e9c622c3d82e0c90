import pytest
import torch

from petkit.artifacts import Base, Manifest, PackedMatrix, Task
from petkit.training.outcome import compare_logits, model_card, size_ledger

LOGITS = torch.tensor([[1.0, 5.0, 2.0], [0.0, -3.0, 4.0]])


def test_equal_logits_pass() -> None:
    check = compare_logits(LOGITS, LOGITS + 1e-4)
    assert check.ok
    assert "0 of 2 predictions differ" in check.detail


@pytest.mark.parametrize("change", [0.1, float("nan"), float("inf")])
def test_other_logits_fail(change: float) -> None:
    other = LOGITS.clone()
    other[1, 0] += change
    check = compare_logits(LOGITS, other)
    assert not check.ok
    assert check.exit_code == 3


def test_a_tie_may_fall_either_way() -> None:
    tied = torch.tensor([[1.0, 1.0 + 1e-5]])
    assert compare_logits(tied, tied.flip(-1)).ok
    assert not compare_logits(torch.tensor([[1.0, 1.5]]), torch.tensor([[1.5, 1.0]])).ok


def test_one_class_has_no_second_best() -> None:
    assert compare_logits(torch.ones(3, 1), torch.ones(3, 1)).ok


def test_the_ledger_separates_the_head() -> None:
    codes = torch.zeros(4, 16, dtype=torch.int64).numpy()
    matrix = PackedMatrix.from_codes(codes, shift=0.0, scale=1.0, bits=1)
    dense = {
        "head.weight": torch.zeros(2, 4),
        "head.bias": torch.zeros(2),
        "x.down.weight": torch.zeros(3, 3),
    }
    ledger = size_ledger({"blocks.0.adaptformer.down": matrix, "head": matrix}, dense, 6400)
    assert matrix.nbytes == 4 * 16 // 8 + 8
    assert ledger == {"adapter": 16 + 36, "head": 16 + 40, "full_model_fp32": 6400, "ratio": 6400 / 108}


RESULT = {
    "accuracy": 0.5,
    "interval": [0.4, 0.6],
    "n": 1000,
    "steps": 7,
    "seed": 3,
    "stopped": "max_steps",
    "bytes": {"adapter": 1234, "head": 10, "full_model_fp32": 124400, "ratio": 100.0},
}


def test_the_card_says_what_was_measured_and_where_from() -> None:
    manifest = Manifest(
        base=Base(id="timm/x", revision="abc", sha256="0" * 64),
        adapter={"method": "lora", "bits": 1},
        task=Task(type="image_classification"),
    )
    card = model_card(manifest, RESULT, "apache-2.0")
    for part in ("accuracy 50.0% (95 % interval 40.0% to 60.0%, 1,000 examples)", "1,234 bytes", "apache-2.0",
                 "`timm/x` at revision `abc`", "seed 3, stopped by max_steps", "100 times"):  # fmt: skip
        assert part in card
    assert "ask its publisher" in model_card(manifest, RESULT, None)
    tokens = {**RESULT, "accuracy": None, "perplexity": 3.5, "stopped": None}
    assert "perplexity 3.500 over 1,000 tokens" in model_card(manifest, tokens, None)
