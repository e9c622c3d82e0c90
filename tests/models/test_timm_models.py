"""timm bases: weight files, image sizes, distilled heads, the cache."""

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import DropPath

from petkit.errors import ConfigError, InputError, OfflineError, SafetyError
from petkit.models.config import ModelConfig
from petkit.models.inserts import base_state
from petkit.models.timm_models import load_timm


def load(classes=2, **options):
    config = ModelConfig(**{"name": "timm/test_vit", "pretrained": False, **options})
    return load_timm(config, classes, torch.Generator().manual_seed(0))


def test_random_bases_are_the_same_every_time():
    first, second = load(), load()
    assert first.base_sha256 == second.base_sha256
    assert all(
        torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True)
    )


def test_local_weights_replace_the_published_ones(tmp_path):
    state = {name: value + 1 for name, value in base_state(load().model).items()}
    save_file({**state, "head.weight": torch.zeros(1000, 64)}, tmp_path / "weights.safetensors")
    loaded = load(weights=str(tmp_path / "weights.safetensors"), pretrained=True)
    assert torch.equal(loaded.model.norm.weight, state["norm.weight"])
    assert loaded.model.head.out_features == 2


@pytest.mark.parametrize(
    ("file", "error", "message"),
    [
        ("weights.pth", SafetyError, "may hold a pickle"),
        ("weights.safetensors", InputError, "damaged"),
        ("missing.safetensors", InputError, "is not a file"),
    ],
)
def test_unusable_weight_files(tmp_path, file, error, message):
    if not file.startswith("missing"):
        (tmp_path / file).write_bytes(b"not tensors")
    with pytest.raises(error, match=message):
        load(weights=str(tmp_path / file))


def test_weights_of_another_model_are_refused(tmp_path):
    save_file({"norm.weight": torch.zeros(64)}, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match=r"does not fit VisionTransformer: .*Missing key"):
        load(weights=str(tmp_path / "weights.safetensors"))


def test_uncached_weights_offline_name_the_file():
    with pytest.raises(OfflineError, match=r"model\.safetensors of timm/test_vit\.r160_in1k is not in the"):
        load(pretrained=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 40}, "must be a multiple of the patch size 16 .*, got 40"),
        ({"pooling": "mean"}, r"model\.pooling has no effect"),
    ],
)
def test_values_the_model_cannot_take(options, message):
    with pytest.raises(ConfigError, match=message):
        load(**options)


def test_distilled_models_share_one_head():
    model = load(name="timm/deit_tiny_distilled_patch16_224", classes=3).model.eval()
    image = torch.randn(1, 3, 224, 224)
    both = model.forward_features(image)[:, :2]
    torch.testing.assert_close(model(image), model.head(both.mean(dim=1)), rtol=1e-4, atol=1e-5)


def test_drop_path_reaches_the_blocks():
    drops = [module for module in load(drop_path_rate=0.1).model.modules() if isinstance(module, DropPath)]
    assert max(drop.drop_prob for drop in drops) == pytest.approx(0.1)


def test_no_classes_leave_the_features():
    assert load(classes=0, image_size=32).model(torch.zeros(1, 3, 32, 32)).shape == (1, 64)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vit_base_patch16_244", "did you mean timm/vit_base_patch16_224?"),
        # The start of a name; gcvit_tiny has more letters in common.
        ("vit_tiny", "did you mean timm/vit_tiny_patch16_224?"),
        ("zzz", "`petkit list models 'vit*'` lists the names"),
    ],
)
def test_an_unknown_name_gets_a_hint(name, hint):
    with pytest.raises(ConfigError) as caught:
        load(name=f"timm/{name}")
    assert str(caught.value) == f"model.name timm/{name}: Unknown model ({name}); {hint}"


@pytest.mark.parametrize(
    ("name", "head"),
    [("test_convnext", "NormMlpClassifierHead"), ("swin_tiny_patch4_window7_224", "ClassifierHead")],
)
def test_a_head_that_is_more_than_a_linear_map_is_refused(name, head):
    message = (
        f"model.name timm/{name}: petkit trains one linear head, and this model's is a {head}: take a ViT"
    )
    with pytest.raises(InputError, match=message):
        load(name=f"timm/{name}")
    assert load(name=f"timm/{name}", classes=0).model is not None
