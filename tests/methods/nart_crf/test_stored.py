"""Translators in their folders: the same afterwards, begun from each other, refused where damaged."""

import json
import shutil

import pytest
import torch

from petkit.artifacts.model_folder import VOCABULARY
from petkit.artifacts.translator import TranslatorManifest, write_translator
from petkit.configuration.effects import effective
from petkit.data.subwords import train_subwords
from petkit.errors import ArtifactError, ConfigError, InputError
from petkit.methods.nart_crf.splits import load_splits
from petkit.methods.nart_crf.stored import (
    assemble,
    load_teacher,
    load_translator,
    start_from,
    tensors_of,
    vocabulary_sha256,
)
from tests.methods.nart_crf import tiny


def saved(folder, config, vocabulary, model=None):
    """Write what a run of the recipe would, without training."""
    manifest = TranslatorManifest(
        translator=effective(config), vocabulary_sha256=vocabulary_sha256(vocabulary)
    )
    tensors = tensors_of(model or assemble(config, vocabulary))
    return write_translator(folder, manifest, tensors, {VOCABULARY: vocabulary.to_json()})


@pytest.fixture
def copied(student, tmp_path):
    return shutil.copytree(student, tmp_path / "copied")


def rewrite(folder, name, change):
    path = folder / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "changes",
    [
        {"model__kind": "autoregressive"},
        {"model__kind": "nart", "lengths": {"kind": "offset", "offset": -1}},
        {"model__kind": "nart-crf", "model__positional_attention": True},
        {"model__kind": "nart-dcrf", "model__decoder_input": "copy"},
    ],
)
def test_a_model_comes_back_with_the_same_scores(tmp_path, subwords, batch, changes):
    config = tiny.recipe(seed=3, **changes)
    model = assemble(config, subwords).eval()
    folder = saved(tmp_path / "a", config, subwords, model)
    loaded = load_translator(folder)
    assert loaded.config.model == config.model
    assert loaded.config.lengths == config.lengths
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    with torch.no_grad():
        assert torch.equal(loaded.model(batch), model(batch))
        assert torch.equal(loaded.model.step(batch).loss, model.step(batch).loss)
    assert loaded.vocabulary.to_json() == subwords.to_json()


def begun(subwords, start, **changes):
    config = tiny.recipe(seed=1, **changes)
    model = assemble(config, subwords)
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    missing = start_from(model, start, config)
    return before, tensors_of(model), missing


def test_a_model_begins_as_another_one(loaded):
    subwords, given = loaded["nart"].vocabulary, tensors_of(loaded["nart"].model)
    before, after, missing = begun(subwords, loaded["nart"], model__kind="nart-dcrf")
    assert missing == [name for name in after if name.startswith("crf.")]
    assert all(torch.equal(after[name], given[name]) for name in given)
    assert all(torch.equal(after[name], before[name]) for name in missing)


def test_what_does_not_fit_is_new(loaded):
    start = loaded["student"]
    changes = {"crf__rank": 5, "model__positional_attention": True, "lengths__kind": "offset"}
    before, after, missing = begun(start.vocabulary, start, model__kind="nart-crf", **changes)
    assert {"crf.left", "crf.right"} <= set(missing)
    assert all(name.startswith("crf.") or "positional" in name for name in missing)
    assert any("positional" in name for name in missing)
    assert all(torch.equal(after[name], before[name]) for name in missing)
    own = tensors_of(start.model)
    assert all(torch.equal(after[name], own[name]) for name in after.keys() - set(missing))
    _, _, missing = begun(start.vocabulary, start, model__kind="nart-crf")
    assert missing == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__hidden": 32}, "model.hidden is 32 and was 16"),
        ({"model__max_positions": 60}, "model.max_positions is 60 and was 16"),
        (
            {"model__heads": 4, "model__encoder_layers": 2},
            "model.encoder_layers is 2 and was 1; model.heads is 4 and was 2",
        ),
        ({"model__kind": "autoregressive"}, "model.kind autoregressive cannot begin as nart"),
    ],
)
def test_another_size_or_kind_is_refused(loaded, changes, message):
    with pytest.raises(ConfigError, match=f"start .*nart does not fit: {message}$"):
        begun(loaded["nart"].vocabulary, loaded["nart"], **{"model__kind": "nart", **changes})


def test_a_teacher_of_another_vocabulary_of_the_same_size_is_refused(loaded, tmp_path):
    texts = (pair.target for pair in load_splits(tiny.recipe(**tiny.PHRASES)).train)
    other = train_subwords(texts, tiny.SIZE)
    own = loaded["student"].vocabulary
    assert len(other) == len(own)
    folder = saved(tmp_path / "other", tiny.recipe(model__kind="autoregressive"), other)
    assert load_teacher(folder, "cpu", None, "teacher.model").vocabulary.to_json() == other.to_json()
    with pytest.raises(ConfigError, match=r"^teacher.model .*other must have the vocabulary of the model it"):
        load_teacher(folder, "cpu", own, "teacher.model")


def test_a_teacher_is_autoregressive_and_there(nart, tmp_path):
    with pytest.raises(
        ConfigError, match=r"^teacher.model must be an autoregressive translator, .* is a nart"
    ):
        load_teacher(nart, "cpu", None, "teacher.model")
    with pytest.raises(ConfigError, match=r"^teacher.model .*/no is missing: train it with .* --teacher"):
        load_teacher(tmp_path / "no", "cpu", None, "teacher.model")


def test_damaged_tensors_are_refused(copied):
    path = copied / "translator.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"translator.safetensors has sha256 .* altered or exchanged"):
        load_translator(copied)
    path.unlink()
    with pytest.raises(
        ArtifactError, match=r"has no translator.safetensors: the translator was not finished"
    ):
        load_translator(copied)


def test_an_exchanged_vocabulary_is_refused(copied):
    (copied / VOCABULARY).write_bytes(train_subwords(tiny.SOURCES * 9, 270).to_json())
    with pytest.raises(ArtifactError, match=r"vocabulary.json has sha256 .* it was altered or exchanged"):
        load_translator(copied)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is no tokenizer of the tokenizers library"),
        ("[1]", "is no tokenizer of the tokenizers library"),
        ("{", "is not valid JSON"),
        ('{"a": 1, "a": 2}', "is not valid JSON: duplicate key 'a'"),
        (None, "has no vocabulary.json: it was not finished, or not copied whole"),
    ],
)
def test_a_broken_vocabulary_is_refused(copied, text, message):
    (copied / VOCABULARY).unlink()
    if text is not None:
        (copied / VOCABULARY).write_text(text)
    with pytest.raises(ArtifactError, match=message):
        load_translator(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": 3}, r"petkit.json is broken: translator.speed: Extra inputs are not permitted"),
        ({"model": {"hidden": "16"}}, r"petkit.json is broken: translator.model.hidden: Input should be"),
        ({"model": {"kind": "seq2seq"}}, r"petkit.json is broken: translator.model.kind"),
        ({"output": None}, r"petkit.json is broken: translator.output"),
    ],
)
def test_a_recipe_that_is_not_known_is_refused(copied, change, message):
    rewrite(copied, "petkit.json", lambda content: content["translator"].update(change))
    with pytest.raises(ArtifactError, match=message):
        load_translator(copied)


@pytest.mark.parametrize(
    ("section", "change", "name"),
    [
        ("model", {"encoder_layers": 2}, "body.encoder.1"),
        ("model", {"hidden": 32}, "body."),
        ("model", {"kind": "nart"}, "crf."),
        ("crf", {"rank": 7}, "crf.left"),
        ("lengths", {"kind": "offset", "offset": 0}, "body.length"),
    ],
)
def test_tensors_of_other_settings_are_refused(copied, section, change, name):
    rewrite(copied, "petkit.json", lambda content: content["translator"][section].update(change))
    message = (
        f"does not hold the tensors of its settings: .*{name}.* is missing, unexpected or of another shape"
    )
    with pytest.raises(ArtifactError, match=message):
        load_translator(copied)


def test_what_is_no_translator_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is no translator: it has no petkit.json"):
        load_translator(tmp_path)
    (tmp_path / "petkit.json").write_text('{"kind": "tagger"}')
    with pytest.raises(ArtifactError, match=r"must hold a translator, its petkit.json says kind 'tagger'"):
        load_translator(tmp_path)
