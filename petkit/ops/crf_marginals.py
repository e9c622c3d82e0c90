"""`crf_marginals`: the probability of each tag at each position of a linear-chain CRF."""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.ops import _crf, _library


def crf_marginals(emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Probability of each tag at each position under the CRF.

    Args:
        emissions: as all arguments, see `crf_log_partition`.
        mask: bool (batch, time).
        transitions: (tags, tags).
        start: (tags,).
        end: (tags,).

    Returns:
        (batch, time, tags), float32 or float64, 0 at masked positions. Not differentiable.

    Raises:
        InputError: as `crf_log_partition`.

    Source:
        The forward-backward recursions, Rabiner 1989.
    """
    arguments = _crf.checked(emissions, mask, transitions, start, end)
    found: tuple[Tensor, ...] = torch.ops.petkit.crf_marginals(*(part.detach() for part in arguments))
    marginals, _, log_z = found
    _crf.check_paths_exist(log_z, arguments)
    return marginals


def _default(
    emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    chain = _crf.chains(emissions, mask)
    weights = chain.emissions.new_zeros(len(emissions))
    found = _crf.posterior(chain, weights, transitions, start, end)
    log_z = _crf.forward(chain, transitions, start, end).log_z
    return _crf.put_back(found.marginals, chain, 0.0), found.transition_scores, log_z.to(transitions.dtype)


def _fake(
    emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    row = transitions.new_empty((emissions.shape[0],))
    return transitions.new_empty(emissions.shape), row, torch.empty_like(row)


_library.define(
    f"crf_marginals({_crf.ARGUMENTS}) -> (Tensor marginals, Tensor transition_scores, Tensor log_z)",
    _default,
    _fake,
)
