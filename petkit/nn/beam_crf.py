"""`BeamCRF`: a linear-chain CRF over a whole vocabulary, for decoders that write all tokens at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from petkit.errors import InputError
from petkit.nn._crf_checks import check_reduction
from petkit.ops import beam_crf_viterbi
from petkit.ops._beam_crf import check_finite
from petkit.ops._checks import check_tensor, whole_number
from petkit.ops.beam_crf_log_partition import log_partition_and_score

REDUCTIONS = ("none", "sum", "mean", "token_mean", "length_mean")

# Small at first: a trained decoder, whose scores come alone, is the start that this model learns from.
FACTOR_STD = 0.1
DYNAMIC_STD = 0.02


class BeamCRF(nn.Module):
    """CRF whose transitions have low rank, over the likeliest tokens of each position.

    score(y) sums the emissions of the tokens and left[y_{i-1}] D_i right[y_i] of each transition. D_i is the
    identity, or with `dynamic` a matrix that a network makes of the hidden states at both ends. Sums and the
    search go over the `beam` likeliest tokens of each position.

    In every method `emissions` is (batch, time, vocab) float32, float64, bfloat16 or float16, raw scores
    without a softmax; `mask` is (batch, time), bool or integer, set where a token is: rows begin with a set
    position, others are skipped wherever they are. None sets all. `hidden` is (batch, time, hidden_size) and
    needed with `dynamic` only.

    Args:
        vocab_size: tokens, at least 1.
        rank: length of the factors.
        beam: candidates at each position; more than vocab_size are all of them, which is exact.
        dynamic: make the transitions of each step out of the hidden states (NART-DCRF).
        hidden_size: width of the hidden states; with `dynamic` only.

    Attributes:
        left: (vocab, rank) factors of the earlier token, from N(0, 0.1^2), so that transitions start near 0.
        right: (vocab, rank) factors of the later token, likewise.
        dynamic: the network, two linear maps around a ReLU, which starts near the identity; None without.

    Raises:
        InputError: sizes below 1, `dynamic` without `hidden_size` or the other way round. The methods raise
            it for shapes and values that do not fit, see `petkit.ops.beam_crf_log_partition`.

    Source:
        Sun et al., Fast Structured Decoding for Sequence Models, NeurIPS 2019. That the network starts near
        the identity is ours: the model with it then starts as the one without.
    """

    dynamic: nn.Sequential | None

    def __init__(
        self,
        vocab_size: int,
        rank: int = 32,
        beam: int = 64,
        dynamic: bool = False,
        hidden_size: int | None = None,
    ) -> None:
        sizes = {"vocab_size": vocab_size, "rank": rank, "beam": beam}
        if dynamic:
            if hidden_size is None:
                raise InputError("dynamic needs hidden_size, the width of the hidden states; got None")
            sizes["hidden_size"] = hidden_size
        elif hidden_size is not None:
            raise InputError(f"hidden_size has an effect with dynamic=True only, got {hidden_size}")
        sizes = {name: whole_number(name, size, 1) for name, size in sizes.items()}
        super().__init__()
        self.vocab_size, self.rank, self.beam = sizes["vocab_size"], sizes["rank"], sizes["beam"]
        self.hidden_size = sizes.get("hidden_size", 0)
        self.left = nn.Parameter(torch.empty(self.vocab_size, self.rank))
        self.right = nn.Parameter(torch.empty(self.vocab_size, self.rank))
        self.dynamic = _matrices(self.hidden_size, self.rank) if dynamic else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the factors and the network anew."""
        nn.init.normal_(self.left, std=FACTOR_STD)
        nn.init.normal_(self.right, std=FACTOR_STD)
        if self.dynamic is not None:
            _reset_matrices(self.dynamic, self.rank)

    def extra_repr(self) -> str:
        """Sizes, for `repr`."""
        return f"vocab_size={self.vocab_size}, rank={self.rank}, beam={self.beam}"

    def forward(
        self,
        emissions: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        hidden: Tensor | None = None,
        reduction: str = "sum",
        include_targets: bool = True,
    ) -> Tensor:
        """Log-likelihood of the targets, to be maximised: a loss is its negative.

        Args:
            emissions: see the class, as `mask` and `hidden`.
            targets: integers (batch, time), anything at masked positions.
            mask: see the class.
            hidden: see the class.
            reduction: `sum` or `mean` over the batch, `token_mean` (the sum divided by all set positions),
                `length_mean` (each row divided by its set positions, then the mean: the paper's), or `none`.
            include_targets: make the targets candidates, in place of the least likely ones, which keeps
                log-likelihoods below 0. Without, the sum is the one that decoding sees.

        Returns:
            A scalar, or (batch,) with `none`; float32 or float64, in nats. Differentiable.

        Raises:
            InputError: see the class; for a mean over nothing; for a target outside the vocabulary, and,
                except that `none` gives its log-likelihood of -inf, for one whose emission is -inf, by batch
                and time.
        """
        mask = self._checked_mask(emissions, mask)
        check_reduction(reduction, REDUCTIONS, mask)
        found = self._log_likelihood(emissions, targets, mask, hidden, include_targets)
        if reduction != "none":
            _check_possible(found, emissions, targets, mask)
        lengths = mask.sum(1)
        if reduction == "length_mean":
            return (found / lengths).mean()
        if reduction == "token_mean":
            return found.sum() / lengths.sum()
        return {"none": found, "sum": found.sum(), "mean": found.mean()}[reduction]

    def decode(
        self, emissions: Tensor, mask: Tensor | None = None, hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The tokens of the highest score.

        Args:
            emissions: see the class, as `mask` and `hidden`.
            mask: see the class.
            hidden: see the class.

        Returns:
            Tokens, int64 (batch, time), -1 where the mask is not set; and scores (batch,), sums of emissions
            and transitions. Candidates of different lengths are compared by `forward` of their tokens with
            `reduction="none"` and `include_targets=False`, divided by their lengths.

        Raises:
            InputError: see the class.

        Source:
            `petkit.ops.beam_crf_viterbi`.
        """
        mask = self._checked_mask(emissions, mask)
        matrices = self.matrices(hidden, mask)
        return beam_crf_viterbi(emissions, mask, self.left, self.right, self.beam, matrices)

    def log_partition(
        self, emissions: Tensor, mask: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """Logarithm of the sum of exp(score) over all paths through the candidates: (batch,) in nats.

        Args:
            emissions: see the class, as `mask` and `hidden`.
            mask: see the class.
            hidden: see the class.

        Raises:
            InputError: see the class.
        """
        mask = self._checked_mask(emissions, mask)
        matrices = self.matrices(hidden, mask)
        return log_partition_and_score(emissions, mask, self.left, self.right, self.beam, matrices)[0]

    def matrices(self, hidden: Tensor | None, mask: Tensor) -> Tensor | None:
        """D of the step into each position but the first: (batch, time - 1, rank, rank), None without.

        The hidden states are those at the position and at the set position before it.
        """
        if self.dynamic is None:
            if hidden is not None:
                raise InputError("hidden has an effect with dynamic=True only; leave it out")
            return None
        if hidden is None:
            raise InputError("dynamic=True needs hidden, the states (batch, time, hidden_size); got None")
        for name, tensor in (("hidden", hidden), ("mask", mask)):
            check_tensor(name, tensor)
        width = self.hidden_size
        if hidden.shape != (*mask.shape, width):
            raise InputError(f"hidden must be {(*mask.shape, width)}, got {tuple(hidden.shape)}")
        hidden = torch.where(mask[:, :, None], hidden, 0.0)
        check_finite("hidden", hidden, ("batch", "time"))
        positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        last = torch.where(mask, positions, torch.zeros_like(positions)).cummax(1).values[:, :-1]
        before = hidden.gather(1, last[:, :, None].expand(-1, -1, width))
        both = torch.cat([before, hidden[:, 1:]], dim=-1)
        flat: Tensor = self.dynamic(both.to(self.left.dtype))
        return flat.view(*flat.shape[:2], self.rank, self.rank)

    def _log_likelihood(
        self, emissions: Tensor, targets: Tensor, mask: Tensor, hidden: Tensor | None, include: bool
    ) -> Tensor:
        matrices = self.matrices(hidden, mask)
        call = (emissions, mask, self.left, self.right, self.beam, matrices)
        log_z, score = log_partition_and_score(*call, targets)
        if not include:
            log_z, _ = log_partition_and_score(*call)
        return score - log_z

    def _checked_mask(self, emissions: Tensor, mask: Tensor | None) -> Tensor:
        check_tensor("emissions", emissions)
        if emissions.dim() != 3 or emissions.shape[2] != self.vocab_size:
            raise InputError(
                f"emissions must be (batch, time, {self.vocab_size}), got {tuple(emissions.shape)}"
            )
        if mask is None:
            return torch.ones(emissions.shape[:2], dtype=torch.bool, device=emissions.device)
        check_tensor("mask", mask)
        if mask.is_floating_point() or mask.is_complex():
            raise InputError(f"mask must be bool or integer, got {mask.dtype}")
        if mask.shape != emissions.shape[:2]:
            expected = tuple(emissions.shape[:2])
            raise InputError(f"mask must be {expected} like emissions, got {tuple(mask.shape)}")
        return mask.bool()


def _check_possible(found: Tensor, emissions: Tensor, targets: Tensor, mask: Tensor) -> None:
    """Refuse a sentence with a forbidden token: one row's -inf would hide what all others say."""
    if torch.compiler.is_compiling() or found.device.type != "cpu" or bool(found.isfinite().all()):
        return
    chosen = emissions.gather(2, targets.long().masked_fill(~mask, 0)[:, :, None])[:, :, 0]
    forbidden = ((chosen == -torch.inf) & mask).nonzero()
    if len(forbidden):
        row, time = forbidden[0].tolist()
        raise InputError(
            f"the target {int(targets[row, time])} of batch {row}, time {time} has an emission of -inf: "
            'its log-likelihood is -inf; reduction="none" gives it'
        )


def _matrices(hidden_size: int, rank: int) -> nn.Sequential:
    """f([h_{i-1}; h_i]): two linear maps, the inner one of the hidden states' width."""
    return nn.Sequential(
        nn.Linear(2 * hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, rank * rank)
    )


def _reset_matrices(network: nn.Sequential, rank: int) -> None:
    inner, outer = network[0], network[2]
    assert isinstance(inner, nn.Linear)
    assert isinstance(outer, nn.Linear)
    inner.reset_parameters()
    nn.init.normal_(outer.weight, std=DYNAMIC_STD)
    with torch.no_grad():
        outer.bias.copy_(torch.eye(rank).flatten())
