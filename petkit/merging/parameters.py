"""What a method may be told: numbers of the whole merge and of each model, with their ranges and defaults."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from petkit.errors import ConfigError


@dataclass(frozen=True)
class Parameter:
    """One number, or truth, that a method reads.

    Args:
        name: as mergekit's YAML has it.
        default: None where it has to be given.
        low: smallest value.
        high: largest value.
        per_model: each model has its own.
        is_truth: true or false.
        choices: where it is one of some words.
    """

    name: str
    default: Any = None
    low: float = -math.inf
    high: float = math.inf
    per_model: bool = False
    is_truth: bool = False
    choices: tuple[str, ...] = ()

    def checked(self, value: Any, where: str) -> Any:
        """A value, or why it is none.

        Raises:
            ConfigError: names the parameter, what it may be and what came.
        """
        if value is None:
            value = self.default
        named = f"{self.name} {where}".rstrip()
        if value is None:
            raise ConfigError(f"{named} is required")
        if self.is_truth:
            return self._checked_truth(value, named)
        if self.choices:
            if value not in self.choices:
                raise ConfigError(f"{named} must be one of {', '.join(self.choices)}, got {value!r}")
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"{named} must be a number, got {value!r}")
        if not self.low <= value <= self.high:
            raise ConfigError(f"{named} must be from {self.low:g} to {self.high:g}, got {value:g}")
        return float(value)

    def _checked_truth(self, value: Any, named: str) -> bool:
        # mergekit reads numbers here too.
        if value in (0, 1, True, False):
            return bool(value)
        raise ConfigError(f"{named} must be true or false, got {value!r}")


WEIGHT = Parameter("weight", per_model=True)
DENSITY = Parameter("density", 1.0, 0.0, 1.0, per_model=True)
LAMBDA = Parameter("lambda", 1.0)


@dataclass(frozen=True)
class Values:
    """The parameters of one tensor.

    Args:
        whole: by name, of the merge.
        models: by name, of each model, in their order.
        seed: of random numbers.
    """

    whole: Mapping[str, Any]
    models: Sequence[Mapping[str, Any]]
    seed: int = 0

    def of(self, name: str) -> list[float]:
        """A parameter of each model."""
        return [float(own[name]) for own in self.models]


# Part of the sizes of weights below which their sum is taken to have cancelled.
CANCELLED = 0.01
# Models of which every subset is tried.
SUBSETS = 12


@lru_cache(maxsize=256)
def check_agreeing(weights: tuple[float, ...]) -> None:
    """Refuse weights of which some nearly cancel, where the sum of those that agree is divided by.

    Args:
        weights: of the models.

    Raises:
        ConfigError: names some of both signs whose sum is less than a hundredth of their sizes.
    """
    own = [weight for weight in weights if weight]
    if len(own) > SUBSETS or min(own, default=1.0) > 0 or max(own, default=-1.0) < 0:
        return
    for count in range(2, len(own) + 1):
        for some in itertools.combinations(own, count):
            if abs(sum(some)) < CANCELLED * sum(map(abs, some)):
                listed = ", ".join(f"{weight:g}" for weight in some)
                raise ConfigError(
                    f"the weights {listed} sum to {sum(some):g}, by which normalize divides wherever these "
                    "models agree: set normalize false, or choose other weights"
                )


def normalized(weights: Sequence[float], name: str) -> list[float]:
    """Weights divided by their sum.

    Args:
        weights: of the models.
        name: of the tensor, for the message.

    Raises:
        ConfigError: they sum to 0.
    """
    total = sum(weights)
    if abs(total) < 1e-8:
        listed = ", ".join(f"{weight:g}" for weight in weights)
        raise ConfigError(
            f"the weights of {name} must not sum to 0 to be normalised, got {listed}: set normalize false"
        )
    return [weight / total for weight in weights]
