"""What the ops of a linear-chain CRF share: argument checks, and the scans of their pure-torch defaults."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops._checks import check_tensor

# How the schema of every CRF op begins.
ARGUMENTS = "Tensor emissions, Tensor mask, Tensor transitions, Tensor start, Tensor end"

FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Arguments(NamedTuple):
    """Checked arguments of a CRF op: the last three are float64 with float64 emissions, else float32."""

    emissions: Tensor
    mask: Tensor
    transitions: Tensor
    start: Tensor
    end: Tensor


def checked(emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor) -> Arguments:
    """Refuse shapes and dtypes that do not fit; widen the parameters to the dtype that is computed in.

    Raises:
        InputError: names the argument, what it must be and what came, and a row whose mask begins unset.
    """
    named = {"emissions": emissions, "transitions": transitions, "start": start, "end": end}
    for name, tensor in named.items():
        check_tensor(name, tensor)
        if tensor.dtype not in FLOAT_TYPES:
            raise InputError(f"{name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}")
    if emissions.dim() != 3 or emissions.shape[2] == 0:
        raise InputError(
            f"emissions must be (batch, time, tags) with tags >= 1, got {tuple(emissions.shape)}"
        )
    batch, time, tags = emissions.shape
    check_mask(mask, batch, time)
    for name, shape in (("transitions", (tags, tags)), ("start", (tags,)), ("end", (tags,))):
        if named[name].shape != shape:
            raise InputError(
                f"{name} must be {shape} for emissions {tuple(emissions.shape)}, "
                f"got {tuple(named[name].shape)}"
            )
    for name, tensor in (named | {"mask": mask}).items():
        if tensor.device != emissions.device:
            raise InputError(f"{name} must be on {emissions.device} like emissions, got {tensor.device}")
    wide = computed_in(*named.values())
    if wide == torch.float64:
        emissions = emissions.to(wide)
    return Arguments(emissions, mask, transitions.to(wide), start.to(wide), end.to(wide))


def check_mask(mask: Tensor, batch: int, time: int) -> None:
    """Refuse what is not bool (batch, time), and a row whose first position is not set."""
    check_tensor("mask", mask)
    if mask.dtype != torch.bool or mask.shape != (batch, time):
        raise InputError(
            f"mask must be bool {(batch, time)}, got {mask.dtype} {tuple(mask.shape)}: set where a tag is"
        )
    # Reading the mask of a device would stall it, and a compiler's trace has no mask to read.
    if time == 0 or torch.compiler.is_compiling() or mask.device.type != "cpu" or bool(mask[:, 0].all()):
        return
    row = int(mask[:, 0].logical_not().nonzero()[0])
    what = "is set nowhere" if not mask[row].any() else "is not set at time 0"
    raise InputError(
        f"mask[{row}] {what}: a sequence must begin at time 0 and have at least one position; "
        "leave empty sequences out"
    )


def computed_in(*tensors: Tensor) -> torch.dtype:
    """float64 when one of the tensors is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def check_paths_exist(scores: Tensor, arguments: Arguments) -> None:
    """Refuse what makes a score nan or infinite, by its place; on a GPU it shows in the result instead.

    Args:
        scores: (batch,) log-partition or score of the best path.
        arguments: what gave them.

    Raises:
        InputError: an emission is nan or +inf, or a row has no path without a -inf.
    """
    if torch.compiler.is_compiling() or scores.device.type != "cpu" or bool(scores.isfinite().all()):
        return
    emissions, mask, *parameters = arguments
    for name, tensor in zip(("transitions", "start", "end"), parameters, strict=True):
        if bool(tensor.isnan().any()) or bool(tensor.isposinf().any()):
            place = (tensor.isnan() | tensor.isposinf()).nonzero()[0].tolist()
            raise InputError(
                f"{name} must be finite or -inf, got {float(tensor.detach()[tuple(place)])} at {place}"
            )
    check_emissions(emissions, mask)
    row = int(scores.isfinite().logical_not().nonzero()[0])
    raise InputError(
        f"no path is possible at batch {row}: every one meets a -inf of emissions, transitions, start or "
        "end; loosen its constraints or labels"
    )


def possible(paths: Tensor, scores: Tensor) -> Tensor:
    """Paths with -1 where there is none, for compiled code and GPUs, where `check_paths_exist` does not look.

    Args:
        paths: (..., time).
        scores: (...) of them, nan or infinite where something is wrong.

    Returns:
        The paths.
    """
    if not torch.compiler.is_compiling() and scores.device.type == "cpu":
        return paths
    return torch.where(scores.isfinite()[..., None], paths, -1)


def check_emissions(emissions: Tensor, mask: Tensor) -> None:
    """Refuse nan and +inf at set positions, naming the first by batch and time."""
    # Row by row: a mask of a large vocabulary's size would be another large tensor.
    for row, valid in enumerate(mask):
        wrong = ~(emissions[row] < torch.inf).all(-1) & valid
        if bool(wrong.any()):
            position = int(wrong.nonzero()[0])
            kind = "nan" if bool(emissions[row, position].isnan().any()) else "inf"
            raise InputError(
                f"emissions must be finite or -inf, got {kind} at batch {row}, time {position}: "
                "look at what computed them"
            )


class Chains(NamedTuple):
    """A batch without its masked positions, in the dtype that is computed in."""

    emissions: Tensor
    """(batch, time, tags), the set positions of each row first."""
    lengths: Tensor
    """(batch,) how many are set."""
    order: Tensor
    """(batch, time) where each position was."""


def chains(emissions: Tensor, mask: Tensor) -> Chains:
    """Move the set positions of each row to its front."""
    order = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    wide = emissions.to(computed_in(emissions))
    return Chains(wide.gather(1, order[:, :, None].expand_as(wide)), mask.sum(1), order)


def put_back(values: Tensor, chain: Chains, fill: float) -> Tensor:
    """Undo `chains`: values (batch, time, ...) at their places, `fill` at masked ones."""
    time = values.shape[1]
    valid = torch.arange(time, device=values.device) < chain.lengths[:, None]
    shape = (*valid.shape, *[1] * (values.dim() - 2))
    kept = torch.where(valid.view(shape), values, torch.full_like(values, fill))
    return torch.empty_like(kept).scatter_(1, chain.order.view(shape).expand_as(kept), kept)


class Forward(NamedTuple):
    """Forward variables. log of the sum over prefixes ending in a tag is alpha + offset."""

    alphas: Tensor
    """(time, batch, tags), the largest of each row 0."""
    offsets: Tensor
    """(time, batch) float64, so that long sequences lose no digits."""
    log_z: Tensor
    """(batch,) float64."""


def forward(chain: Chains, transitions: Tensor, start: Tensor, end: Tensor) -> Forward:
    """Run the forward recursion over the whole batch."""
    emissions, lengths, _ = chain
    batch, time, tags = emissions.shape
    alphas = emissions.new_empty((time, batch, tags))
    offsets = emissions.new_empty((time, batch), dtype=torch.float64)
    if time == 0:
        return Forward(alphas, offsets, offsets.new_zeros(batch))
    alpha, offset = emissions[:, 0] + start, offsets.new_zeros(batch)
    for t in range(time):
        if t > 0:
            step = (alpha[:, :, None] + transitions).logsumexp(1) + emissions[:, t]
            alpha = torch.where((t < lengths)[:, None], step, alpha)
        peak = alpha.amax(-1)
        peak = torch.where(peak == -torch.inf, torch.zeros_like(peak), peak)
        alpha, offset = alpha - peak[:, None], offset + peak
        alphas[t], offsets[t] = alpha, offset
    return Forward(alphas, offsets, offset + (alpha + end).logsumexp(-1))


class Posterior(NamedTuple):
    """What follows from the marginals of tags and of pairs."""

    marginals: Tensor
    """(batch, time, tags), in the order of `Chains`."""
    pairs: Tensor
    """(tags, tags): weighted sum over the batch of the expected number of each transition."""
    transition_scores: Tensor
    """(batch,): expected sum of the transitions' scores."""


def posterior(chain: Chains, weights: Tensor, transitions: Tensor, start: Tensor, end: Tensor) -> Posterior:
    """Run the forward and the backward recursion; nothing larger than (batch, tags, tags) lives at a time.

    Args:
        chain: the batch.
        weights: (batch,) weight of each row in `pairs`.
        transitions: (tags, tags).
        start: (tags,).
        end: (tags,).
    """
    emissions, lengths, _ = chain
    batch, time, tags = emissions.shape
    alphas, offsets, log_z = forward(chain, transitions, start, end)
    marginals = emissions.new_zeros((batch, time, tags))
    pairs, scores = torch.zeros_like(transitions), emissions.new_zeros(batch)
    if time == 0:
        return Posterior(marginals, pairs, scores)
    # 0 times the -inf of a forbidden transition counts as 0.
    allowed = torch.where(transitions == -torch.inf, torch.zeros_like(transitions), transitions)
    rest = end + (offsets[-1] - log_z).to(emissions.dtype)[:, None]
    for t in range(time - 1, -1, -1):
        # Rounding drifts over many steps; that the marginals sum to 1 takes the drift out.
        rest = rest - (alphas[t] + rest).logsumexp(-1, keepdim=True)
        marginals[:, t] = (alphas[t] + rest).exp()
        if t == 0:
            break
        drift = (offsets[t - 1] - offsets[t]).to(emissions.dtype)[:, None]
        following = (transitions + (emissions[:, t] + rest + drift)[:, None, :]).logsumexp(-1)
        pair = (alphas[t - 1][:, :, None] + transitions + (emissions[:, t] + rest + drift)[:, None, :]).exp()
        pair = torch.where((t < lengths)[:, None, None], pair, torch.zeros_like(pair))
        # A product of matrices would be rounded to half precision where the backward runs under autocast.
        pairs += (pair * weights[:, None, None].to(pair.dtype)).sum(0)
        scores += (pair * allowed).sum((1, 2))
        rest = torch.where((t < lengths)[:, None], following, rest)
    return Posterior(marginals, pairs, scores)


def score(chain: Chains, paths: Tensor, transitions: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Score of one path (batch, time) of each row, in the order of `Chains`, summed in float64.

    A row with a nan or +inf scores nan, whether its path meets it or not.

    Returns:
        (batch,), in the dtype that is computed in.
    """
    emissions, lengths, _ = chain
    time = emissions.shape[1]
    if time == 0:
        return emissions.new_zeros(len(emissions))
    valid = torch.arange(time, device=paths.device) < lengths[:, None]
    of_tags = emissions.gather(2, paths[:, :, None])[:, :, 0].double()
    of_steps = transitions[paths[:, :-1], paths[:, 1:]].double()
    last = paths.gather(1, (lengths - 1)[:, None])[:, 0]
    total = torch.where(valid, of_tags, 0.0).sum(1) + torch.where(valid[:, 1:], of_steps, 0.0).sum(1)
    total = total + start[paths[:, 0]] + end[last]
    # The path may pass by what is no number; its score must not hide it.
    spoiled = (valid & ~(emissions < torch.inf).all(-1)).any(1)
    for parameter in (transitions, start, end):
        spoiled = spoiled | ~(parameter < torch.inf).all()
    return torch.where(spoiled, torch.nan, total).to(emissions.dtype)
