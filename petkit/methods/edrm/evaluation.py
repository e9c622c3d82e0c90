"""Every way of routing on the same questions: accuracy, tokens, and what is saved, with paired intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from petkit.methods.edrm.algorithm import (
    MODES,
    DatasetPoint,
    Mode,
    Thresholds,
    descriptors,
    token_signature,
)
from petkit.methods.edrm.calibration import (
    ZERO_SHOT,
    Objective,
    Outcomes,
    Reached,
    Routed,
    bootstrap,
    bootstrap_saving,
    by_dataset,
    by_question,
    leave_one_out,
    oracle,
    taken,
)
from petkit.methods.edrm.learned import Learned, cross_validated
from petkit.methods.edrm.rule import Rule

REFERENCE = "always cot"
DEFAULT = Objective()
# How often a data set is routed, each time by another choice of its questions.
DATASET_SEEDS = 8
DATASET_POINTS: tuple[DatasetPoint, ...] = get_args(DatasetPoint)
RELIABILITY_BINS = 10
# With one fold held out, a learned router still needs two questions.
LEAST_LEARNED = 3


def read_outcomes(records: Sequence[Mapping[str, Any]]) -> Outcomes:
    """Gather what `Router.measure` recorded.

    Args:
        records: one for each question.

    Returns:
        Points, scores and tokens.

    Raises:
        InputError: entropies that are no entropies.
    """
    columns = {
        key: torch.tensor([[record["modes"][mode][key] for mode in MODES] for record in records])
        for key in ("correct", "tokens")
    }
    return Outcomes(
        descriptors([record["entropies"] for record in records]),
        columns["correct"].double().reshape(-1, len(MODES)),
        columns["tokens"].reshape(-1, len(MODES)),
        torch.tensor([record["probe_tokens"] for record in records], dtype=torch.int64),
        tuple(record["dataset"] for record in records),
        tuple(tuple(record["entropies"]) for record in records),
    )


def compared(
    records: Sequence[Mapping[str, Any]], rule: Rule, objective: Objective = DEFAULT
) -> tuple[dict[str, Any], Reached]:
    """Compare a router with every other way.

    Args:
        records: as for `read_outcomes`, with the `probabilities` of the probes' tokens.
        rule: the router's.
        objective: what is fitted where something is fitted here, and whose limit the router should keep.

    Returns:
        `policies`; `datasets` with the same for each alone; `dataset_level`, how often each mode was chosen
        for each data set over 8 choices of its questions; `reliability` of the learned router; and what the
        router itself reached.
    """
    outcomes = read_outcomes(records)
    policies = choices(outcomes, rule.thresholds, objective)
    policies["token signature"] = token_signature([record["probabilities"] for record in records])
    name, chosen = rule.policy(outcomes)
    # Without a calibrated router it is the zero-shot rule, which is there already.
    if chosen != policies["instance, zero shot"] or rule.thresholds != ZERO_SHOT:
        policies[name] = chosen
    learned = cross_validated(outcomes, weight=objective.weight) if len(outcomes) >= LEAST_LEARNED else None
    if learned is not None:
        policies["learned, cross-validated"] = learned.modes
    result = {
        "policies": compare(outcomes, policies, rule),
        "datasets": compare_each(outcomes, policies, rule),
        "dataset_level": dataset_level(outcomes, rule.thresholds),
        "reliability": None if learned is None else reliability(learned),
    }
    return result, objective.reached(*_spent(outcomes, name, chosen, rule))


def choices(
    outcomes: Outcomes,
    thresholds: Thresholds = ZERO_SHOT,
    objective: Objective = DEFAULT,
    seed: int = 0,
) -> dict[str, list[Mode]]:
    """What the policies without a network choose for every question.

    Args:
        outcomes: labelled questions.
        thresholds: of the router; its fallback is everywhere the same.
        objective: what is fitted to the other data sets.
        seed: of the questions that stand for a data set.

    Returns:
        Modes by the policy's name. Leaving one out fits to other data sets than it is measured on; with one
        data set alone it is missing.
    """
    overload = thresholds.overload
    zero_shot = Thresholds(overload=overload)
    found: dict[str, list[Mode]] = {f"always {mode}": [mode] * len(outcomes) for mode in MODES}
    found["oracle"] = oracle(outcomes)
    found["instance, zero shot"] = by_question(outcomes).route(zero_shot)
    for kind in DATASET_POINTS:
        found[f"data set, {kind.replace('_', ' ')}"] = by_dataset(outcomes, kind, seed=seed).route(zero_shot)
    if len(set(outcomes.datasets)) > 1:
        found["instance, leave one out"] = leave_one_out(outcomes, objective, overload)
        found["data set, leave one out"] = leave_one_out(outcomes, objective, overload, by_dataset)
    return found


def dataset_level(outcomes: Outcomes, thresholds: Thresholds) -> dict[str, dict[str, dict[str, int]]]:
    """How often each mode is chosen for each data set as a whole, over several choices of its questions.

    Args:
        outcomes: of which only the trajectories are looked at.
        thresholds: as for `route`.

    Returns:
        Counts by data set, by kind of point and by mode.

    Source:
        EDRM's counts over 8 seeds.
    """
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for kind in DATASET_POINTS:
        for seed in range(DATASET_SEEDS):
            modes = by_dataset(outcomes, kind, seed=seed).route(thresholds)
            for name, mode in sorted(dict(zip(outcomes.datasets, modes, strict=True)).items()):
                own = counts.setdefault(name, {}).setdefault(kind, dict.fromkeys(MODES, 0))
                own[mode] += 1
    return counts


def reliability(learned: Learned) -> dict[str, Any]:
    """Whether the learned router is right as often as it is sure to be.

    Args:
        learned: choices for held-out questions.

    Returns:
        `bins` of equal width that are not empty, each with `n`, the mean `confidence` and the share of
        choices that were `best`; `error`, the expected calibration error.
    """
    place = (learned.confidence * RELIABILITY_BINS).long().clamp(max=RELIABILITY_BINS - 1)
    bins = []
    for index in sorted(set(place.tolist())):
        own = place == index
        confidence, best = learned.confidence[own].mean().item(), learned.best[own].double().mean().item()
        bins.append({"n": int(own.sum()), "confidence": confidence, "best": best})
    gap = sum(one["n"] * abs(one["confidence"] - one["best"]) for one in bins) / len(learned.modes)
    return {"bins": bins, "error": gap}


def compare(
    outcomes: Outcomes, policies: dict[str, list[Mode]], rule: Rule, seed: int = 0
) -> list[dict[str, Any]]:
    """Measure policies.

    Args:
        outcomes: labelled questions.
        policies: as `choices` returns them.
        rule: of the router among them.
        seed: of the bootstrap.

    Returns:
        A record for each policy: `accuracy`, `tokens` and, against always reasoning, `accuracy_gain` and
        `tokens_saved` (a share), each with its 95 % interval; `modes`, how often each was chosen.

    Source:
        Paired bootstrap over questions.
    """
    base_score, base_tokens = _spent(outcomes, REFERENCE, policies[REFERENCE], rule)
    records = []
    for name, modes in policies.items():
        score, tokens = _spent(outcomes, name, modes, rule)
        values = {"accuracy": score, "tokens": tokens, "accuracy_gain": score - base_score}
        measured = {key: vars(bootstrap(value, seed)) for key, value in values.items()}
        measured["tokens_saved"] = vars(bootstrap_saving(tokens, base_tokens, seed))
        records.append({"policy": name, "n": len(modes), **measured, "modes": dict(Counter(modes))})
    return records


def compare_each(
    outcomes: Outcomes, policies: dict[str, list[Mode]], rule: Rule
) -> dict[str, list[dict[str, Any]]]:
    """The same for each data set alone."""
    found = {}
    for name in sorted(set(outcomes.datasets)):
        rows = outcomes.rows_of(name)
        part = {policy: [modes[row] for row in rows] for policy, modes in policies.items()}
        found[name] = compare(outcomes.select(rows), part, rule)
    return found


def _spent(outcomes: Outcomes, name: str, modes: Sequence[Mode], rule: Rule) -> tuple[Tensor, Tensor]:
    """Score and tokens; a policy that looks at no probe does not pay for one."""
    tokens = outcomes.routed_tokens()
    if name.startswith("always") or name == "oracle":
        tokens = outcomes.tokens
    elif name.startswith("data set"):
        own = name.endswith("this router")
        tokens = (rule.route_by(outcomes) if own else by_dataset(outcomes)).tokens
    return taken(outcomes, modes, Routed(outcomes.points, tokens.double(), outcomes.probe))
