import pytest
import yaml

from petkit.configuration import resolve
from petkit.configuration.effects import effective
from petkit.errors import ConfigError
from petkit.methods.nart_crf.config import TranslatorConfig
from tests.methods.nart_crf import tiny

SAMPLE = {"output": "runs/x", "data": {"format": "sample"}}
FILES = {"output": "runs/x", "data": {"train": "a", "test": "b"}}
TEACHER = "model.kind=autoregressive"


def resolved(tmp_path, content, *settings):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return resolve(TranslatorConfig, [file], settings, environment={}).config


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (["model.kind=nart", "crf.beam=8"], "crf.beam"),
        (["model.kind=nart", "crf.rank=8"], "crf.rank"),
        (["model.kind=nart", "loss.nar=1"], "loss.nar"),
        ([TEACHER, "loss.length=1"], "loss.length"),
        (["lengths.kind=offset", "loss.length=1"], "loss.length"),
        (["lengths.offset=2"], "lengths.offset"),
        ([TEACHER, "lengths.kind=offset"], "lengths.kind"),
        ([TEACHER, "model.positional_attention=true"], "model.positional_attention"),
        ([TEACHER, "model.decoder_input=copy"], "model.decoder_input"),
        ([TEACHER, "teacher.model=a"], "teacher.model"),
        (["teacher.model=a", "teacher.distill=false", "teacher.beam=2"], "teacher.beam"),
        (["teacher.model=a", "teacher.distill=false", "teacher.distilled=b"], "teacher.distilled"),
        (["decode.beam=2"], "decode.beam"),
        ([TEACHER, "decode.candidates=3"], "decode.candidates"),
        ([TEACHER, "decode.deduplicate=false"], "decode.deduplicate"),
        ([TEACHER, "decode.rescore=a"], "decode.rescore"),
        (["decode.rescore=a"], "decode.rescore"),
        (["data.train=a"], "data.train"),
        (["data.languages=[a, b]"], "data.languages"),
    ],
)
def test_a_key_without_effect_is_refused(tmp_path, settings, key):
    with pytest.raises(ConfigError, match=key):
        resolved(tmp_path, SAMPLE, *settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.hidden=30"], r"model.heads must divide model.hidden 30, got 4"),
        (["data.max_length=256"], r"data.max_length must be below model.max_positions 256, .* got 256"),
        (["vocabulary.size=259"], r"vocabulary.size must be at least 260, got 259"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        resolved(tmp_path, SAMPLE, *settings)


def test_files_are_required_and_named(tmp_path):
    assert resolved(tmp_path, FILES).data.train == "a"
    with pytest.raises(ConfigError, match=r"data.test is required with data.format lines"):
        resolved(tmp_path, {"output": "x", "data": {"format": "lines", "train": "a"}})


def test_the_distilled_file_stands_beside_the_teacher(tmp_path):
    found = resolved(tmp_path, SAMPLE, "teacher.model=runs/teacher/")
    assert (found.distills, found.distilled_file) == (True, "runs/teacher.distilled.jsonl")
    assert resolved(tmp_path, SAMPLE, "teacher.model=a", "teacher.distilled=b").distilled_file == "b"
    assert not resolved(tmp_path, SAMPLE, "teacher.model=a", "teacher.distill=false").distills


@pytest.mark.parametrize("kind", ["autoregressive", "nart", "nart-crf", "nart-dcrf"])
def test_the_effective_settings_make_the_same_recipe_again(kind):
    config = tiny.recipe(model__kind=kind)
    again = TranslatorConfig(**effective(config))
    assert effective(again) == effective(config)
    assert bool(effective(config)["crf"]) == ("crf" in kind)
