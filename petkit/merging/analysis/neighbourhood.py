"""How far a merged policy is from each expert on each domain, and who neighbours whom. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Standard errors within which a comparison stays undecided.
CLEAR = 2.0


@dataclass(frozen=True)
class Response:
    """What an expert answered, and how likely two models find it.

    Args:
        prompt: place of the prompt; responses to one prompt are not independent.
        tokens: of the response.
        log_ratio: log pi_expert(y|x) - log pi_merged(y|x), summed over tokens, in nats.
    """

    prompt: int
    tokens: int
    log_ratio: float


@dataclass(frozen=True)
class Divergence:
    """An estimate of KL(expert || merged) in nats, with its standard error (None with one prompt)."""

    estimate: float
    standard_error: float | None


@dataclass(frozen=True)
class Cell:
    """The divergence of one expert on one domain.

    Args:
        per_sequence: mean over prompts.
        per_token: over all tokens.
        prompts: how many there were.
        responses: likewise.
        tokens: likewise.
    """

    per_sequence: Divergence
    per_token: Divergence
    prompts: int
    responses: int
    tokens: int


def estimate(responses: Sequence[Response]) -> Cell | None:
    """Estimate a divergence from an expert's own responses.

    Args:
        responses: drawn from the expert.

    Returns:
        The Monte-Carlo means of log pi_expert - log pi_merged (K1, which may be negative by chance), with
        standard errors over prompts, that of the ratio per token by linearisation; None without a response.

    Source:
        To Mix or To Merge (2602.12566), section 4.2 of whose analyses this is.
    """
    prompts: dict[int, list[Response]] = {}
    for one in responses:
        prompts.setdefault(one.prompt, []).append(one)
    if not prompts:
        return None
    means = [math.fsum(one.log_ratio for one in group) / len(group) for group in prompts.values()]
    sums = [math.fsum(one.log_ratio for one in group) for group in prompts.values()]
    lengths = [sum(one.tokens for one in group) for group in prompts.values()]
    per_token = math.fsum(sums) / sum(lengths)
    # What is left of each prompt when the ratio is taken out; its spread is that of the ratio.
    residuals = [own - per_token * length for own, length in zip(sums, lengths, strict=True)]
    of_token = _standard_error(residuals)
    return Cell(
        Divergence(math.fsum(means) / len(means), _standard_error(means)),
        Divergence(per_token, None if of_token is None else of_token * len(prompts) / sum(lengths)),
        len(prompts),
        len(responses),
        sum(lengths),
    )


def _standard_error(values: Sequence[float]) -> float | None:
    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return math.sqrt(variance / count)


def own_experts(domains: Iterable[str], experts: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Find the expert of each domain.

    Args:
        domains: their names.
        experts: names of models.
        given: experts by domain, where their names differ.

    Returns:
        The expert by domain, for domains that have one: as it is given, or of the same name in any case.
    """
    by_name = {expert.lower(): expert for expert in experts}
    found = {}
    for domain in domains:
        own = given.get(domain) or by_name.get(domain.lower())
        if own is not None:
            found[domain] = own
    return found


def neighbours(
    cells: Mapping[tuple[str, str], Cell | None], own: Mapping[str, str], unit: str
) -> list[dict[str, Any]]:
    """Decide which experts are neighbours of each domain's own.

    Args:
        cells: divergences by expert and domain.
        own: the expert of each domain.
        unit: per_sequence or per_token.

    Returns:
        For every domain with an expert of its own and every other expert: both divergences, `margin` (the own
        expert's minus the other's) with its standard error, and a verdict: neighbour where the other's is
        smaller, not where it is larger, unclear within two standard errors.

    Source:
        To Mix or To Merge (2602.12566): B is a neighbour of A where KL(pi_B || pi_merged) on A's prompts is
        below a threshold set by KL(pi_A || pi_merged); here that is the threshold itself.
    """
    found = []
    domains = list(dict.fromkeys(domain for _, domain in cells))
    for (expert, domain), cell in sorted(cells.items(), key=lambda item: domains.index(item[0][1])):
        reference = cells.get((own[domain], domain)) if domain in own else None
        if cell is None or reference is None or expert == own[domain]:
            continue
        other: Divergence = getattr(cell, unit)
        threshold: Divergence = getattr(reference, unit)
        margin = threshold.estimate - other.estimate
        errors = (threshold.standard_error, other.standard_error)
        error = None if None in errors else math.hypot(*(one or 0.0 for one in errors))
        found.append(
            {
                "domain": domain,
                "own_expert": own[domain],
                "expert": expert,
                "divergence": other.estimate,
                "threshold": threshold.estimate,
                "margin": margin,
                "standard_error": error,
                "verdict": _verdict(margin, error),
            }
        )
    return found


def _verdict(margin: float, error: float | None) -> str:
    if error is None or abs(margin) <= CLEAR * error:
        return "unclear"
    return "neighbour" if margin > 0 else "not"
