"""metrics.jsonl, TensorBoard, trainer_state.json. A logger that fails says so once and never ends a run."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from petkit.errors import MissingError

log = logging.getLogger(__name__)


class MetricsLog:
    """Appends one JSON object a line, flushed at once, and mirrors the numbers to TensorBoard when asked.

    Args:
        folder: the run's folder; None records nothing (processes other than the first).
        keep_bytes: length of metrics.jsonl that a resumed run keeps; what came later is run again.
        tensorboard: write events under `folder/tensorboard`.

    Returns:
        The log.

    Raises:
        MissingError: TensorBoard was asked for and is not installed.
    """

    def __init__(self, folder: Path | None, keep_bytes: int, tensorboard: bool) -> None:
        self._path = None if folder is None else folder / "metrics.jsonl"
        self._failed: set[str] = set()
        self.history: list[dict[str, Any]] = []
        if self._path is not None:
            self._guard("metrics.jsonl", lambda: self._open(keep_bytes))
        self._events = _tensorboard(folder / "tensorboard") if tensorboard and folder is not None else None

    def write(self, record: Mapping[str, float | int]) -> None:
        """Record the numbers of one step.

        Args:
            record: `step`, `epoch` and any further numbers; NaN and infinities become null.

        Raises:
            Nothing: a failure is reported once and the run goes on.
        """
        clean = {name: value if math.isfinite(value) else None for name, value in record.items()}
        self.history.append(clean)
        if self._path is not None:
            self._guard("metrics.jsonl", lambda: self._append(json.dumps(clean) + "\n"))
        if self._events is not None:
            self._guard("tensorboard", lambda: self._send(record))

    def size(self) -> int:
        """Return the length of metrics.jsonl in bytes, for the checkpoint."""
        if self._path is None or not self._path.exists():
            return 0
        return self._path.stat().st_size

    def close(self) -> None:
        """Flush and close what is open."""
        if self._events is not None:
            self._guard("tensorboard", self._events.close)

    def _open(self, keep_bytes: int) -> None:
        path = self._path
        assert path is not None
        kept = path.read_bytes()[:keep_bytes] if keep_bytes and path.exists() else b""
        path.write_bytes(kept)
        self.history = [json.loads(line) for line in kept.decode("utf-8").splitlines() if line.strip()]

    def _append(self, line: str) -> None:
        assert self._path is not None
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)

    def _send(self, record: Mapping[str, float | int]) -> None:
        assert self._events is not None
        for name, value in record.items():
            if name not in ("step", "epoch"):
                self._events.add_scalar(name, value, int(record["step"]))

    def _guard(self, logger: str, action: Callable[[], None]) -> None:
        if logger in self._failed:
            return
        # Any exception at all: third-party loggers raise their own kinds, and none is worth a night of
        # training.
        try:
            action()
        except Exception as error:
            self._failed.add(logger)
            log.warning(
                "%s failed and is off for the rest of the run: %s: %s", logger, type(error).__name__, error
            )


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingError(
            "training.tensorboard needs the package tensorboard, which is not installed: pip install "
            '"petkit[track]"'
        ) from error
    return SummaryWriter(str(folder))


def trainer_state(
    history: list[dict[str, Any]],
    *,
    step: int,
    total_steps: int,
    epochs: int,
    batch_size: int,
    best_metric: float | None = None,
    best_step: int | None = None,
) -> dict[str, Any]:
    """Write a run's history in the shape of transformers' trainer_state.json, for tools that plot it.

    Args:
        history: the records of metrics.jsonl.
        step: optimiser steps done.
        total_steps: optimiser steps of the whole run.
        epochs: epochs of the whole run.
        batch_size: examples per step and process.
        best_metric: score of the selected step, if one was selected.
        best_step: that step.

    Returns:
        JSON-ready values.

    Source:
        transformers' TrainerState, field names only.
    """
    return {
        "best_metric": best_metric,
        "best_global_step": best_step,
        "best_model_checkpoint": None,
        "epoch": history[-1]["epoch"] if history else 0.0,
        "global_step": step,
        "is_hyper_param_search": False,
        "is_local_process_zero": True,
        "is_world_process_zero": True,
        "log_history": history,
        "logging_steps": 1,
        "max_steps": total_steps,
        "num_train_epochs": epochs,
        "train_batch_size": batch_size,
        "trial_name": None,
        "trial_params": None,
    }
