"""Every way of routing on the same questions: accuracy, tokens, and what is saved, with paired intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from petkit.methods.edrm.algorithm import (
    MODES,
    Descriptors,
    Mode,
    Thresholds,
    descriptors,
    explain,
    regimes,
    route,
    token_signature,
)
from petkit.methods.edrm.calibration import (
    GLOBAL_QUESTIONS,
    TOKEN_WEIGHT,
    ZERO_SHOT,
    Objective,
    Outcomes,
    bootstrap,
    leave_one_out,
    oracle,
    route_datasets,
    taken,
)
from petkit.methods.edrm.config import RouterConfig
from petkit.methods.edrm.learned import cross_validated

REFERENCE = "always cot"


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
    )


def compared(
    records: Sequence[Mapping[str, Any]], thresholds: Thresholds, objective: Objective | None = None
) -> tuple[dict[str, Any], bool]:
    """Compare a router's thresholds with every other way.

    Args:
        records: as for `read_outcomes`, with the `probabilities` of the probes' tokens.
        thresholds: of the router.
        objective: whose limit the router should keep.

    Returns:
        `policies`, and `datasets` with the same for each alone; and whether the limit holds.
    """
    outcomes = read_outcomes(records)
    signature = token_signature([record["probabilities"] for record in records])
    policies = choices(outcomes, thresholds, signature)
    result = {"policies": compare(outcomes, policies), "datasets": by_dataset(outcomes, policies)}
    met = objective is None or objective.is_met(*taken(outcomes, route(outcomes.points, thresholds)))
    return result, met


def explained(records: Sequence[Mapping[str, Any]], config: RouterConfig) -> list[dict[str, Any]]:
    """Say for each trajectory where it lies, what is decided and why.

    Args:
        records: with `id` and `entropies`, of which the first `probe_tokens` count.
        config: the router's.

    Returns:
        `id`, `decision`, `regime`, the three descriptors and `reason` of each.

    Raises:
        InputError: an entropy that is negative or not finite.
    """
    thresholds = Thresholds(**config.thresholds.model_dump())
    points = descriptors([record["entropies"][: config.probe_tokens] for record in records])
    rows = zip(
        records,
        points.stack().tolist(),
        route(points, thresholds),
        regimes(points, thresholds),
        strict=True,
    )
    return [
        {
            "id": record["id"],
            "decision": decision,
            "regime": regime,
            **dict(zip(Descriptors._fields, point, strict=True)),
            "reason": explain(tuple(point), thresholds),
        }
        for record, point, decision, regime in rows
    ]


def choices(
    outcomes: Outcomes,
    thresholds: Thresholds = ZERO_SHOT,
    signature: Sequence[Mode] | None = None,
    seed: int = 0,
    weight: float = TOKEN_WEIGHT,
) -> dict[str, list[Mode]]:
    """What every policy chooses for every question.

    Args:
        outcomes: labelled questions.
        thresholds: of the router under test.
        signature: the choices of the Token-Signature baseline, if its probabilities are known.
        seed: of samples and folds.
        weight: of a decade of tokens, for what is fitted here.

    Returns:
        Modes by the policy's name. What is fitted is fitted to other data sets (leave one out) or other
        folds than it is measured on; with one data set alone there is no leaving one out.
    """
    found: dict[str, list[Mode]] = {f"always {mode}": [mode] * len(outcomes) for mode in MODES}
    found["oracle"] = oracle(outcomes)
    if signature is not None:
        found["token signature"] = list(signature)
    found["instance, zero shot"] = route(outcomes.points)
    if thresholds != ZERO_SHOT:
        found["instance, this router"] = route(outcomes.points, thresholds)
    found["data set, zero shot"] = route_datasets(outcomes, seed=seed)
    if len(set(outcomes.datasets)) > 1:
        found["instance, leave one out"] = leave_one_out(outcomes, Objective(weight=weight))
    if len(outcomes) >= 2:
        found["learned, cross-validated"] = cross_validated(outcomes, seed, weight)
    return found


def compare(outcomes: Outcomes, policies: dict[str, list[Mode]], seed: int = 0) -> list[dict[str, Any]]:
    """Measure policies.

    Args:
        outcomes: labelled questions.
        policies: as `choices` returns them.
        seed: of the bootstrap.

    Returns:
        A record for each policy: `accuracy`, `tokens` and, against always reasoning, `accuracy_gain` and
        `tokens_saved` (a share), each with its 95 % interval; `modes`, how often each was chosen.

    Source:
        Paired bootstrap over questions.
    """
    base_score, base_tokens = _spent(outcomes, REFERENCE, policies[REFERENCE])
    records = []
    for name, modes in policies.items():
        score, tokens = _spent(outcomes, name, modes)
        saved = (base_tokens - tokens) / base_tokens.mean()
        values = {
            "accuracy": score,
            "tokens": tokens,
            "accuracy_gain": score - base_score,
            "tokens_saved": saved,
        }
        measured = {key: vars(bootstrap(value, seed)) for key, value in values.items()}
        records.append({"policy": name, "n": len(modes), **measured, "modes": dict(Counter(modes))})
    return records


def by_dataset(outcomes: Outcomes, policies: dict[str, list[Mode]]) -> dict[str, list[dict[str, Any]]]:
    """The same for each data set alone."""
    found = {}
    for name in sorted(set(outcomes.datasets)):
        rows = outcomes.rows_of(name)
        part = {policy: [modes[row] for row in rows] for policy, modes in policies.items()}
        found[name] = compare(outcomes.select(rows), part)
    return found


def _spent(outcomes: Outcomes, name: str, modes: Sequence[Mode]) -> tuple[Tensor, Tensor]:
    """Score and tokens; a policy that looks at no probe does not pay for one."""
    score, tokens = taken(outcomes, modes)
    if name.startswith("always") or name == "oracle":
        index = [MODES.index(mode) for mode in modes]
        tokens = outcomes.tokens[range(len(modes)), index].double()
    elif name.startswith("data set"):
        tokens = outcomes.tokens[range(len(modes)), [MODES.index(mode) for mode in modes]].double()
        tokens = tokens + _shared_probes(outcomes)
    return score, tokens


def _shared_probes(outcomes: Outcomes) -> Tensor:
    """The cost of probing up to 50 questions of a data set, shared by all of its questions."""
    share = outcomes.probe.double().clone()
    for name in set(outcomes.datasets):
        rows = outcomes.rows_of(name)
        share[rows] = outcomes.probe[rows].double().mean() * min(GLOBAL_QUESTIONS, len(rows)) / len(rows)
    return share
