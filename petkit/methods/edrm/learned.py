"""The learned router: a small network from the three descriptors to a mode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from petkit.errors import ArtifactError, InputError
from petkit.methods.edrm.algorithm import MODES, Decision, Mode, keeps_standard
from petkit.methods.edrm.calibration import TOKEN_WEIGHT, Outcomes, utility

DESCRIPTORS = 3
HIDDEN = 16
EPOCHS = 200
FOLDS = 5


class MlpRouter(nn.Module):
    """3-16-16-3 with ReLU on standardised descriptors.

    Args:
        mean: (3,) of the training points.
        deviation: (3,), their standard deviation.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("deviation", deviation.float())
        self.layers = nn.Sequential(
            nn.Linear(DESCRIPTORS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, len(MODES)),
        )  # fmt: skip

    def forward(self, points: Tensor) -> Tensor:
        """Logits (questions, 3) of points (questions, 3)."""
        scores: Tensor = self.layers((points.float() - self.mean) / self.deviation)
        return scores

    def decide(self, points: Tensor) -> list[Decision]:
        """The likeliest mode of each point (questions, 3)."""
        rows = self.probabilities(points).tolist()
        return [Decision(MODES[row.index(max(row))], f"{max(row):.0%} sure, by the network") for row in rows]

    def to_bytes(self) -> bytes:
        """The content of its safetensors file."""
        content: bytes = save(self.state_dict())
        return content

    @torch.no_grad()
    def probabilities(self, points: Tensor) -> Tensor:
        """How sure the router is of each mode (questions, 3), for points (questions, 3)."""
        shares: Tensor = self(points).softmax(dim=1)
        return shares


def read_network(content: bytes, path: Path) -> MlpRouter:
    """Read what `MlpRouter.to_bytes` wrote.

    Args:
        content: of the file.
        path: for messages.

    Returns:
        The network.

    Raises:
        ArtifactError: it is broken, of another shape, or not finite.
    """
    router = MlpRouter(torch.zeros(DESCRIPTORS), torch.ones(DESCRIPTORS))
    try:
        router.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path} must hold a router's network: {detail}") from error
    if not all(tensor.isfinite().all() for tensor in router.state_dict().values()):
        raise ArtifactError(f"{path} must hold finite numbers, got nan or inf")
    return router.eval()


def train_router(outcomes: Outcomes, seed: int = 0, weight: float = TOKEN_WEIGHT) -> MlpRouter:
    """Learn the mode of the highest utility.

    Args:
        outcomes: labelled questions, at least two.
        seed: of the initial weights.
        weight: of a decade of tokens, as in `utility`.

    Returns:
        The trained router.

    Raises:
        InputError: fewer than two questions.

    Source:
        EDRM section 5, learned router (3-16-16-3, Adam 1e-3, 200 epochs, weight decay 1e-4); ties go to the
        cheaper mode.
    """
    if len(outcomes) < 2:
        raise InputError(f"a learned router needs at least two labelled questions, got {len(outcomes)}")
    points, targets = outcomes.points.stack(), _targets(outcomes, weight)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # A descriptor that is the same everywhere stays 0.
        deviation = points.std(dim=0)
        router = MlpRouter(points.mean(dim=0), torch.where(deviation > 0, deviation, 1.0))
    optimizer = torch.optim.Adam(router.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        functional.cross_entropy(router(points), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return router.eval()


@dataclass(frozen=True, eq=False)
class Learned:
    """What routers chose for questions that they were not trained on.

    Args:
        modes: of each question.
        confidence: (questions,) probability that the router gave its choice.
        best: (questions,) whether the choice was the mode of the highest utility.
    """

    modes: list[Mode]
    confidence: Tensor
    best: Tensor


def cross_validated(outcomes: Outcomes, seed: int = 0, weight: float = TOKEN_WEIGHT) -> Learned:
    """Route every question with a router that was trained on the other folds.

    Args:
        outcomes: labelled questions, at least 3.
        seed: of folds and weights.
        weight: as for `train_router`.

    Returns:
        The choices, and how sure they were.
    """
    order = torch.randperm(len(outcomes), generator=torch.Generator().manual_seed(seed)).tolist()
    shares = torch.zeros(len(outcomes), len(MODES))
    for fold in range(min(FOLDS, len(outcomes))):
        held_out = order[fold::FOLDS]
        others = sorted(set(order) - set(held_out))
        router = train_router(outcomes.select(others), seed, weight)
        shares[held_out] = router.probabilities(outcomes.select(held_out).points.stack())
    confidence, index = shares.max(dim=1)
    index[keeps_standard(outcomes.probe)] = MODES.index("standard")
    return Learned([MODES[i] for i in index.tolist()], confidence, index == _targets(outcomes, weight))


def _targets(outcomes: Outcomes, weight: float) -> Tensor:
    worth = utility(outcomes.correct, outcomes.routed_tokens(), weight)
    best = worth == worth.max(dim=1, keepdim=True).values
    return outcomes.routed_tokens().double().masked_fill(~best, torch.inf).argmin(dim=1)
