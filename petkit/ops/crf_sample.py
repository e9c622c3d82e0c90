"""`crf_sample`: tag sequences drawn from a linear-chain CRF."""

from __future__ import annotations

import torch
from torch import Tensor

from petkit.ops import _crf, _library
from petkit.ops._checks import whole_number


def crf_sample(
    emissions: Tensor,
    mask: Tensor,
    transitions: Tensor,
    start: Tensor,
    end: Tensor,
    num_samples: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Independent tag sequences, each with its probability under the CRF.

    Args:
        emissions: as the next four arguments, see `crf_log_partition`.
        mask: bool (batch, time).
        transitions: (tags, tags).
        start: (tags,).
        end: (tags,).
        num_samples: how many of each row, at least 0.
        generator: of the emissions' device; None takes torch's global one. The same state gives the same
            samples, whatever the number of threads.

    Returns:
        int64 (num_samples, batch, time), -1 at masked positions.

    Raises:
        InputError: as `crf_log_partition`, and for a negative num_samples.

    Source:
        Forward filtering, backward sampling: the last tag from its marginal, each earlier one given the next.
    """
    num_samples = whole_number("num_samples", num_samples, 0)
    arguments = _crf.checked(emissions, mask, transitions, start, end)
    uniforms = torch.rand(
        (num_samples, *mask.shape), dtype=torch.float64, device=mask.device, generator=generator
    )
    parts = (part.detach() for part in arguments)
    found: tuple[Tensor, Tensor] = torch.ops.petkit.crf_sample(*parts, uniforms)
    samples, log_z = found
    _crf.check_paths_exist(log_z, arguments)
    return _crf.possible(samples, log_z)


def _default(
    emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    chain = _crf.chains(emissions, mask)
    alphas, _, log_z = _crf.forward(chain, transitions, start, end)
    batch, time, tags = chain.emissions.shape
    samples = mask.new_empty((len(uniforms), batch, time), dtype=torch.int64)
    into = transitions.double().T
    for t in range(time - 1, -1, -1):
        logits = alphas[t].double() + end
        if t + 1 < time:
            given = alphas[t].double() + into[samples[:, :, t + 1]]
            logits = torch.where((t + 1 < chain.lengths)[:, None], given, logits)
        sums = (logits - logits.amax(-1, keepdim=True)).exp().cumsum(-1).expand(len(uniforms), batch, tags)
        drawn = uniforms[:, :, t, None] * sums[..., -1:]
        samples[:, :, t] = (sums <= drawn).sum(-1).clamp_max(tags - 1)
    placed = [_crf.put_back(sample, chain, -1) for sample in samples]
    return torch.stack(placed) if placed else samples, log_z.to(transitions.dtype)


def _fake(
    emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(uniforms, dtype=torch.int64), transitions.new_empty((emissions.shape[0],))


_library.define(
    f"crf_sample({_crf.ARGUMENTS}, Tensor uniforms) -> (Tensor samples, Tensor log_z)",
    _default,
    _fake,
)
