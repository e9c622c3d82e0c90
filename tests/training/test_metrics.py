import json
from pathlib import Path
from typing import Any

import pytest

from petkit.errors import MissingError
from petkit.training.metrics import MetricsLog, trainer_state


def log(folder: Path | None, keep: int = 0, tensorboard: bool = False) -> MetricsLog:
    return MetricsLog(folder, keep, tensorboard)


def test_every_record_is_one_line_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = log(tmp_path)
    metrics.write({"step": 1, "epoch": 0.5, "loss": 2.0})
    metrics.write({"step": 2, "epoch": 1.0, "loss": float("nan")})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "epoch": 0.5, "loss": 2.0},
        {"step": 2, "epoch": 1.0, "loss": None},
    ]
    assert metrics.size() == (tmp_path / "metrics.jsonl").stat().st_size
    assert not caplog.records


def test_a_resumed_log_forgets_what_is_run_again(tmp_path: Path) -> None:
    metrics = log(tmp_path)
    metrics.write({"step": 1, "epoch": 0.5})
    keep = metrics.size()
    metrics.write({"step": 2, "epoch": 1.0})
    again = log(tmp_path, keep)
    assert again.history == [{"step": 1, "epoch": 0.5}]
    again.write({"step": 2, "epoch": 1.0})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_other_processes_write_nothing(caplog: pytest.LogCaptureFixture) -> None:
    metrics = log(None)
    metrics.write({"step": 1, "epoch": 0.5})
    assert metrics.size() == 0
    assert not caplog.records


def test_a_failing_file_warns_once_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = log(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    metrics.write({"step": 1, "epoch": 0.5})
    metrics.write({"step": 2, "epoch": 1.0})
    assert len(caplog.records) == 1
    assert "metrics.jsonl failed and is off" in caplog.text
    assert len(metrics.history) == 2


def test_tensorboard_gets_the_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    metrics = log(tmp_path, tensorboard=True)
    metrics.write({"step": 1, "epoch": 0.5, "loss": 2.0})
    metrics.close()
    assert not caplog.records
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_failing_tensorboard_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def add_scalar(self, *arguments: Any) -> None:
            raise RuntimeError("disk on fire")

        def close(self) -> None:
            raise RuntimeError("disk on fire")

    monkeypatch.setattr("petkit.training.metrics._tensorboard", lambda folder: Broken())
    metrics = log(tmp_path, tensorboard=True)
    for step in (1, 2):
        metrics.write({"step": step, "epoch": 0.5, "loss": 2.0})
    metrics.close()
    assert caplog.messages == [
        "tensorboard failed and is off for the rest of the run: RuntimeError: disk on fire"
    ]


def test_a_missing_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingError, match=r'pip install "petkit\[track\]"') as caught:
        log(tmp_path, tensorboard=True)
    assert caught.value.exit_code == 4


def test_trainer_state_has_the_shape_that_transformers_reads(tmp_path: Path) -> None:
    from transformers import TrainerState

    history = [
        {"step": 1, "epoch": 0.5, "loss": 2.0, "learning_rate": 0.1},
        {"step": 2, "epoch": 1.0, "eval_loss": 1.0},
    ]
    state = trainer_state(
        history, step=2, total_steps=4, epochs=2, batch_size=8, best_metric=0.5, best_step=2
    )
    file = tmp_path / "trainer_state.json"
    file.write_text(json.dumps(state))
    read = TrainerState.load_from_json(str(file))
    assert (read.global_step, read.max_steps, read.epoch, read.log_history) == (2, 4, 1.0, history)
    assert trainer_state([], step=0, total_steps=4, epochs=2, batch_size=8)["epoch"] == 0.0
