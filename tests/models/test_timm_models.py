"""timm bases: weight files, image sizes, distilled heads, the cache."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import DropPath

from petkit.errors import ConfigError, InputError, OfflineError, SafetyError
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.models.inserts import base_state, insert
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
    ("name", "hint"),
    [
        ("../x", "`petkit list models 'vit*'` lists the names"),
        ("", "`petkit list models 'vit*'` lists the names"),
        ("hf-hub:timm/test_vit", "did you mean timm/test_vit?"),
        ("facebook/dinov2_vits14", "did you mean hf/facebook/dinov2_vits14?"),
        ("timm/vit_tiny", "did you mean timm/vit_tiny_patch16_224?"),
    ],
)
def test_a_name_that_is_a_path_gets_a_hint(name, hint):
    with pytest.raises(ConfigError) as caught:
        load(name=f"timm/{name}")
    expected = f"model.name must be timm/NAME with one of timm's own names, got 'timm/{name}'; {hint}"
    assert str(caught.value) == expected


# One of each kind of classifier: `fc`, `classifier`, heads that pool or normalise, several heads, a head of
# the second token that is there as None, batch norm before the head.
FAMILIES = {
    "test_vit": True,
    "test_vit_relpos": True,
    "test_resnet": False,
    "test_efficientnet": False,
    "test_convnext": False,
    "test_nfnet": False,
    "test_byobnet": False,
    "test_mambaout": False,
    "test_coatnet": False,
    "pit_ti_224": True,
    "pit_ti_distilled_224": True,
    "deit_tiny_distilled_patch16_224": True,
    "cait_xxs24_224": True,
    "mobilevit_xxs": True,
    "edgenext_xx_small": False,
    "levit_128s": False,
    "mixer_s32_224": False,
    "swin_tiny_patch4_window7_224": False,
    "crossvit_tiny_240": True,
    "pvt_v2_b0": True,
}


def learns(name, method):
    """Whether one backward pass reaches everything that is to be trained."""
    loaded = load(name=f"timm/{name}", classes=3)
    insert(loaded.model, AdapterConfig(method=method, bits=32, bottleneck=2), torch.Generator())
    side = loaded.preprocess["image_size"]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    loaded.model(images).square().sum().backward()
    trained = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    return bool(trained) and all(parameter.grad is not None for parameter in trained)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_linear_probe_fits_every_family(name):
    assert learns(name, "linear_probe")


@pytest.mark.parametrize(("name", "has_blocks"), FAMILIES.items())
def test_adapters_fit_a_family_or_are_refused(name, has_blocks):
    if has_blocks:
        assert learns(name, "adaptformer")
    else:
        with pytest.raises(InputError, match="adaptformer needs the transformer blocks of a known ViT"):
            learns(name, "adaptformer")


def test_a_head_beside_the_model_sees_the_features_before_the_models_own():
    loaded = load(name="timm/test_resnet", classes=3).model.eval()
    whole = timm.create_model("test_resnet", num_classes=3).eval()
    whole.load_state_dict(
        loaded.backbone.state_dict() | {f"fc.{k}": v for k, v in loaded.head.named_parameters()}
    )
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(image), whole(image))


def test_features_without_classes_keep_the_names_of_a_model_with_them():
    bare, headed = (load(name="timm/test_convnext", classes=classes).model for classes in (0, 2))
    assert {*headed.state_dict()} - {*bare.state_dict()} == {"head.weight", "head.bias"}
    assert bare(torch.zeros(1, 3, 32, 32)).shape == (1, headed.head.in_features)


def test_loading_leaves_running_statistics_as_they_are():
    statistics = load(name="timm/test_resnet").model.backbone.bn1.running_mean
    assert not statistics.any()


def test_a_norm_inside_the_head_is_part_of_the_base(tmp_path):
    plain = load(name="timm/test_convnext")
    # A published file has the classifier as well.
    whole = timm.create_model("test_convnext").state_dict() | plain.model.backbone.state_dict()
    whole["head.norm.weight"] = whole["head.norm.weight"] + 1
    save_file(whole, tmp_path / "weights.safetensors")
    other = load(name="timm/test_convnext", weights=str(tmp_path / "weights.safetensors"), pretrained=True)
    assert torch.equal(other.model.backbone.head.norm.weight, whole["head.norm.weight"])
    assert other.base_sha256 != plain.base_sha256


@pytest.mark.parametrize("name", ["levit_128s", "mixer_s32_224", "test_coatnet"])
def test_an_image_size_that_only_the_forward_pass_can_refuse(name):
    message = rf"model\.image_size 32: timm/{name} cannot take it, remove the key \(\w+Error: .*\)"
    with pytest.raises(ConfigError, match=message):
        load(name=f"timm/{name}", image_size=32)


def test_a_model_without_pooled_features_is_refused(monkeypatch):
    monkeypatch.setattr("timm.models.resnet.ResNet.forward_head", lambda self, maps, **options: maps)
    message = r"model\.name timm/test_resnet: .* pooled features, .* \(it gives \[1, 96, 5, 5\] where one row"
    with pytest.raises(InputError, match=message):
        load(name="timm/test_resnet")
