"""A search for a merge's numbers: merge, measure, keep the best, and go on. Begin at `tune`."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petkit.artifacts.files import atomic_write, write_json
from petkit.artifacts.reader import CONFIG, MANIFEST
from petkit.artifacts.run_directory import RunDirectory
from petkit.artifacts.strict_json import parse_json
from petkit.configuration import dump_yaml
from petkit.configuration.messages import dotted, shown_apart
from petkit.errors import ArtifactError, ConfigError, GateError, InputError, PetkitError
from petkit.merging.config import merge_config
from petkit.merging.fingerprints import Fingerprints, fingerprints
from petkit.merging.folders import merge_folders, open_merge
from petkit.merging.metric import Metric, MetricError, measure
from petkit.merging.parameters import Parameter
from petkit.merging.ranges import Space, numbers_in, range_places, read_space, with_usual_ranges
from petkit.merging.recognition import check_whole, folders_of
from petkit.merging.registry import method_named
from petkit.merging.study import Direction, Study, Trial, open_study

log = logging.getLogger(__name__)

BEST, BEST_YAML = "best", "best.yml"
TRIALS, RESULT, RECORD = "trials.jsonl", "result.json", "study.json"
SCRATCH, MODEL = "scratch", "model"
# What is searched where a file says nothing, by the name of a parameter. At a density of 0 nothing is left.
LIMITS = {"weight": (0.0, 1.0), "density": (0.05, 1.0), "t": (0.0, 1.0), "select_topk": (0.05, 1.0)}
# From where DELLA's density - epsilon and density + epsilon are refused.
_MARGIN = 0.01


@dataclass(frozen=True)
class Search:
    """What is searched, and what for.

    Args:
        name: of the file, for messages.
        space: the configuration and its ranges.
        metric: gives the score.
        direction: of a better score.
        seed: of the proposals and of the merges' draws.
        shard_bytes: the most that a file of a merged model holds.
    """

    name: str
    space: Space
    metric: Metric
    direction: Direction
    seed: int
    shard_bytes: int

    def better(self, one: float, other: float) -> bool:
        """Whether a score is better than another."""
        return one > other if self.direction == "maximize" else one < other

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """The first of the best trials; None where all failed."""
        return next(iter(self.ranked(trials)), None)

    def ranked(self, trials: Sequence[Trial]) -> list[Trial]:
        """Trials with a score, the best first, and earlier before later ones of the same score."""
        sign = -1.0 if self.direction == "maximize" else 1.0
        scored = [(sign * one.score, one) for one in trials if one.score is not None]
        return [one for _, one in sorted(scored, key=lambda pair: pair[0])]


@dataclass(frozen=True)
class Budget:
    """When to stop.

    Args:
        trials: in all, those of earlier processes too.
        seconds: of this process, after which no trial but the very first begins; None for any time.
        failures: trials in a row that may fail.
    """

    trials: int
    seconds: float | None = None
    failures: int = 3


def search_space(data: Mapping[str, Any], name: str, limits: Mapping[str, tuple[float, float]] = {}) -> Space:
    """What to search: the ranges that a file holds, or else all its weights and densities.

    Args:
        data: what the file holds.
        name: of the file, for messages.
        limits: lowest and highest value by a parameter's name, for a file without ranges; the others are
            those of `LIMITS`.

    Returns:
        The configuration with its ranges.

    Raises:
        ConfigError: a range of another form; limits beside ranges, or of what the method does not have; or
            nothing to search.
    """
    blank = Space(data, (), dict.fromkeys(range_places(data), "")).filled({"": 0.0})
    asked = merge_config(blank, name)
    check_whole(asked, "tune")
    method = method_named(asked.method)
    space = read_space(data, method.parameters, name)
    own = {parameter.name for parameter in method.parameters}
    for parameter, (low, high) in limits.items():
        if space.ranges:
            raise ConfigError(
                f"limits of {parameter} (--weights, --densities) are for a file without ranges, and {name} "
                "has some"
            )
        if parameter not in own:
            raise ConfigError(
                f"{method.name} has no {parameter} to search; it has {_names(method.parameters)}"
            )
        if not low < high:
            raise ConfigError(
                f"limits of {parameter} must be LOW HIGH with low below high, got {low:g} {high:g}"
            )
    if space.ranges:
        return space
    usual = {**_limits(data, method.parameters), **limits}
    space = read_space(with_usual_ranges(data, method.parameters, usual), method.parameters, name)
    if not space.ranges:
        raise ConfigError(
            f"{name} has nothing to search: {method.name} has no weights and no densities"
            + (", write a range such as lambda: {search: [0, 1]}" if "lambda" in own else "")
        )
    return space


def check_search(space: Space, name: str, seed: int) -> int:
    """Plan the merges at both ends of all ranges, before any work.

    Args:
        space: what is searched.
        name: of the file, for messages.
        seed: of methods that draw.

    Returns:
        Bytes of a merged model's weights.

    Raises:
        PetkitError: a model cannot be read, models do not fit, or an end of a range is not allowed.
    """
    size = 0
    for values in (
        {one.name: one.low for one in space.ranges},
        {one.name: one.high for one in space.ranges},
    ):
        with ExitStack() as stack:
            size = open_merge(merge_config(space.filled(values), name), seed, stack).plan.nbytes
    return size


def tune(search: Search, budget: Budget, run: RunDirectory) -> dict[str, Any]:
    """Search, until a budget is used up.

    Args:
        search: what is searched.
        budget: when to stop.
        run: the open output. It gets `best`, `best.yml`, `trials.jsonl`, `result.json` and what a later
            process needs to go on.

    Returns:
        The content of result.json.

    Raises:
        InputError: the folder holds another search; the differences are named.
        PetkitError: too many trials in a row failed, or all did; or a merge could not be written. What was
            tried is kept, and the best of it.
    """
    started = time.monotonic()
    config = merge_config(search.space.filled(search.space.start), search.name)
    with fingerprints(folders_of(config)) as hashes:
        _same_search(run, search, hashes.result())
        with open_study(run.path, search.space.ranges, search.seed, search.direction) as study:
            _write_trials(run.path, study.trials)
            if study.trials:
                log.info("%d of %d trials are there", len(study.trials), budget.trials)
            running = _Running(search, run.path, study, hashes)
            with running.marked():
                reason = running.until(budget, started)
            return running.finished(reason)


@dataclass(frozen=True)
class _Running:
    """A search in a folder that is locked."""

    search: Search
    folder: Path
    study: Study
    hashes: Fingerprints

    def until(self, budget: Budget, started: float) -> str | None:
        """Run trials; the reason why it ended before all of them."""
        failures = 0
        while (done := len(self.study.trials)) < budget.trials:
            # The first one always begins: without it there is no result.
            if done and budget.seconds is not None and time.monotonic() - started >= budget.seconds:
                return "time_limit"
            failures = failures + 1 if self.tried().score is None else 0
            if failures > budget.failures:
                return "failures"
        return None

    def tried(self) -> Trial:
        """Run the next trial, write it down, and keep its model if it is the best one."""
        before = self.search.best(self.study.trials)
        started, proposal = time.monotonic(), self.study.propose()
        with _scratch(self.folder) as scratch:
            score, error = self._scored(proposal.parameters, scratch)
            trial = self.study.record(proposal, score, time.monotonic() - started, error)
            with (self.folder / TRIALS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(trial.record) + "\n")
            if self.search.best([one for one in (before, trial) if one]) is trial:
                self._keep(trial, scratch / MODEL)
        _tell(trial, before)
        return trial

    def finished(self, reason: str | None) -> dict[str, Any]:
        """Mend what a kill may have left, and write the result."""
        trials = self.study.trials
        best = self.search.best(trials)
        if best is not None and not self._is_kept(best):
            log.info("merging trial %d again, whose model was lost when the search was stopped", best.trial)
            with _scratch(self.folder) as scratch:
                self._merge(best.parameters, scratch)
                self._keep(best, scratch / MODEL)
        failed = best is None or reason == "failures"
        result = _result(self.search, trials, "failed" if failed else "completed", reason)
        write_json(self.folder / RESULT, result)
        if failed:
            count = sum(one.score is None for one in trials)
            last = next(one for one in reversed(trials) if one.score is None)
            what = f"all {count} trials" if best is None else f"too many trials in a row ({count} in all)"
            raise PetkitError(f"{what} failed, the last one: {last.error} (see {TRIALS} in {self.folder})")
        return result

    @contextmanager
    def marked(self) -> Iterator[None]:
        """Keep result.json true, however the search ends; it also marks the folder as petkit's."""
        self._mark("running")
        try:
            yield
        except BaseException as error:
            self._mark("failed" if isinstance(error, Exception) else "interrupted")
            raise

    def _mark(self, status: str) -> None:
        write_json(self.folder / RESULT, _result(self.search, self.study.trials, status, None))

    def _scored(self, values: Mapping[str, float], scratch: Path) -> tuple[float | None, str | None]:
        try:
            self._merge(values, scratch)
            score = measure(self.search.metric, scratch / MODEL, scratch)
            if not (scratch / MODEL).is_dir():
                raise MetricError("the command removed the model's folder")
        except (ConfigError, GateError, MetricError) as fault:
            # Of these numbers, and not of the machine: others may do.
            return None, _without_place(str(fault))
        return score, None

    def _merge(self, values: Mapping[str, float], scratch: Path) -> None:
        data = self.search.space.filled(values)
        merge_folders(
            merge_config(data, self.search.name),
            data,
            scratch / MODEL,
            seed=self.search.seed,
            shard_bytes=self.search.shard_bytes,
            progress=_silent,
            hashes=self.hashes,
        )

    def _keep(self, trial: Trial, model: Path) -> None:
        """Put a model in the place of the best one. A kill in between is mended at the end of the search."""
        shutil.rmtree(self.folder / BEST, ignore_errors=True)
        model.rename(self.folder / BEST)
        atomic_write(self.folder / BEST_YAML, self._yaml(trial).encode())

    def _is_kept(self, trial: Trial) -> bool:
        files = (self.folder / BEST / CONFIG, self.folder / BEST_YAML)
        if not all(file.is_file() for file in (*files, self.folder / BEST / MANIFEST)):
            return False
        return all(file.read_text(encoding="utf-8") == self._yaml(trial) for file in files)

    def _yaml(self, trial: Trial) -> str:
        return dump_yaml(self.search.space.filled(trial.parameters))


def _without_place(message: str) -> str:
    """A merge that fails a check says where its files are, which are deleted here."""
    return message.partition(" (see checks.json in ")[0]


@contextmanager
def _silent(total: int) -> Iterator[Any]:
    yield lambda count: None


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    path = folder / SCRATCH
    # A process that was killed cannot tidy up.
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _tell(trial: Trial, best: Trial | None) -> None:
    """Log a trial, beside the best one before it."""
    if trial.score is None:
        log.warning("trial %d failed: %s", trial.trial, trial.error)
        return
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in trial.parameters.items())
    before = "the first score" if best is None else f"{best.score:.6g} of trial {best.trial} was the best"
    log.info("trial %d: %.6g, %s (%.1f s; %s)", trial.trial, trial.score, before, trial.seconds, numbers)


def _result(search: Search, trials: Sequence[Trial], status: str, reason: str | None) -> dict[str, Any]:
    best = search.best(trials)
    baseline = trials[0] if trials else None
    return {
        "status": status,
        "stopped": reason,
        "method": search.space.data["merge_method"],
        "metric": search.metric.text,
        "key": search.metric.key,
        "direction": search.direction,
        "seed": search.seed,
        "ranges": {one.name: [one.low, one.high] for one in search.space.ranges},
        "trials": len(trials),
        "failed": sum(one.score is None for one in trials),
        "seconds": sum(one.seconds for one in trials),
        "baseline": baseline and baseline.record,
        "best": best and best.record,
        "chosen_on": "the metric's own data: the best score is optimistic",
    }


def _write_trials(folder: Path, trials: Sequence[Trial]) -> None:
    text = "".join(json.dumps(one.record) + "\n" for one in trials)
    atomic_write(folder / TRIALS, text.encode())


def _same_search(run: RunDirectory, search: Search, inputs: Mapping[str, str]) -> None:
    """Write down what is searched, or refuse to go on with something else."""
    content = {
        "schema_version": 1,
        "configuration": dict(search.space.data),
        "metric": search.metric.text,
        "key": search.metric.key,
        "direction": search.direction,
        "seed": search.seed,
        "inputs": dict(inputs),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path = run.path / RECORD
    if not run.resumed:
        write_json(path, {**content, "sha256": digest})
        return
    try:
        known: Any = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{run.path} holds no search to go on with: it has no {RECORD}") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(known, dict):
        raise ArtifactError(f"{path} must be a JSON object")
    if known.get("sha256") != digest:
        known.pop("sha256", None)
        raise InputError(
            f"{run.path} holds another search, --resume needs the same:\n{_differences(known, content)}"
        )


def _differences(known: Any, asked: Any) -> str:
    before, now = dict(_leaves(known, ())), dict(_leaves(asked, ()))
    places = [place for place in {**before, **now} if before.get(place, ()) != now.get(place, ())]
    lines = []
    for place in places[:8]:
        if place[0] == "inputs" and place in before and place in now:
            lines.append(f"{place[1]} has changed since")
            continue
        if place not in before or place not in now:
            has, value = ("now", now[place]) if place in now else ("there", before[place])
            lines.append(f"{dotted(place)} is only {has}: {value!r:.60}")
            continue
        was, is_now = shown_apart(before[place], now[place])
        lines.append(f"{dotted(place)} is {was} there and {is_now} now")
    return "\n".join(lines) or "its record was altered"


def _leaves(data: Any, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    pairs: Any = data.items() if isinstance(data, Mapping) else enumerate(data)
    for key, value in pairs:
        if isinstance(value, Mapping | list) and value:
            yield from _leaves(value, (*place, key))
        else:
            yield (*place, key), value


def _limits(data: Mapping[str, Any], parameters: Sequence[Parameter]) -> dict[str, tuple[float, float]]:
    """The usual ranges; DELLA's density keeps away from the ends by its epsilon."""
    found = dict(LIMITS)
    epsilon = next((one for one in parameters if one.name == "epsilon"), None)
    if epsilon is not None:
        set_there = [number for one in _settings(data, "epsilon") for number in numbers_in(one)]
        widest = max(set_there, default=float(epsilon.default)) + _MARGIN
        found["density"] = (widest, 1 - widest)
    return found


def _settings(data: Any, name: str) -> Iterator[Any]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            if key == name:
                yield value
            else:
                yield from _settings(value, name)
    elif isinstance(data, list):
        for one in data:
            yield from _settings(one, name)


def _names(parameters: Sequence[Parameter]) -> str:
    return ", ".join(one.name for one in parameters) or "none"
