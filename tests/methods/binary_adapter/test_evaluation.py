from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from petkit.errors import InputError
from petkit.methods.binary_adapter import recipe
from petkit.methods.binary_adapter.config import BinaryAdapterConfig
from petkit.methods.binary_adapter.evaluation import evaluate_artifact, weight_noise
from petkit.models.inserts import inserts
from petkit.models.loading import load_adapted
from petkit.training.context import RunContext


@pytest.fixture
def artifact(image_recipe: Callable[..., BinaryAdapterConfig]) -> Path:
    config = image_recipe(training={"max_steps": 2})
    recipe.run(config, RunContext(Path(config.output)))
    return Path(config.output)


def test_noise_has_the_asked_standard_deviation_and_goes_away(artifact: Path) -> None:
    model = load_adapted(artifact, mode="dense").model
    weights = {name: insert.up.weight for name, insert in inserts(model).items()}
    before = {name: weight.clone() for name, weight in weights.items()}
    with weight_noise(model, 0.5, seed=0):
        ratios = [float((weights[n] - before[n]).std() / before[n].std()) for n in weights]
    # 6 matrices of 256 entries: the standard deviation of their mean ratio is about 1 %.
    assert sum(ratios) / len(ratios) == pytest.approx(0.5, rel=0.06)
    assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_noise_needs_dense_weights(artifact: Path) -> None:
    model = load_adapted(artifact, mode="packed").model
    with pytest.raises(InputError, match="needs dense adapter weights"), weight_noise(model, 0.5, seed=0):
        pass


def test_noise_changes_the_loss_by_its_seed(artifact: Path) -> None:
    plain = evaluate_artifact(artifact)
    losses = {evaluate_artifact(artifact, noise=2.0, noise_seed=seed).loss for seed in (0, 1)}
    assert len(losses | {plain.loss}) == 3
    assert evaluate_artifact(artifact, noise=2.0, noise_seed=1).loss in losses


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_split_can_be_measured(artifact: Path, split: str) -> None:
    assert evaluate_artifact(artifact, split=split).n > 0  # type: ignore[arg-type]
