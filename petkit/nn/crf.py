"""`CRF`: a linear-chain conditional random field over the scores of any network."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Generator, Tensor, nn

from petkit.errors import InputError
from petkit.nn import _crf_chain, _crf_checks, _crf_likelihood
from petkit.nn._crf_likelihood import Parameters
from petkit.nn.constraints import Constraints
from petkit.nn.constraints import checked as checked_constraints
from petkit.ops import crf_kbest, crf_log_partition, crf_marginals, crf_sample, crf_viterbi
from petkit.ops._checks import whole_number


class CRF(nn.Module):
    """Linear-chain conditional random field; a drop-in for `torchcrf.CRF` of pytorch-crf 0.7.2.

    p(y | x) = exp(score(y)) / Z, where score(y) sums the emissions of the tags, a score of each transition
    from a tag to the next, one of the first and one of the last tag, and Z sums exp(score) over all y.

    In every method `emissions` is (time, batch, tags), or (batch, time, tags) with `batch_first`, in float32,
    float64, bfloat16 or float16; scores of -inf forbid a tag. `mask` is (time, batch) or (batch, time) alike,
    bool or integer, set where a tag is: each sequence must begin at its first position, and positions that
    are not set are skipped wherever they are, whatever is in them. None sets all. Sums run in float32, or in
    float64 when emissions or parameters are.

    Args:
        num_tags: how many tags there are, at least 1.
        batch_first: whether the batch is the first axis of emissions, tags, mask, and of what is returned.
        constraints: which transitions, first and last tags are allowed (`petkit.nn.Constraints`, e.g. of
            `petkit.nn.bio_constraints`); others get a score of -inf. They are not part of the state dict.
        constrain: `both` applies them everywhere, `decode` everywhere but in `forward` and `log_partition`.

    Attributes:
        start_transitions: (tags,) score of the first tag.
        end_transitions: (tags,) score of the last tag.
        transitions: (tags, tags) score of [from, to].

    Raises:
        InputError: num_tags below 1, constraints of another size, another `constrain`, or `decode` without
            constraints. The methods raise it for shapes, dtypes and values that do not fit and name batch and
            time of a wrong value; on a GPU and in compiled code, where values are not looked at, they show as
            nan or -inf in the result.

    Source:
        Lafferty, McCallum and Pereira 2001.
    """

    transitions_allowed: Tensor | None
    start_allowed: Tensor | None
    end_allowed: Tensor | None

    def __init__(
        self,
        num_tags: int,
        batch_first: bool = False,
        constraints: Constraints | None = None,
        constrain: Literal["both", "decode"] = "both",
    ) -> None:
        num_tags = whole_number("num_tags", num_tags, 1)
        if constrain not in ("both", "decode"):
            raise InputError(f"constrain must be both or decode, got {constrain!r}")
        if constraints is None and constrain != "both":
            raise InputError(f"constrain={constrain!r} has no effect without constraints: leave it out")
        super().__init__()
        self.num_tags = num_tags
        self.batch_first = batch_first
        self.constrain = constrain
        self.start_transitions = nn.Parameter(torch.empty(num_tags))
        self.end_transitions = nn.Parameter(torch.empty(num_tags))
        self.transitions = nn.Parameter(torch.empty(num_tags, num_tags))
        allowed = (None, None, None) if constraints is None else checked_constraints(constraints, num_tags)
        for name, part in zip(Constraints._fields, allowed, strict=True):
            # Not in the state dict, which is the same as that of torchcrf.
            part = None if part is None else part.to(self.transitions.device)
            self.register_buffer(f"{name}_allowed", part, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters from U(-0.1, 0.1), in the order of torchcrf: a seed gives the same values."""
        for parameter in (self.start_transitions, self.end_transitions, self.transitions):
            nn.init.uniform_(parameter, -0.1, 0.1)

    def __repr__(self) -> str:
        sizes, (transitions, start, end) = f"num_tags={self.num_tags}", self._allowed
        if transitions is None or start is None or end is None:
            return f"{type(self).__name__}({sizes})"
        allowed = Constraints(transitions, start, end)
        return f"{type(self).__name__}({sizes}, constraints={allowed}, constrain={self.constrain!r})"

    def forward(
        self,
        emissions: Tensor,
        tags: Tensor,
        mask: Tensor | None = None,
        reduction: str = "sum",
        weights: Tensor | None = None,
    ) -> Tensor:
        """Log-likelihood of tag sequences, to be maximised: a loss is its negative.

        Args:
            emissions: see the class; so is `mask`.
            tags: integers with the axes of the mask, 0 to num_tags - 1 where the mask is set, anything
                elsewhere. Or bool with the axes of emissions, partial labels: the tags that each position may
                have. The likelihood is then that of all sequences through allowed tags; a position with an
                unknown label allows all.
            mask: see the class.
            reduction: `sum` over the batch, `mean` over the batch, `token_mean` (sum over the batch divided
                by the number of set positions), or `none`.
            weights: (tags,) float, at least 0. Each sequence then counts the sum over its positions of
                weights[y_i] * log p(y_i | y_1 ... y_{i-1}), which is the log-likelihood where all weights are
                1, and `token_mean` divides by the sum of the weights of all tags. Slower, as it runs in plain
                torch. Not for partial labels.

        Returns:
            A scalar, or (batch,) with `none`; float32 or float64, in nats. Differentiable.

        Raises:
            InputError: see the class; for a mean over nothing; and for a sequence that constraints or scores
                of -inf forbid, by batch and time, except that `none` gives its log-likelihood of -inf.

        Source:
            See `petkit.nn._crf_likelihood` for partial labels and weights.
        """
        emissions, mask = self._inputs(emissions, mask)
        tags = self._checked_tags(tags, emissions, mask)
        _crf_checks.check_reduction(reduction, _crf_checks.REDUCTIONS, mask)
        if weights is not None:
            _crf_checks.check_weights(weights, self.num_tags)
            weights = weights.to(emissions.device)
        found = self._log_likelihood(emissions, mask, tags, weights, reduction)
        if reduction == "none":
            return found
        if reduction == "token_mean":
            counted = mask if weights is None else _crf_likelihood.weights_of(tags, mask, weights)
            _crf_checks.check_something_counts(counted)
            return found.sum() / counted.sum().to(found.dtype)
        return found.sum() if reduction == "sum" else found.mean()

    def _log_likelihood(
        self, emissions: Tensor, mask: Tensor, tags: Tensor, weights: Tensor | None, reduction: str
    ) -> Tensor:
        parameters = self._scores(self.constrain == "both")
        # The gradient at the tag, 1 - p, would vanish in half precision long before p is 1.
        emissions = emissions.to(_crf_chain.computed_in(emissions))
        if tags.dim() == 3:
            if weights is not None:
                raise InputError("weights need one tag a position, but tags are bool: they allow several")
            found = _crf_likelihood.partial_log_likelihood(emissions, mask, tags, parameters)
        elif weights is None:
            found = _crf_likelihood.log_likelihood(emissions, mask, tags, parameters)
        else:
            found = _crf_likelihood.weighted_log_likelihood(emissions, mask, tags, parameters, weights)
        if reduction != "none":
            _crf_likelihood.check_possible(found, emissions, mask, tags, parameters)
        return found

    @overload
    def decode(
        self, emissions: Tensor, mask: Tensor | None = None, as_tensor: Literal[False] = False
    ) -> list[list[int]]: ...

    @overload
    def decode(
        self, emissions: Tensor, mask: Tensor | None = None, *, as_tensor: Literal[True]
    ) -> Tensor: ...

    @overload
    def decode(self, emissions: Tensor, mask: Tensor | None, as_tensor: Literal[True]) -> Tensor: ...

    def decode(
        self, emissions: Tensor, mask: Tensor | None = None, as_tensor: bool = False
    ) -> list[list[int]] | Tensor:
        """The tag sequence of the highest score.

        Args:
            emissions: see the class; so is `mask`.
            mask: see the class.
            as_tensor: return a tensor; for compiled and exported code, and to stay on a GPU.

        Returns:
            A list of the tags of each sequence, those of set positions only. With `as_tensor` int64 with the
            axes of the mask, (time, batch) or (batch, time) with `batch_first`, -1 where the mask is not set.

        Raises:
            InputError: see the class; and for a sequence without a possible path.

        Source:
            `petkit.ops.crf_viterbi`.
        """
        emissions, mask = self._inputs(emissions, mask)
        paths, _ = crf_viterbi(emissions, mask, *self._scores(True))
        if as_tensor:
            return self._batch_first(paths)
        lengths = mask.sum(1).tolist()
        tags = iter(paths[mask].tolist())
        return [[next(tags) for _ in range(length)] for length in lengths]

    def kbest(self, emissions: Tensor, k: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The k tag sequences of the highest scores.

        Args:
            emissions: see the class; so is `mask`.
            k: how many, at least 1. Time and memory grow with k.
            mask: see the class.

        Returns:
            Paths, int64 (time, k, batch), or (batch, k, time) with `batch_first`, so that paths[:, 0] is what
            `decode` gives, -1 where the mask is not set; and scores (batch, k), the highest first. A sequence
            with fewer than k possible paths ends with paths of -1 and scores of -inf. A score minus
            `log_partition` is a log-probability.

        Raises:
            InputError: see the class; and for k below 1.

        Source:
            `petkit.ops.crf_kbest`.
        """
        emissions, mask = self._inputs(emissions, mask)
        paths, scores = crf_kbest(emissions, mask, *self._scores(True), k)
        return paths if self.batch_first else paths.transpose(0, 2), scores

    def marginals(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Probability of each tag at each position.

        Args:
            emissions: see the class; so is `mask`.
            mask: see the class.

        Returns:
            The shape of emissions, float32 or float64, 0 where the mask is not set. Not differentiable.

        Raises:
            InputError: see the class; and for a sequence without a possible path.

        Source:
            `petkit.ops.crf_marginals`.
        """
        emissions, mask = self._inputs(emissions, mask)
        return self._batch_first(crf_marginals(emissions, mask, *self._scores(True)))

    def sample(
        self,
        emissions: Tensor,
        num_samples: int,
        mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Independent tag sequences, each drawn with its probability.

        Args:
            emissions: see the class; so is `mask`.
            num_samples: how many of each sequence, at least 0.
            mask: see the class.
            generator: of the emissions' device; None takes torch's global one.

        Returns:
            int64 (num_samples, time, batch), or (num_samples, batch, time) with `batch_first`; -1 where the
            mask is not set.

        Raises:
            InputError: see the class; and for a negative num_samples.

        Source:
            `petkit.ops.crf_sample`.
        """
        emissions, mask = self._inputs(emissions, mask)
        samples = crf_sample(emissions, mask, *self._scores(True), num_samples, generator)
        return samples if self.batch_first else samples.transpose(1, 2)

    def entropy(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """How uncertain the whole tag sequence is: minus the mean of log p(y | x) over y.

        Args:
            emissions: see the class; so is `mask`.
            mask: see the class.

        Returns:
            (batch,) in nats, 0 to log of the number of possible sequences; float32 or float64.
            Differentiable; where a gradient is asked for, it runs in plain torch, slower.

        Raises:
            InputError: see the class; and for a sequence without a possible path.

        Source:
            See `petkit.nn._crf_chain`.
        """
        emissions, mask = self._inputs(emissions, mask)
        parameters = self._scores(True)
        tensors = (emissions, *parameters)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return _crf_chain.entropy_by_recursion(emissions, mask, parameters)
        return _crf_chain.entropy(emissions, mask, parameters).to(_crf_chain.computed_in(*tensors))

    def log_partition(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logarithm of Z, the sum of exp(score) over all tag sequences, or over all that constraints allow.

        Args:
            emissions: see the class; so is `mask`.
            mask: see the class.

        Returns:
            (batch,) in nats, float32 or float64. Differentiable.

        Raises:
            InputError: see the class; and for a sequence without a possible path.

        Source:
            `petkit.ops.crf_log_partition`.
        """
        emissions, mask = self._inputs(emissions, mask)
        return crf_log_partition(emissions, mask, *self._scores(self.constrain == "both"))

    def _inputs(self, emissions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Checked, with batch first, the mask bool."""
        _crf_checks.check_emissions(emissions, self.num_tags, self._axes)
        if mask is None:
            mask = torch.ones(emissions.shape[:2], dtype=torch.bool, device=emissions.device)
        _crf_checks.check_like_emissions("mask", mask, emissions, self._axes)
        _crf_checks.check_mask_dtype(mask)
        emissions, mask = self._batch_first(emissions), self._batch_first(mask).bool()
        _crf_checks.check_starts(mask)
        return emissions, mask

    def _checked_tags(self, tags: Tensor, emissions: Tensor, mask: Tensor) -> Tensor:
        """Checked against inputs with batch first; with batch first."""
        _crf_checks.check_like_emissions("tags", tags, self._batch_first(emissions), self._axes)
        tags = self._batch_first(tags)
        if tags.dim() == 3 and tags.dtype == torch.bool:
            _crf_checks.check_allowed(tags, mask, self.num_tags)
        else:
            _crf_checks.check_tags(tags, mask, self.num_tags)
        return tags

    @property
    def _axes(self) -> str:
        return "batch, time" if self.batch_first else "time, batch"

    def _batch_first(self, tensor: Tensor) -> Tensor:
        """Swap the first two axes unless batch comes first, there or back."""
        return tensor if self.batch_first else tensor.transpose(0, 1)

    @property
    def _allowed(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.transitions_allowed, self.start_allowed, self.end_allowed

    def _scores(self, constrained: bool) -> Parameters:
        found = (self.transitions, self.start_transitions, self.end_transitions)
        if not constrained:
            return found
        transitions, start, end = (
            scores if part is None else scores.masked_fill(~part, -math.inf)
            for scores, part in zip(found, self._allowed, strict=True)
        )
        return transitions, start, end
