from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from petkit.data.config import DataConfig
from petkit.errors import ConfigError
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.models.inserts import inserts, pack
from petkit.training.adapting import describe, plan_of, prepare_adapters, same_behaviour, validation_of
from petkit.training.classification import classification_step
from petkit.training.config import TrainingConfig
from petkit.training.context import RunContext


def recipe(**changes):
    content = {
        "seed": 0,
        "task": "image_classification",
        "model": ModelConfig(name="timm/test_vit", pretrained=False, image_size=32),
        "adapter": AdapterConfig(bottleneck=4),
        "data": DataConfig(train_size=20, test_size=10),
        "training": TrainingConfig(epochs=2, batch_size=10, warmup_epochs=0),
    }
    return SimpleNamespace(**{**content, **changes})


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    return RunContext(tmp_path / "run")


def test_a_prepared_model_holds_what_the_artifact_will(context: RunContext) -> None:
    ready = prepare_adapters(recipe(), context)
    assert [site.name for site in ready.sites] == list(inserts(ready.model))
    packed, dense = pack(ready.model)
    assert set(packed) == {f"{site.name}.{part}" for site in ready.sites for part in ("down", "up")}
    assert set(dense) == {"head.weight", "head.bias"}
    trainable = {name for name, parameter in ready.model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"{name}.weight" for name in packed} | set(dense)
    assert ready.model.head.weight.shape == (10, 64)
    planned = plan_of(recipe(), ready, context)
    assert planned["trainable_parameters"] == 6 * 2 * 4 * 64 + 650
    assert planned["steps"] == {"total": 4, "per_epoch": 2, "warmup": 0}
    manifest = describe(recipe(), ready, ())
    assert manifest.task is not None
    assert manifest.task.classes == ready.splits.classes
    assert manifest.base.sha256 == ready.loaded.base_sha256


def test_a_validation_split_is_kept_apart_only_to_select(context: RunContext) -> None:
    last, best = recipe(), recipe(training=TrainingConfig(batch_size=10, select="validation"))
    ready = prepare_adapters(last, context)
    assert validation_of(last, ready, classification_step, context) is None
    ready = prepare_adapters(best, context)
    validate = validation_of(best, ready, classification_step, context)
    assert validate is not None
    assert validate().n == len(ready.splits.validation)


def test_another_head_is_another_behaviour(context: RunContext) -> None:
    ready, other = (prepare_adapters(recipe(), context) for _ in range(2))
    assert same_behaviour(ready, other.model.eval(), context.device).ok
    with torch.no_grad():
        other.model.head.bias[0] += 5
    assert not same_behaviour(ready, other.model, context.device).ok


def test_the_classifier_of_a_converted_adapter_is_not_trained(context: RunContext) -> None:
    with pytest.raises(ConfigError, match=r"model\.pooling own"):
        prepare_adapters(recipe(model=ModelConfig(name="timm/test_vit", pooling="own")), context)
