"""Who may teach: artifacts, published classifiers, features; and who may not."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from petkit.data.loading import load_data
from petkit.errors import ArtifactError, ConfigError, InputError, PetkitError, SafetyError
from petkit.methods.vision_distillation.config import VisionDistillationConfig
from petkit.methods.vision_distillation.teacher import Teacher, load_teacher
from petkit.models.loading import load_adapted
from tests.methods.vision_distillation import tiny

CPU = torch.device("cpu")
FEATURES_ONLY = {"distillation": {"alpha": 0.0, "feature_weight": 1.0}}


def load(model: str, classes: tuple[str, ...] = tiny.CLASSES, **changes: Any) -> Teacher:
    content = tiny.content(Path("unused"), model, **changes)
    return load_teacher(VisionDistillationConfig.model_validate(content), classes, CPU)


def save_transformers(folder: Path, names: tuple[str, ...] | None = tiny.CLASSES) -> str:
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    if names is None:
        ViTModel(ViTConfig(image_size=32, patch_size=16, **sizes)).save_pretrained(folder)
    else:
        config = ViTConfig(
            image_size=32, patch_size=16, id2label=dict(enumerate(names)), num_labels=len(names), **sizes
        )
        ViTForImageClassification(config).save_pretrained(folder)
    return str(folder)


def test_an_artifact_answers_as_when_it_is_used_alone(teacher: str) -> None:
    loaded = load(teacher)
    adapted = load_adapted(teacher)
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    logits, features = loaded.answers(pixels)
    assert torch.equal(logits, adapted.model(pixels))
    assert torch.allclose(adapted.model.head(features), logits, atol=1e-6)
    assert (loaded.classifies, loaded.width, features.shape) == (True, 64, (3, 64))
    assert loaded.preprocess["image_size"] == 48
    assert (loaded.preprocess["mean"], loaded.preprocess["interpolation"]) == ((0.0,) * 3, "bilinear")
    assert loaded.sha256 == hashlib.sha256(Path(teacher, "petkit.json").read_bytes()).hexdigest()
    assert loaded.id == teacher
    assert not any(parameter.requires_grad and parameter.grad for parameter in loaded.model.parameters())
    assert not loaded.model.training


def test_the_classes_must_be_the_same_in_the_same_order(teacher: str) -> None:
    swapped = (*tiny.CLASSES[:3], tiny.CLASSES[4], tiny.CLASSES[3], *tiny.CLASSES[5:])
    with pytest.raises(ConfigError, match="got 'dress' as class 3 where the data has 'coat'"):
        load(teacher, swapped)
    with pytest.raises(ConfigError, match="must have the 9 classes of the data, got 10"):
        load(teacher, tiny.CLASSES[:9])


def test_numbers_are_no_names(teacher: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="petkit"):
        load(teacher, tuple(str(number) for number in range(10)))
    assert "have no names to compare: their order is taken to be the data's" in caplog.text


@pytest.mark.parametrize("key", ["revision", "weights", "image_size"])
def test_keys_of_models_have_no_effect_on_artifacts(teacher: str, key: str) -> None:
    value = 32 if key == "image_size" else "x"
    with pytest.raises(ConfigError, match=rf"teacher\.{key} has no effect on an artifact"):
        load(teacher, **{f"teacher__{key}": value})


def test_a_base_is_of_artifacts(teacher: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.base has an effect on an artifact only"):
        load("timm/test_vit", teacher__base="x")
    with pytest.raises(ConfigError, match=r"teacher\.model must be timm/NAME"):
        load(teacher, teacher__base="no-such-place")
    # Its own base in another place: the same weights are accepted, others are not.
    weights = tiny.save_weights(tmp_path / "other.safetensors")
    with pytest.raises(ArtifactError, match="was trained on a base with sha256"):
        load(teacher, teacher__base=weights)


def test_an_artifact_for_another_task_is_refused(teacher: str, tmp_path: Path) -> None:
    manifest = json.loads(Path(teacher, "petkit.json").read_text())
    (tmp_path / "petkit.json").write_text(json.dumps({**manifest, "kind": "tagger"}))
    with pytest.raises(ArtifactError, match="describes a tagger"):
        load(str(tmp_path))


def test_a_timm_model_with_its_own_classifier(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import load_file

    weights = tiny.save_weights(tmp_path / "t.safetensors", 10)
    loaded = load("timm/test_vit", teacher__weights=weights, teacher__image_size=32)
    own = timm.create_model("test_vit", num_classes=10, img_size=32).eval()
    state = load_file(weights)
    kept = {name: value for name, value in state.items() if name != "pos_embed"}
    own.load_state_dict(kept, strict=False)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits, features = loaded.answers(pixels)
    torch.testing.assert_close(logits, features @ state["head.weight"].T + state["head.bias"])
    assert (loaded.classifies, loaded.preprocess["image_size"]) == (True, 32)
    again = load("timm/test_vit", teacher__weights=weights, teacher__image_size=48)
    assert again.sha256 == loaded.sha256


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_features_of_other_families_are_what_their_last_layer_gets(tmp_path: Path, name: str) -> None:
    weights = tiny.save_weights(tmp_path / "t.safetensors", 10, name)
    loaded = load(f"timm/{name}", teacher__weights=weights, teacher__image_size=64)
    logits, features = loaded.answers(torch.randn(2, 3, 64, 64))
    (last,) = loaded.last
    torch.testing.assert_close(last(features), logits)


def test_a_classifier_of_other_classes_is_refused(tmp_path: Path) -> None:
    weights = tiny.save_weights(tmp_path / "t.safetensors", 7)
    with pytest.raises(ConfigError, match="must have the 10 classes of the data, got 7"):
        load("timm/test_vit", teacher__weights=weights)
    # Its features are welcome all the same.
    loaded = load("timm/test_vit", teacher__weights=weights, **FEATURES_ONLY)
    logits, features = loaded.answers(torch.zeros(1, 3, 160, 160))
    assert (logits, features.shape) == (None, (1, 64))


def test_weights_without_a_classifier_have_no_logits(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "t.safetensors")
    with pytest.raises(InputError, match=r"teacher\.weights .* must hold the classifier"):
        load("timm/test_vit", teacher__weights=str(tmp_path / "t.safetensors"))
    with pytest.raises(
        ConfigError, match=r"has no classifier, and distillation\.alpha above 0 needs its logits"
    ):
        load(save_transformers(tmp_path / "vit", None))


def test_a_transformers_classifier(tmp_path: Path) -> None:
    from transformers import ViTForImageClassification

    folder = save_transformers(tmp_path / "vit")
    loaded = load(folder)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits, features = loaded.answers(pixels)
    own = ViTForImageClassification.from_pretrained(folder).eval()
    torch.testing.assert_close(logits, own(pixels).logits)
    torch.testing.assert_close(features, own.vit(pixels).last_hidden_state[:, 0])
    assert loaded.width == 16
    with pytest.raises(ConfigError, match="got 't-shirt' as class 0 where the data has 'trouser'"):
        load(folder, (tiny.CLASSES[1], tiny.CLASSES[0], *tiny.CLASSES[2:]))
    # A whole model that petkit merged is a model like any other.
    Path(folder, "petkit.json").write_text('{"kind": "merged"}')
    assert load(folder).sha256 == loaded.sha256
    # Another size than its own.
    assert load(folder, teacher__image_size=48).preprocess["image_size"] == 48


@pytest.mark.parametrize(
    ("model", "changes", "error", "message"),
    [
        ("nowhere", {}, ConfigError, r"teacher\.model must be timm/NAME"),
        ("timm/test_vitt", {}, ConfigError, r"teacher\.model timm/test_vitt.*did you mean"),
        ("runs/gone", {}, InputError, r"teacher\.model runs/gone: there is no such folder"),
        ("timm/test_vit", {"teacher__weights": "none.safetensors"}, InputError, r"teacher\.weights none"),
        ("timm/test_vit", {"teacher__weights": "w.pt"}, InputError, r"teacher\.weights w\.pt is not a file"),
    ],
)
def test_teachers_that_cannot_be_loaded(
    model: str, changes: dict[str, Any], error: type[PetkitError], message: str
) -> None:
    with pytest.raises(error, match=message):
        load(model, **changes)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"x")
    with pytest.raises(SafetyError, match=r"teacher\.weights .*may hold a pickle"):
        load("timm/test_vit", teacher__weights=str(tmp_path / "w.pt"))


def test_answers_that_are_not_finite_end_the_run(teacher: str) -> None:
    loaded = load(teacher)
    with torch.no_grad():
        loaded.model.head.bias[0] = float("nan")
    with pytest.raises(PetkitError, match="the teacher's logits must be finite"):
        loaded.answers(torch.zeros(1, 3, 48, 48))


def test_the_names_of_the_sample_are_those_of_the_tests() -> None:
    config = VisionDistillationConfig.model_validate(tiny.content(Path("x"), "y"))
    preprocess = {"image_size": 8, "mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bicubic"}
    assert load_data(config.data, "image_classification", preprocess).classes == tiny.CLASSES
