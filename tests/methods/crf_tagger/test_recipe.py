"""Whole runs: from a recipe to an artifact that tags like the trained model."""

import json
from pathlib import Path

import pytest
import torch

from petkit.artifacts.tagger import WEIGHTS, read_tagger
from petkit.artifacts.verification import verify
from petkit.errors import ArtifactError, ConfigError, PetkitError
from petkit.methods.crf_tagger.evaluation import tag_words
from petkit.methods.crf_tagger.recipe import plan, run
from petkit.methods.crf_tagger.stored import load_tagger
from petkit.training.context import RunContext

SENTENCE = ("Mr.", "Hugo", "Dorn", "wrote", "a", "letter", "to", "Quinn", ".")


def context(config, **more):
    return RunContext(Path(config.output), torch.device("cpu"), **more)


def encoder(bert, **more):
    return {"model": {"encoder": str(bert), **more}}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__character_size": 4, "model__layers": 2, "head__constraints": "decode"},
        {"head": {"kind": "softmax"}, "training__precision": "bf16"},
        {"data__scheme": "none"},
    ],
)
def test_a_bilstm_is_trained_and_comes_back(recipe, changes):
    config = recipe(**changes)
    result = run(config, context(config))
    folder = Path(config.output)
    assert result["status"] == "completed"
    assert (result["spans"] is None) == (config.data.scheme == "none")
    assert json.loads((folder / "result.json").read_text()) == result
    assert all(check.ok for check in verify(folder))
    loaded = load_tagger(folder)
    (tags,) = tag_words(loaded.model, loaded.reader, [SENTENCE], loaded.labels, batch_size=1)
    assert len(tags) == len(SENTENCE)
    assert set(tags) <= {"O", "B-LOC", "I-LOC", "B-PER", "I-PER"}
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.parametrize(
    ("tune", "packed", "dense"),
    [
        ("frozen", 0, {"head", "crf"}),
        ("adapter", 8, {"head", "crf"}),
        ("full", 0, {"head", "crf", "backbone"}),
    ],
)
def test_an_encoder_is_trained_and_comes_back(recipe, bert, tune, packed, dense):
    config = recipe(**encoder(bert, tune=tune))
    assert run(config, context(config))["status"] == "completed"
    artifact = read_tagger(config.output)
    assert len(artifact.packed) == packed
    assert {name.partition(".")[0] for name in artifact.dense} == dense
    assert artifact.manifest.base.id == str(bert)
    assert artifact.vocabulary is None


def test_learning_lowers_the_loss_and_finds_names(recipe):
    config = recipe(data__train_size=None, training__epochs=8, model__character_size=8)
    result = run(config, context(config))
    # The names that training has are two thirds of those of the test split.
    assert result["spans"]["f1"]["value"] > 0.6
    low, high = result["spans"]["f1"]["interval"]
    assert low < result["spans"]["f1"]["value"] < high


def test_validation_selects_by_f1(recipe):
    config = recipe(training__select="validation", training__evaluate_every=1)
    result = run(config, context(config))
    history = json.loads((Path(config.output) / "trainer_state.json").read_text())
    assert result["best_step"] is not None
    assert history["best_metric"] is not None


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(recipe, tmp_path):
    whole = recipe(output=str(tmp_path / "whole"))
    run(whole, context(whole))
    cut = recipe(output=str(tmp_path / "cut"), training__max_steps=3)
    assert run(cut, context(cut))["stopped"] == "max_steps"
    rest = recipe(output=str(tmp_path / "cut"))
    run(rest, context(rest, resume=tmp_path / "cut" / "checkpoint-3"))
    first, second = read_tagger(whole.output).dense, read_tagger(rest.output).dense
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = recipe(output=str(tmp_path / "cut"), head={"kind": "softmax"})
    with pytest.raises(PetkitError, match=r"head.kind: 'crf' -> 'softmax'"):
        run(other, context(other, resume=tmp_path / "cut" / "checkpoint-10"))


def test_a_plan_says_what_would_be_trained(recipe, bert):
    config = recipe(**encoder(bert))
    found = plan(config, context(config))
    assert found["sentences"] == {"train": 100, "validation": None, "test": 20}
    assert len(found["adapters"]) == 4
    assert found["labels"][0] == "O"
    assert not Path(config.output).exists()


def test_a_missing_encoder_is_named_by_its_key(recipe):
    config = recipe(model={"encoder": "/nowhere"})
    expected = r"^model\.encoder must be bilstm, hf/ORG/NAME or a local folder, got '/nowhere', which is none"
    with pytest.raises(ConfigError, match=expected):
        run(config, context(config))


def test_another_encoder_is_refused(recipe, bert, tmp_path):
    from transformers import BertModel

    config = recipe(**encoder(bert, tune="frozen"))
    run(config, context(config))
    model = BertModel.from_pretrained(bert)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "other" / name).write_bytes((bert / name).read_bytes())
    with pytest.raises(ArtifactError, match="was trained on a base with sha256"):
        load_tagger(Path(config.output), base_override=str(tmp_path / "other"))


def test_a_tagger_says_that_its_encoder_is_gone(recipe, bert, tmp_path):
    place = tmp_path / "bert"
    place.symlink_to(bert)
    config = recipe(**encoder(place, tune="frozen"))
    run(config, context(config))
    place.unlink()
    with pytest.raises(ConfigError, match=r"needs its base .* give its place with --base") as caught:
        load_tagger(Path(config.output))
    assert "bilstm" not in str(caught.value)
    assert load_tagger(Path(config.output), base_override=str(bert)).labels


def test_an_altered_artifact_is_refused(recipe):
    config = recipe()
    run(config, context(config))
    folder = Path(config.output)
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(ArtifactError, match="was altered or exchanged"):
        load_tagger(folder)
    assert [check.name for check in verify(folder) if not check.ok] == [WEIGHTS]
    (folder / "vocabulary.json").write_text("{")
    assert [check.name for check in verify(folder) if not check.ok] == [WEIGHTS, "vocabulary.json"]


def test_a_vocabulary_of_another_size_is_refused(recipe):
    config = recipe()
    run(config, context(config))
    path = Path(config.output) / "vocabulary.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "words": content["words"][1:]}))
    with pytest.raises(
        ArtifactError, match=r"backbone.words.weight is missing, unexpected or of another shape"
    ):
        load_tagger(Path(config.output))
