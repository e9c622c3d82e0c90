"""Proposals of numbers by optuna's TPE, kept in a journal that survives being killed. Torch-free."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from petkit.errors import ArtifactError, MissingError
from petkit.merging.ranges import Range

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as OptunaTrial

log = logging.getLogger(__name__)

JOURNAL = "study.journal"
NAME = "merge"
_ERROR, _SECONDS = "error", "seconds"
Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Trial:
    """A merge that was tried.

    Args:
        trial: its number, from 0.
        parameters: by the names of the ranges.
        score: None where it failed.
        seconds: that merging and measuring took.
        error: why it failed.
    """

    trial: int
    parameters: dict[str, float]
    score: float | None
    seconds: float
    error: str | None = None

    @property
    def record(self) -> dict[str, Any]:
        """A line of trials.jsonl."""
        return {"status": "completed" if self.score is not None else "failed", **asdict(self)}


@dataclass(frozen=True)
class Proposal:
    """Numbers to try."""

    trial: int
    parameters: dict[str, float]
    asked: OptunaTrial


def check_optuna() -> None:
    """Refuse to begin without optuna.

    Raises:
        MissingError: with the command that installs it.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise MissingError('the search needs optuna: pip install "petkit[tune]"') from None


class Study:
    """Trials so far, and the next one: a function of the seed and of these trials, whatever was killed."""

    def __init__(self, study: OptunaStudy, ranges: Sequence[Range], seed: int) -> None:
        self._study = study
        self._ranges = ranges
        self._seed = seed

    @property
    def trials(self) -> list[Trial]:
        """Those that came to an end, in their order."""
        ended = [one for one in self._study.get_trials(deepcopy=False) if _is_ended(one)]
        return [
            Trial(
                number,
                # The journal keeps the order in which they were drawn; the file's is easier to read.
                {own.name: float(one.params[own.name]) for own in self._ranges},
                one.value if one.state.name == "COMPLETE" else None,
                float(one.user_attrs[_SECONDS]),
                one.user_attrs.get(_ERROR),
            )
            for number, one in enumerate(ended)
        ]

    def propose(self) -> Proposal:
        """Say what to try next: the ranges' starts, and then what optuna draws."""
        from optuna.distributions import FloatDistribution
        from optuna.samplers import TPESampler

        trials = self._study.get_trials(deepcopy=False)
        number = sum(map(_is_ended, trials))
        if number == 0 and not any(one.state.name == "WAITING" for one in trials):
            self._study.enqueue_trial({one.name: one.start for one in self._ranges})
        # A stream of its own for each trial: nothing depends on how many one process made.
        stream = np.random.SeedSequence([self._seed, number]).generate_state(1)[0]
        self._study.sampler = TPESampler(seed=int(stream))
        asked = self._study.ask({one.name: FloatDistribution(one.low, one.high) for one in self._ranges})
        return Proposal(number, {one.name: float(asked.params[one.name]) for one in self._ranges}, asked)

    def record(self, proposal: Proposal, score: float | None, seconds: float, error: str | None) -> Trial:
        """Write down how a trial ended."""
        from optuna.trial import TrialState

        proposal.asked.set_user_attr(_SECONDS, seconds)
        if error is not None:
            proposal.asked.set_user_attr(_ERROR, error)
        if score is None:
            self._study.tell(proposal.asked, state=TrialState.FAIL)
        else:
            self._study.tell(proposal.asked, score)
        return Trial(proposal.trial, proposal.parameters, score, seconds, error)


@contextmanager
def open_study(folder: Path, ranges: Sequence[Range], seed: int, direction: Direction) -> Iterator[Study]:
    """Open the journal of a folder, which nobody else has open, or begin one.

    Args:
        folder: locked by the caller.
        ranges: what is searched.
        seed: of the proposals.
        direction: maximize or minimize.

    Yields:
        The study; a trial that was running when its process was killed will be proposed again.

    Raises:
        ArtifactError: the journal is damaged.
        MissingError: optuna is not installed.
    """
    check_optuna()
    with _by_our_log():
        yield Study(_loaded(folder / JOURNAL, direction), ranges, seed)


def _loaded(path: Path, direction: Direction) -> OptunaStudy:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    _mend(path)
    try:
        storage = JournalStorage(JournalFileBackend(str(path.resolve())))
        study = optuna.create_study(
            storage=storage, study_name=NAME, direction=direction, load_if_exists=True
        )
    except (ValueError, KeyError, AssertionError) as error:
        raise ArtifactError(f"{path} is damaged: {str(error)[:200]}; begin anew with --overwrite") from error
    for one in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(one.number, state=TrialState.FAIL)
    return study


def _mend(path: Path) -> None:
    """Remove what a killed process leaves: half a line, and the lock of the journal."""
    with suppress(FileNotFoundError):
        Path(f"{path.resolve()}.lock").unlink()
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _is_ended(trial: FrozenTrial) -> bool:
    # One that failed says why: one without a reason was broken off, counts for nothing and is done again.
    return trial.state.name == "COMPLETE" or (trial.state.name == "FAIL" and _ERROR in trial.user_attrs)


class _Forwarding(logging.Handler):
    """Gives optuna's records to petkit's log: what optuna only tells is shown with `-v`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one record on."""
        level = record.levelno if record.levelno >= logging.WARNING else logging.DEBUG
        log.log(level, "%s", record.getMessage())


@contextmanager
def _by_our_log() -> Iterator[None]:
    import optuna

    logger = logging.getLogger("optuna")
    # Sets optuna's own handler up, which would otherwise come with the first record.
    optuna.logging.get_verbosity()
    handlers, propagates = list(logger.handlers), logger.propagate
    logger.handlers[:] = [_Forwarding()]
    logger.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        logger.handlers[:], logger.propagate = handlers, propagates
