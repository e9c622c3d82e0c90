"""What the ops of a beam CRF share: argument checks, candidates, and their pure-torch defaults' scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from petkit.errors import InputError
from petkit.ops import _crf
from petkit.ops._checks import check_tensor

# How the schema of every beam CRF op begins; `dynamic` is empty where it was not given.
ARGUMENTS = "Tensor emissions, Tensor mask, Tensor left, Tensor right, Tensor dynamic"


class Arguments(NamedTuple):
    """Checked arguments of a beam CRF op: the last three are float64 with float64 emissions, else float32."""

    emissions: Tensor
    mask: Tensor
    left: Tensor
    right: Tensor
    dynamic: Tensor
    """(batch, time - 1, rank, rank), or of one dimension and empty."""


def checked(
    emissions: Tensor, mask: Tensor, left: Tensor, right: Tensor, dynamic: Tensor | None
) -> Arguments:
    """Refuse shapes and dtypes that do not fit; widen the factors to the dtype that is computed in.

    Raises:
        InputError: names the argument, what it must be and what came, and a row whose mask begins unset.
    """
    named = {"emissions": emissions, "left": left, "right": right}
    named |= {"dynamic": dynamic} if dynamic is not None else {}
    for name, tensor in named.items():
        check_tensor(name, tensor)
        if tensor.dtype not in _crf.FLOAT_TYPES:
            raise InputError(f"{name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}")
    _check_shapes(named)
    _crf.check_mask(mask, *emissions.shape[:2])
    for name, tensor in (named | {"mask": mask}).items():
        if tensor.device != emissions.device:
            raise InputError(f"{name} must be on {emissions.device} like emissions, got {tensor.device}")
    for name in ("left", "right", "dynamic"):
        if name in named:
            check_finite(name, named[name])
    wide = _crf.computed_in(*named.values())
    if wide == torch.float64:
        emissions = emissions.to(wide)
    matrices = emissions.new_empty(0, dtype=wide) if dynamic is None else dynamic.to(wide)
    return Arguments(emissions, mask, left.to(wide), right.to(wide), matrices)


def _check_shapes(named: dict[str, Tensor]) -> None:
    emissions, left = named["emissions"], named["left"]
    if emissions.dim() != 3 or emissions.shape[2] == 0:
        raise InputError(
            f"emissions must be (batch, time, vocab) with vocab >= 1, got {tuple(emissions.shape)}"
        )
    batch, time, vocab = emissions.shape
    if left.dim() != 2 or left.shape[0] != vocab or left.shape[1] == 0:
        raise InputError(f"left must be ({vocab}, rank) with rank >= 1, got {tuple(left.shape)}")
    rank = left.shape[1]
    for name, shape in (("right", (vocab, rank)), ("dynamic", (batch, max(time - 1, 0), rank, rank))):
        if name in named and named[name].shape != shape:
            raise InputError(
                f"{name} must be {shape} for emissions {tuple(emissions.shape)} and rank {rank}, "
                f"got {tuple(named[name].shape)}"
            )


def check_finite(name: str, tensor: Tensor, axes: Sequence[str] = ()) -> None:
    """Refuse nan and infinity: a path would avoid them in silence.

    Args:
        name: of the tensor, for the message.
        tensor: looked at on the CPU, and not in a compiled graph.
        axes: names of the first dimensions, for the message; without any it has the indices.

    Raises:
        InputError: there is such a value; the message says where the first is.
    """
    tensor = tensor.detach()
    # A sum shows both without another tensor of this size; only where it is not finite is a look worth it.
    if torch.compiler.is_compiling() or tensor.device.type != "cpu" or bool(tensor.sum().isfinite()):
        return
    wrong = tensor.isfinite().logical_not().nonzero()
    if len(wrong):
        place = wrong[0].tolist()
        where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, place, strict=False)) or place
        raise InputError(f"{name} must be finite, got {float(tensor[tuple(place)])} at {where}")


def check_targets(targets: Tensor, mask: Tensor, vocab: int) -> Tensor:
    """Refuse targets of another shape, and a set position whose target is not in the vocabulary.

    Returns:
        int64 targets.
    """
    check_tensor("targets", targets)
    if targets.is_floating_point() or targets.dtype == torch.bool or targets.shape != mask.shape:
        raise InputError(
            f"targets must be integers {tuple(mask.shape)}, got {targets.dtype} {tuple(targets.shape)}"
        )
    targets = targets.to(torch.int64)
    if torch.compiler.is_compiling() or targets.device.type != "cpu":
        return targets
    wrong = ((targets < 0) | (targets >= vocab)) & mask
    if bool(wrong.any()):
        row, time = wrong.nonzero()[0].tolist()
        raise InputError(
            f"targets must lie between 0 and {vocab - 1}, got {int(targets[row, time])} at batch {row}, "
            f"time {time}: unset the mask where there is none"
        )
    return targets


def check_paths_exist(scores: Tensor, arguments: Arguments) -> None:
    """Refuse what makes a score nan or infinite, by its place; on a GPU it shows in the result instead."""
    if torch.compiler.is_compiling() or scores.device.type != "cpu" or bool(scores.isfinite().all()):
        return
    _crf.check_emissions(arguments.emissions, arguments.mask)
    row = int(scores.isfinite().logical_not().nonzero()[0])
    raise InputError(
        f"no path is possible at batch {row}: every candidate of a position is -inf; "
        "leave at least one entry of the vocabulary at each position"
    )


class Beam(NamedTuple):
    """The candidates of a batch without its masked positions."""

    chain: _crf.Chains
    """Its emissions are those of the candidates: (batch, time, beam)."""
    candidates: Tensor
    """int64 (batch, time, beam), in the order of the chain."""
    left: Tensor
    """(batch, time, beam, rank) left factors."""
    turned: Tensor
    """The same times the matrix of the step after them."""
    right: Tensor
    """(batch, time, beam, rank) right factors."""
    matrices: Tensor | None
    """(batch, time - 1, rank, rank) of the steps into positions 1, 2, ... of the chain."""

    def transitions(self, step: int) -> Tensor:
        """Scores (batch, beam, beam) of the transitions from position step - 1 to step."""
        return self.turned[:, step - 1] @ self.right[:, step].transpose(1, 2)


def find_candidates(emissions: Tensor, mask: Tensor, beam: int, targets: Tensor) -> Tensor:
    """The largest emissions of each position, int64 (batch, time, beam), with the targets forced in.

    Args:
        emissions: (batch, time, vocab).
        mask: bool (batch, time).
        beam: how many, at most vocab.
        targets: (batch, time), or empty.
    """
    found = mask.new_empty((*mask.shape, beam), dtype=torch.int64)
    for row, scores in enumerate(emissions):
        # A stable sort: of equal emissions the lower entry is taken.
        found[row] = scores.sort(dim=-1, descending=True, stable=True).indices[:, :beam]
    if targets.dim() == 2:
        wanted = targets.masked_fill(~mask, 0)[:, :, None]
        missing = (found != wanted).all(-1)
        found[:, :, -1] = torch.where(missing, wanted[:, :, 0], found[:, :, -1])
    return found


def beam_of(arguments: Arguments, candidates: Tensor) -> Beam:
    """Gather what the recursions need of the candidates (batch, time, beam)."""
    emissions, mask, left, right, dynamic = arguments
    chain = _crf.chains(emissions.gather(2, candidates), mask)
    placed = candidates.gather(1, chain.order[:, :, None].expand_as(candidates))
    lefts = turned = left[placed]
    matrices = None
    if dynamic.dim() == 4:
        matrices = dynamic.gather(1, steps_into(chain).expand(-1, -1, *dynamic.shape[2:]))
        turned = torch.cat([lefts[:, :-1] @ matrices, lefts[:, -1:]], dim=1)
    return Beam(chain, placed, lefts, turned, right[placed], matrices)


def steps_into(chain: _crf.Chains) -> Tensor:
    """Which matrix belongs to the step into positions 1, 2, ...: that of where it leads to."""
    return (chain.order[:, 1:, None, None] - 1).clamp_min(0)


def forward(beam: Beam) -> _crf.Forward:
    """Forward recursion in logarithms."""
    emissions, lengths, _ = beam.chain
    batch, time, size = emissions.shape
    alphas = emissions.new_empty((time, batch, size))
    offsets = emissions.new_empty((time, batch), dtype=torch.float64)
    alpha, offset = emissions.new_zeros((batch, size)), offsets.new_zeros(batch)
    for t in range(time):
        step = emissions[:, t]
        if t > 0:
            step = (alpha[:, :, None] + beam.transitions(t)).logsumexp(1) + step
        alpha = torch.where((t < lengths)[:, None], step, alpha)
        peak = alpha.amax(-1)
        peak = torch.where(peak == -torch.inf, torch.zeros_like(peak), peak)
        alpha, offset = alpha - peak[:, None], offset + peak
        alphas[t], offsets[t] = alpha, offset
    return _crf.Forward(alphas, offsets, offset + alpha.logsumexp(-1) if time else offset)


class Posterior(NamedTuple):
    """Gradients of the weighted log-partitions, in the order of the chain; masked positions hold 0."""

    emissions: Tensor
    """(batch, time, beam)."""
    left: Tensor
    """(batch, time, beam, rank)."""
    right: Tensor
    """(batch, time, beam, rank)."""
    matrices: Tensor | None
    """(batch, time - 1, rank, rank)."""


def posterior(beam: Beam, weights: Tensor) -> Posterior:
    """Backward recursion: marginals of candidates and of pairs, times the weight of each row (batch,)."""
    emissions, lengths, _ = beam.chain
    alphas, offsets, log_z = forward(beam)
    time = emissions.shape[1]
    of_matrices = None if beam.matrices is None else torch.zeros_like(beam.matrices)
    of_emissions, of_left = torch.zeros_like(emissions), torch.zeros_like(beam.left)
    found = Posterior(of_emissions, of_left, torch.zeros_like(beam.right), of_matrices)
    if time == 0:
        return found
    scale = weights.to(emissions.dtype)[:, None]
    rest = (offsets[-1] - log_z).to(emissions.dtype)[:, None].expand_as(emissions[:, 0])
    for t in range(time - 1, -1, -1):
        rest = rest - (alphas[t] + rest).logsumexp(-1, keepdim=True)
        valid = (t < lengths)[:, None]
        found.emissions[:, t] = torch.where(valid, scale * (alphas[t] + rest).exp(), 0.0)
        if t == 0:
            break
        drift = (offsets[t - 1] - offsets[t]).to(emissions.dtype)[:, None]
        onward = beam.transitions(t) + (emissions[:, t] + rest + drift)[:, None, :]
        pairs = torch.where(valid[:, None], scale[:, None] * (alphas[t - 1][:, :, None] + onward).exp(), 0.0)
        _add_factors(found, beam, t, pairs)
        rest = torch.where(valid, onward.logsumexp(-1), rest)
    return found


def _add_factors(found: Posterior, beam: Beam, step: int, pairs: Tensor) -> None:
    """Carry the gradient of a step's transition scores (batch, beam, beam) on to their factors."""
    of_turned = pairs @ beam.right[:, step]
    found.right[:, step] += pairs.transpose(1, 2) @ beam.turned[:, step - 1]
    if beam.matrices is None or found.matrices is None:
        found.left[:, step - 1] += of_turned
        return
    found.matrices[:, step - 1] = beam.left[:, step - 1].transpose(1, 2) @ of_turned
    found.left[:, step - 1] += of_turned @ beam.matrices[:, step - 1].transpose(1, 2)


class Steps(NamedTuple):
    """The transitions of one path of each row, at positions 1, 2, ... of the batch."""

    before: Tensor
    """(batch, time - 1) the entry at the set position before."""
    here: Tensor
    """(batch, time - 1) the entry here."""
    valid: Tensor
    """bool (batch, time - 1), set where there is an entry."""


def steps_of(paths: Tensor, mask: Tensor) -> Steps:
    """Read the transitions of paths (batch, time); masked positions may hold anything."""
    batch, time = mask.shape
    taken = paths.masked_fill(~mask, 0)
    positions = torch.arange(time, device=mask.device).expand(batch, time)
    last = torch.where(mask, positions, torch.zeros_like(positions)).cummax(1).values
    return Steps(taken.gather(1, last[:, :-1]), taken[:, 1:], mask[:, 1:])


def path_score(arguments: Arguments, paths: Tensor) -> Tensor:
    """Score of one path (batch, time) of each row: (batch,). Masked positions may hold anything."""
    emissions, mask, left, right, dynamic = arguments
    if emissions.shape[1] == 0:
        return left.new_zeros(len(emissions))
    taken = paths.masked_fill(~mask, 0)
    of_tokens = emissions.gather(2, taken[:, :, None])[:, :, 0].double()
    before, here, valid = steps_of(paths, mask)
    lefts = left[before] if dynamic.dim() == 1 else (left[before][:, :, None] @ dynamic)[:, :, 0]
    of_steps = (lefts.double() * right[here]).sum(-1)
    total = torch.where(mask, of_tokens, 0.0).sum(1) + torch.where(valid, of_steps, 0.0).sum(1)
    return total.to(left.dtype)
