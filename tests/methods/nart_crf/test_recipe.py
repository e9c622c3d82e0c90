"""Whole runs: from a recipe to an artifact that translates like the trained model."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch

from petkit.artifacts.translator import read_translator
from petkit.artifacts.verification import verify
from petkit.errors import ConfigError, InputError, MissingError, PetkitError
from petkit.methods.nart_crf.evaluation import evaluate_translator
from petkit.methods.nart_crf.recipe import plan, prepare, run
from petkit.methods.nart_crf.splits import load_splits
from petkit.methods.nart_crf.stored import load_translator, translator_of
from petkit.training import checkpoint
from tests.methods.nart_crf import tiny

WARM_START = "a CRF learns slowly beside a decoder that begins at random"


def same_tensors(first, second):
    first, second = read_translator(first).dense, read_translator(second).dense
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__kind": "autoregressive", "decode__beam": 2},
        {"model__kind": "nart", "lengths__kind": "offset", "model__decoder_input": "copy"},
        {"model__kind": "nart-crf", "decode__candidates": 3, "decode__deduplicate": False},
        {"model__kind": "nart-dcrf", "training__precision": "bf16", "model__positional_attention": True},
    ],
    ids=lambda changes: changes["model__kind"],
)
def test_a_model_is_trained_and_comes_back(recipe, changes):
    config = recipe(**tiny.PHRASES, **changes)
    planned = plan(config, tiny.context(config))
    assert not Path(config.output).exists()
    result = run(config, tiny.context(config))
    folder = Path(config.output)
    assert (result["status"], result["kind"]) == ("completed", config.model.kind)
    assert json.loads((folder / "result.json").read_text()) == result
    assert all(check.ok for check in verify(folder))
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    # What was announced is what was done.
    assert planned["steps"]["total"] == result["steps"] == result["total_steps"] == 10
    for key in ("bytes", "trainable_parameters", "device", "processes"):
        assert planned[key] == result[key]
    assert planned["model"]["vocabulary"] == result["vocabulary"] == tiny.SIZE
    assert planned["sentences"] == {"train": 200, "validation": None, "test": result["n"]}
    loaded = load_translator(folder)
    assert planned["model"]["offset"] == loaded.config.lengths.offset
    # The artifact measures as the run did.
    again = evaluate_translator(translator_of(loaded), load_splits(config).test, batch_size=20)
    assert again.payload()["bleu"] == result["bleu"]
    assert again.loss == pytest.approx(result["loss"], rel=1e-5)
    card = (folder / "README.md").read_text()
    assert f"Translator, {config.model.kind}" in card
    assert "petkit decode FOLDER" in card


def test_learning_lowers_the_loss(nart):
    history = json.loads((nart / "trainer_state.json").read_text())["log_history"]
    losses = [row["loss"] for row in history if "loss" in row]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_an_offset_is_the_mean_of_the_training_pairs(recipe, subwords):
    config = recipe(model__kind="nart", lengths__kind="offset")
    train = load_splits(config).train
    sides = [subwords.encode([getattr(pair, side) for pair in train]) for side in ("source", "target")]
    differences = [len(target) - len(source) for source, target in zip(*sides, strict=True)]
    ready = prepare(config, tiny.context(config))
    assert ready.config.lengths.offset == round(sum(differences) / len(differences))
    given = recipe(model__kind="nart", lengths={"kind": "offset", "offset": -7})
    assert prepare(given, tiny.context(given)).config.lengths.offset == -7


@pytest.mark.parametrize("kind", ["nart-crf", "autoregressive"])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(recipe, tmp_path, kind):
    whole = recipe(output=tmp_path / "whole", model__kind=kind, training__checkpoint_steps=3)
    run(whole, tiny.context(whole))
    cut = recipe(output=tmp_path / "cut", model__kind=kind, training__max_steps=3)
    assert run(cut, tiny.context(cut))["stopped"] == "max_steps"
    rest = recipe(output=tmp_path / "cut", model__kind=kind)
    result = run(rest, tiny.context(rest, resume=tmp_path / "cut" / "checkpoint-3"))
    assert (result["stopped"], result["steps"]) == (None, 10)
    assert same_tensors(tmp_path / "whole", tmp_path / "cut")


def test_a_resumed_run_shares_its_settings(recipe, student, nart, teacher):
    own = {"start": str(nart), "teacher": {"model": str(teacher), "beam": 2}}
    saved = checkpoint.newest(student)
    same = recipe(output=student, **own)
    prepare(same, tiny.context(same, resume=saved))
    for changes, message in (
        ({"crf__rank": 5}, r"crf.rank: 4 -> 5"),
        ({"teacher": {"model": str(teacher), "distill": False}}, r"teacher.distill: True -> False"),
        ({"data__train_size": 99}, r"data.training_examples: 200 -> 199"),
        ({"start": None}, r"start.sha256: '[0-9a-f]+"),
        ({"lengths__kind": "offset"}, r"lengths.kind: 'predictor' -> 'offset'"),
    ):
        other = recipe(output=student, **own | changes)
        with pytest.raises(ConfigError, match=message):
            plan(other, tiny.context(other, resume=saved))


def test_validation_selects_by_bleu(recipe):
    training = {"training__select": "validation", "training__evaluate_every": 1, "training__epochs": 3}
    config = recipe(model__kind="nart", training__learning_rate=3e-2, **training)
    planned = plan(config, tiny.context(config))
    result = run(config, tiny.context(config))
    assert planned["sentences"] == {"train": 100, "validation": 100, "test": 10}
    rows = [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["eval_bleu"] for row in rows if "eval_bleu" in row}
    assert list(scores) == [5, 10, 15]
    best = max(scores, key=scores.get)
    history = json.loads((Path(config.output) / "trainer_state.json").read_text())
    assert (result["best_step"], history["best_metric"]) == (best, scores[best])
    loaded = translator_of(load_translator(Path(config.output)))
    found = evaluate_translator(loaded, load_splits(config).validation, batch_size=20, resamples=0)
    assert found.bleu == pytest.approx(scores[best])


def test_a_vocabulary_is_the_teachers(recipe, teacher, nart):
    for changes in ({"teacher": {"model": str(teacher), "beam": 2}}, {"start": str(nart)}):
        config = recipe(vocabulary__size=300, **changes)
        with pytest.raises(
            ConfigError, match=r"vocabulary.size must be 340, that of .*, got 300: leave it out"
        ):
            plan(config, tiny.context(config))
        config = recipe(vocabulary={}, **changes)
        assert plan(config, tiny.context(config))["model"]["vocabulary"] == 340


def test_a_crf_without_a_start_is_worth_a_warning(recipe, nart, caplog):
    for changes, warned in (
        ({"model__kind": "nart-crf"}, True),
        ({"model__kind": "nart-dcrf"}, True),
        ({"model__kind": "nart"}, False),
        ({"model__kind": "autoregressive"}, False),
        ({"model__kind": "nart-dcrf", "start": str(nart)}, False),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="petkit"):
            config = recipe(**changes)
            prepare(config, tiny.context(config))
        assert (WARM_START in caplog.text) == warned
    assert "gives the weights, 6 of " in caplog.text


def test_a_start_gives_the_first_weights(recipe, nart):
    config = recipe(model__kind="nart", start=str(nart))
    ready = prepare(config, tiny.context(config))
    own = read_translator(nart).dense
    assert all(torch.equal(parameter, own[name]) for name, parameter in ready.model.named_parameters())
    inputs = ready.start.tensors_sha256
    assert inputs == read_translator(nart).manifest.tensors_sha256


def test_a_missing_sacrebleu_ends_a_run_before_its_work(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setattr("petkit.methods.nart_crf.recipe.load_splits", None)
    config = recipe()
    for work in (plan, run):
        with pytest.raises(MissingError) as raised:
            work(config, tiny.context(config))
        assert raised.value.exit_code == 4
    assert not Path(config.output).exists()


@pytest.mark.parametrize("work", [plan, run])
def test_sentences_that_cannot_be_measured_are_refused_before_training(recipe, tmp_path, work):
    paths = {}
    for name, text in (("train", "ab"), ("test", "ab " * 40)):
        row = json.dumps({"source": "ab", "target": text}) + "\n"
        (tmp_path / f"{name}.jsonl").write_text(row * 20)
        paths[name] = str(tmp_path / f"{name}.jsonl")
    config = recipe(data={**paths, "max_length": 15}, vocabulary={"size": 260})
    with pytest.raises(
        InputError,
        match=r"target of pair 1 of data.test \S+, which begins '(ab )+a', has \d+ subwords with its end, ",
    ):
        work(config, tiny.context(config))
    assert not Path(config.output).exists()


def test_translations_that_are_too_long_are_left_out_of_the_plan_too(recipe, teacher, tmp_path):
    config = recipe(
        model__kind="nart", teacher={"model": str(teacher), "distilled": str(tmp_path / "own.jsonl")}
    )
    ready = prepare(config, tiny.context(config))
    sources = [pair.source for pair in ready.train]
    ready.distilled.append(sources, ["ja"] * 110 + ["x" * 60] * 90)
    planned = plan(config, tiny.context(config))
    assert planned["sentences"]["train"] == 110
    assert planned["steps"]["total"] == run(config, tiny.context(config))["steps"] == 5


def test_a_useless_teacher_is_blamed_and_not_the_data(recipe, teacher, tmp_path):
    own = tmp_path / "own.jsonl"
    config = recipe(model__kind="nart", teacher={"model": str(teacher), "distilled": str(own)})
    ready = prepare(config, tiny.context(config))
    sources = [pair.source for pair in ready.train]
    ready.distilled.append(sources, ["x" * 60] * len(sources))
    with pytest.raises(InputError, match=rf"the targets are the teacher's translations \({own}\)"):
        plan(config, tiny.context(config))


def test_a_teacher_is_named_where_it_cannot_be_used(recipe, nart, tmp_path):
    for name, message in (
        (nart, "teacher.model must be an autoregressive translator"),
        (tmp_path / "none", "teacher.model .*none is missing: train it with"),
    ):
        config = recipe(teacher={"model": str(name)})
        with pytest.raises(PetkitError, match=message):
            plan(config, tiny.context(config))
