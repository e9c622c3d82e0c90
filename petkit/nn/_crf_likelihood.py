"""Log-likelihoods of a linear-chain CRF as pure functions: of one path, of allowed tags, weighted by tag."""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.nn import _crf_chain
from petkit.nn._crf_checks import readable
from petkit.ops import _crf, crf_log_partition

# Transitions (tags, tags), start (tags,) and end (tags,).
Parameters = tuple[Tensor, Tensor, Tensor]


def path_score(emissions: Tensor, mask: Tensor, tags: Tensor, parameters: Parameters) -> Tensor:
    """Score of one path of each row.

    Args:
        emissions: (batch, time, tags).
        mask: bool (batch, time); positions that are not set are skipped.
        tags: integers (batch, time); what is at masked positions does not matter.
        parameters: transitions, start and end.

    Returns:
        (batch,) float64; nan where a tag is out of range.
    """
    if emissions.shape[1] == 0:
        return emissions.new_zeros(len(emissions), dtype=torch.float64)
    transitions, start, end = parameters
    tags, known = _in_range(tags, mask, emissions.shape[2])
    positions = torch.arange(tags.shape[1], device=tags.device)
    # The tag of the last set position up to each.
    held = tags.gather(1, torch.where(mask, positions, 0).cummax(1).values)
    of_tags = emissions.gather(2, tags[:, :, None])[:, :, 0]
    # All positions take part, the first too: an axis of time - 1 would bind what is exported to time > 2.
    # The gradient of index_select is a faster sum than that of indexing with two tensors.
    pairs = held.roll(1, 1) * emissions.shape[2] + tags
    of_steps = transitions.reshape(-1).index_select(0, pairs.reshape(-1)).view_as(pairs)
    total = torch.where(mask, of_tags, 0.0).sum(1, dtype=torch.float64)
    total = total + torch.where(mask & (positions > 0), of_steps, 0.0).sum(1, dtype=torch.float64)
    total = total + start.index_select(0, tags[:, 0]) + end.index_select(0, held[:, -1])
    return torch.where(known, total, torch.nan)


def _in_range(tags: Tensor, mask: Tensor, num_tags: int) -> tuple[Tensor, Tensor]:
    """Tags with 0 where they do not matter or do not exist, and (batch,) whether all that matter exist."""
    # A narrow type might not even hold num_tags.
    tags = tags.long()
    exists = (tags >= 0) & (tags < num_tags)
    return torch.where(exists & mask, tags, 0), (exists | ~mask).all(1)


def log_likelihood(emissions: Tensor, mask: Tensor, tags: Tensor, parameters: Parameters) -> Tensor:
    """Log-probability of one path of each row; arguments as `path_score`.

    Returns:
        (batch,), -inf for a path that a score of -inf forbids.
    """
    log_z = crf_log_partition(emissions, mask, *parameters)
    score = path_score(emissions, mask, tags, parameters)
    return (score - log_z).to(log_z.dtype)


def partial_log_likelihood(
    emissions: Tensor, mask: Tensor, allowed: Tensor, parameters: Parameters
) -> Tensor:
    """Log of the total probability of all paths through allowed tags.

    Args:
        emissions: (batch, time, tags).
        mask: bool (batch, time).
        allowed: bool (batch, time, tags).
        parameters: transitions, start and end.

    Returns:
        (batch,), at most 0 up to rounding; -inf where no path leads through allowed tags.

    Source:
        Tsuboi et al. 2008, Training Conditional Random Fields Using Incomplete Annotations.
    """
    log_z = crf_log_partition(emissions, mask, *parameters)
    restricted = emissions.masked_fill(~allowed, -torch.inf)
    # Labels without a path are an answer here, and no error as for log_z.
    found: Tensor = torch.ops.petkit.crf_log_partition(*_crf.checked(restricted, mask, *parameters))
    return found - log_z


def weighted_log_likelihood(
    emissions: Tensor, mask: Tensor, tags: Tensor, parameters: Parameters, weights: Tensor
) -> Tensor:
    """Sum over the set positions of weights[y_i] * log p(y_i | y_1 ... y_{i-1}).

    Args:
        emissions: as the next three arguments, see `path_score`.
        mask: bool (batch, time).
        tags: integers (batch, time).
        parameters: transitions, start and end.
        weights: (tags,), at least 0.

    Returns:
        (batch,); weights of 1 give `log_likelihood`.

    Source:
        The chain rule of probability; a CRF is a Markov chain, so that p(y_i | y_1 ... y_{i-1}) =
        p(y_i | y_{i-1}). It is to sequences what the weight of torch.nn.CrossEntropyLoss is to one label.
    """
    # Says by name what makes probabilities nan.
    with torch.no_grad():
        crf_log_partition(emissions, mask, *parameters)
    chain = _crf_chain.compact(emissions, mask, parameters)
    tags, known = _in_range(tags, mask, emissions.shape[2])
    path = tags.gather(1, chain.order)
    weights = weights.to(chain.emissions.dtype)
    rows = torch.arange(len(path), device=path.device)
    total = chain.emissions.new_zeros(len(path))
    for t, log_p in _crf_chain.conditionals(chain):
        found = log_p[rows, path[:, t - 1] if t else 0, path[:, t]]
        weight = weights[path[:, t]]
        # A tag of weight 0 counts for nothing, be it forbidden or not.
        counts = (t < chain.lengths) & (weight > 0)
        total = total + torch.where(counts, weight * found, 0.0)
    return torch.where(known, total, torch.nan)


def weights_of(tags: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Weight (batch, time) of the tag at each position, 0 at masked ones."""
    tags, _ = _in_range(tags, mask, len(weights))
    return torch.where(mask, weights[tags], 0.0)


def check_possible(
    found: Tensor, emissions: Tensor, mask: Tensor, tags: Tensor, parameters: Parameters
) -> None:
    """Refuse labels whose log-likelihood is -inf, by the place that forbids them.

    Args:
        found: (batch,) log-likelihoods.
        emissions: as the next three arguments, see `path_score`.
        mask: bool (batch, time).
        tags: integers (batch, time), or bool (batch, time, tags): those that are allowed.
        parameters: transitions, start and end.

    Raises:
        InputError: names batch, time and what forbids the tags there.
    """
    if not readable(found) or not bool((found == -torch.inf).any()):
        return
    row = int((found == -torch.inf).nonzero()[0])
    at = mask[row].nonzero()[:, 0].tolist()
    scores = emissions[row].detach()
    if tags.dim() == 3:
        time, why = _forbidden_set(scores, at, tags[row], parameters)
    else:
        time, why = _forbidden(scores, at, tags[row].tolist(), parameters)
    raise InputError(
        f"tags of batch {row} are impossible, log-likelihood -inf: at time {time} {why}; correct the labels, "
        'loosen the constraints or scores, or take reduction="none" to get -inf'
    )


def _forbidden(scores: Tensor, at: list[int], tags: list[int], parameters: Parameters) -> tuple[int, str]:
    """Time of the first score of -inf of a path (scores of one row, its set positions), and what it is."""
    transitions, start, end = parameters
    for before, time in zip([None, *at[:-1]], at, strict=True):
        tag = tags[time]
        if scores[time, tag] == -torch.inf:
            return time, f"the emission of tag {tag} is -inf"
        if before is None and start[tag] == -torch.inf:
            return time, f"tag {tag} may not be the first"
        if before is not None and transitions[tags[before], tag] == -torch.inf:
            return time, f"tag {tag} may not follow tag {tags[before]}"
    if end[tags[at[-1]]] == -torch.inf:
        return at[-1], f"tag {tags[at[-1]]} may not be the last"
    return at[0], "the scores are too low for their dtype"


def _forbidden_set(scores: Tensor, at: list[int], allowed: Tensor, parameters: Parameters) -> tuple[int, str]:
    """Time at which the last path through allowed tags (time, tags) of a row breaks off, and why."""
    follows, first, last = (part.detach() > -torch.inf for part in parameters)
    reached, what = first, "may be the first"
    for i, time in enumerate(at):
        if i > 0:
            reached, what = follows[reached].any(0), "may follow those that are possible before"
        possible = allowed[time] & (scores[time] > -torch.inf)
        if not bool((reached & possible).any()):
            return time, f"none of the allowed tags {_listed(allowed[time])} {what}"
        reached = reached & possible
    if not bool((reached & last).any()):
        return at[-1], f"none of the allowed tags {_listed(allowed[at[-1]])} may be the last"
    return at[0], "the scores are too low for their dtype"


def _listed(allowed: Tensor, most: int = 8) -> str:
    """The tags of a set (tags,), the first of many."""
    tags = allowed.nonzero()[:, 0].tolist()
    return ", ".join(map(str, tags[:most])) + (", ..." if len(tags) > most else "")
