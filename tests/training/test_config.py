import pytest
from pydantic import ValidationError

from petkit.training.config import TrainingConfig, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5m", 90), (" 2 h ", 7200)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "0s", "-1s", "2d", "1h30m", "1e3s"])
def test_bad_durations_are_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="positive duration such as 90s"):
        TrainingConfig(max_time=text)


def test_more_micro_batches_than_examples_are_refused() -> None:
    with pytest.raises(ValidationError, match="gradient_accumulation must be at most batch_size 4, got 8"):
        TrainingConfig(batch_size=4, gradient_accumulation=8)


@pytest.mark.parametrize("name", ["warmup_learning_rate", "min_learning_rate"])
def test_a_floor_above_the_peak_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} must be at most learning_rate 0.001, got 0.1"):
        TrainingConfig(**{name: 0.1})


def test_the_first_rate_of_no_warm_up_is_no_floor() -> None:
    assert TrainingConfig(learning_rate=1e-7, min_learning_rate=0, warmup_epochs=0).learning_rate == 1e-7
