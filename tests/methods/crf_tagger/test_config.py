import pytest
import yaml

from petkit.configuration import resolve
from petkit.configuration.effects import effective
from petkit.errors import ConfigError
from petkit.methods.crf_tagger.config import TaggerConfig

SAMPLE = {"output": "runs/x", "data": {"format": "sample", "scheme": "BIO"}}
FILES = {"output": "runs/x", "data": {"train": "a", "test": "b"}}


def resolved(tmp_path, content, *settings):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return resolve(TaggerConfig, [file], settings, environment={}).config


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (["model.tune=full"], "model.tune"),
        (["model.revision=abc"], "model.revision"),
        (["adapter.bits=2"], "adapter.bits"),
        (["model.encoder=hf/a/b", "model.hidden=4"], "model.hidden"),
        (["model.encoder=hf/a/b", "model.tune=frozen", "adapter.bits=2"], "adapter.bits"),
        (["model.encoder=hf/a/b", "adapter.bits=32", "adapter.gradient=identity"], "adapter.gradient"),
        (["model.character_filters=4"], "model.character_filters"),
        (["head.kind=softmax", "head.constraints=both"], "head.constraints"),
        (["data.scheme=none", "head.constraints=both"], "head.constraints"),
        (["data.scheme=none", "data.faulty_tags=repair"], "data.faulty_tags"),
        (["data.train=a"], "data.train"),
    ],
)
def test_a_key_without_effect_is_refused(tmp_path, settings, key):
    with pytest.raises(ConfigError, match=key):
        resolved(tmp_path, SAMPLE, *settings)


def test_files_are_required_and_named(tmp_path):
    assert resolved(tmp_path, FILES).data.train == "a"
    with pytest.raises(ConfigError, match=r"data.test is required with data.format conll"):
        resolved(tmp_path, {"output": "x", "data": {"train": "a"}})


def test_words_and_tags_are_in_different_columns(tmp_path):
    with pytest.raises(ConfigError, match=r"data.tag_column must be another column than data.word_column 0"):
        resolved(tmp_path, FILES, "data.tag_column=0")


def test_constraints_apply_to_a_crf_with_a_scheme(tmp_path):
    assert resolved(tmp_path, SAMPLE).constrain == "both"
    assert resolved(tmp_path, SAMPLE, "head.constraints=decode").constrain == "decode"
    assert resolved(tmp_path, SAMPLE, "head.kind=softmax").constrain == "none"
    assert resolved(tmp_path, SAMPLE, "data.scheme=none").constrain == "none"


def test_the_effective_settings_make_the_same_recipe_again(tmp_path):
    for settings in ([], ["model.encoder=hf/a/b"], ["head.kind=softmax"]):
        config = resolved(tmp_path, SAMPLE, *settings)
        again = TaggerConfig(**effective(config))
        assert effective(again) == effective(config)
    assert "adapter" not in {k for k, v in effective(resolved(tmp_path, SAMPLE)).items() if v}
