"""What decides: the settings of a router, and its network where it has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from petkit.errors import ConfigError
from petkit.methods.edrm.algorithm import (
    Decision,
    Descriptors,
    Mode,
    Thresholds,
    dataset_point,
    descriptors,
    explain,
    keeps_standard,
    regimes,
    route,
)
from petkit.methods.edrm.calibration import Outcomes, Routed, by_dataset, by_question
from petkit.methods.edrm.config import RouterConfig
from petkit.methods.edrm.learned import MlpRouter
from petkit.rollout.entropy import pooled_bias


@dataclass(frozen=True)
class Rule:
    """A router without its model.

    Args:
        config: its settings.
        network: decides instead of the thresholds, with `rule` learned.

    Raises:
        ConfigError: there is a network and it is not asked for, or the other way round.
    """

    config: RouterConfig
    network: MlpRouter | None = None

    def __post_init__(self) -> None:
        if self.config.rule == "learned" and self.network is None:
            raise ConfigError(
                "rule learned needs the network of `petkit route calibrate --learned`: give it with --router"
            )

    @property
    def thresholds(self) -> Thresholds:
        """Of its inequalities."""
        return Thresholds(**self.config.thresholds.model_dump())

    def decide(self, points: Descriptors, lengths: Tensor | Sequence[int]) -> list[Decision]:
        """Choose a mode for each point, and say why.

        Args:
            points: of trajectories.
            lengths: their tokens; an answer that was over before it had a shape stays as it is.
        """
        counts = torch.as_tensor(lengths, dtype=torch.int64)
        rows = zip(keeps_standard(counts).tolist(), counts.tolist(), self._by_shape(points), strict=True)
        return [_kept(count) if kept else shaped for kept, count, shaped in rows]

    def decide_each(self, trajectories: Sequence[Sequence[float]]) -> list[Decision]:
        """Choose a mode for each trajectory by itself."""
        return self.decide(descriptors(trajectories), list(map(len, trajectories)))

    def _by_shape(self, points: Descriptors) -> list[Decision]:
        if self.config.rule == "learned" and self.network is not None:
            return self.network.decide(points.stack())
        modes = route(points, self.thresholds)
        rows = zip(modes, points.stack().tolist(), strict=True)
        return [Decision(mode, explain(tuple(z), self.thresholds)) for mode, z in rows]

    def decide_dataset(self, name: str, trajectories: Sequence[Sequence[float]]) -> Decision:
        """Choose one mode for a data set, by the trajectories of some of its questions."""
        point = dataset_point(trajectories, self.config.dataset_point)
        (decision,) = self.decide(point, [max(map(len, trajectories))])
        probes = "1 probe" if len(trajectories) == 1 else f"{len(trajectories)} probes"
        # Questions that are given by themselves are of no data set.
        return Decision(decision.mode, f"all of {name or 'the questions'}, by {probes}: {decision.reason}")

    def route_by(self, outcomes: Outcomes) -> Routed:
        """By what measured questions are routed, each alone or every data set as a whole."""
        if self.config.level == "question":
            return by_question(outcomes)
        return by_dataset(outcomes, self.config.dataset_point, self.config.dataset_questions)

    def policy(self, outcomes: Outcomes) -> tuple[str, list[Mode]]:
        """What it would choose for measured questions, and under what name it is compared."""
        name = "this router" if self.config.level == "question" else "data set, this router"
        routed = self.route_by(outcomes)
        return name, [one.mode for one in self.decide(routed.points, routed.lengths)]

    def explained(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Say for each trajectory where it lies, what is decided for it alone and why.

        Args:
            records: with `id` and `entropies`, of which the first `probe_tokens` count.

        Returns:
            `id`, `decision`, `regime`, the three descriptors and `reason` of each; of estimates also
            `entropy_bias` and `cumulative_bias`, how much too low a token's entropy, on average, and the sum
            may be.

        Raises:
            InputError: an entropy that is negative or not finite.
        """
        trajectories = [record["entropies"][: self.config.probe_tokens] for record in records]
        points = descriptors(trajectories)
        rows = zip(
            records,
            points.stack().tolist(),
            self.decide(points, list(map(len, trajectories))),
            regimes(points, self.thresholds),
            strict=True,
        )
        return [
            {
                "id": record["id"],
                "decision": decision.mode,
                "regime": regime,
                **dict(zip(Descriptors._fields, point, strict=True)),
                "reason": decision.reason,
                **_bias(record, min(len(record["entropies"]), self.config.probe_tokens)),
            }
            for record, point, decision, regime in rows
        ]


def entropy_bias(records: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """How much too low the entropies of records may be, where there are estimates among them.

    Args:
        records: with `entropies` and, of estimates, `entropy_bias`.

    Returns:
        `largest`, and `mean` over the tokens of all estimates; None where there are none.
    """
    own = [record for record in records if "entropy_bias" in record]
    if not own:
        return None
    return pooled_bias([one["entropy_bias"] for one in own], [len(one["entropies"]) for one in own])


def _bias(record: Mapping[str, Any], tokens: int) -> dict[str, float]:
    """Bounds on how much too low a record's entropies are, where they are estimates."""
    if "entropy_bias" not in record:
        return {}
    mean = float(record["entropy_bias"]["mean"])
    return {"entropy_bias": mean, "cumulative_bias": mean * tokens}


def _kept(count: int) -> Decision:
    tokens = "1 token" if count == 1 else f"{count} tokens"
    return Decision("standard", f"over after {tokens}: too short for a trend, stays as it is")
