"""Translations: not by company, the best of the lengths, without repeats and special tokens."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from petkit.errors import ConfigError, InputError
from petkit.methods.nart_crf.algorithm import candidate_lengths, deduplicated
from petkit.methods.nart_crf.config import DecodeConfig
from petkit.methods.nart_crf.decoding import Translator, one_step
from petkit.methods.nart_crf.stored import assemble, translator_of
from tests.methods.nart_crf import tiny

STUDENTS = ("nart", "nart-crf", "nart-dcrf")


@pytest.fixture(scope="module", params=STUDENTS)
def untrained(request, subwords):
    """A translator whose translations differ from each other more than those of one hardly trained."""
    model = assemble(tiny.recipe(model__kind=request.param), subwords).eval()
    return Translator(model, subwords, DecodeConfig())


def asked(translator, **changes):
    return replace(translator, decode=translator.decode.model_copy(update=changes))


def encoded(translator, text):
    (ids,) = translator.vocabulary.encode([text])
    source = torch.tensor([[*ids, translator.vocabulary.eos_id]])
    return source, torch.ones_like(source, dtype=torch.bool)


def close(first, second):
    scores = [one.score for one in second]
    if None not in scores:
        scores = pytest.approx(scores, rel=1e-4)
    assert [one.ids for one in first] == [one.ids for one in second]
    assert [one.score for one in first] == scores


@pytest.mark.parametrize("candidates", [1, 3])
def test_translations_do_not_depend_on_company(untrained, candidates):
    translator = asked(untrained, candidates=candidates)
    alone = [translator.translate([source], 1)[0] for source in tiny.SOURCES]
    assert len({one.ids for one in alone}) > 3
    order = random.Random(0).sample(range(6), 6)
    for size in (1, 2, 4, 64):
        close(translator.translate(tiny.SOURCES, size), alone)
        shuffled = translator.translate([tiny.SOURCES[at] for at in order], size)
        close(shuffled, [alone[at] for at in order])


@pytest.mark.parametrize("beam", [1, 3])
def test_a_teachers_translations_do_not_depend_on_company(loaded, beam):
    translator = asked(translator_of(loaded["teacher"]), beam=beam)
    alone = [translator.translate([source], 1)[0] for source in tiny.SOURCES]
    assert len({len(one.ids) for one in alone}) > 1
    close(translator.translate(tiny.SOURCES, 4), alone)
    close(translator.translate(tiny.SOURCES[::-1], 64), alone[::-1])


def test_work_is_divided_where_memory_is_short(untrained, loaded, monkeypatch):
    stored = loaded["teacher"]
    for rescorer in (None, stored.model):
        translator = replace(asked(untrained, candidates=3), rescorer=rescorer)
        whole = translator.translate(tiny.SOURCES, 6)
        with monkeypatch.context() as patch:
            patch.setattr("petkit.methods.nart_crf.decoding.MOST_SCORES", 16 * 340 * 4)
            close(translator.translate(tiny.SOURCES, 6), whole)


def test_a_single_candidate_has_no_score(untrained):
    (found,) = untrained.translate(tiny.SOURCES[:1], 1)
    assert (found.score, found.candidates) == (None, 1)


def scored_lengths(translator, text, count):
    """Each length by itself: its rows of tokens, and the log-probability a token by the definition."""
    model = translator.model
    source, mask = encoded(translator, text)
    with torch.no_grad():
        memory = model.body.encode(source, mask)
        lengths = candidate_lengths(model.expected_lengths(memory, mask), count, tiny.POSITIONS)[0].tolist()
        for length in lengths:
            given = torch.tensor([length])
            tokens, _ = one_step(model, memory, source, mask, given, scored=False)
            whole = torch.ones(1, length, dtype=torch.bool)
            hidden = model.body.decode(memory, source, mask, whole)
            emissions = model.body.emissions(hidden)
            if model.crf is None:
                scores = emissions[0].double().numpy()
                logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
                total = logs.max(1).sum()
            else:
                states = hidden if model.crf.dynamic is not None else None
                likelihood = model.crf(emissions, tokens, whole, states, "none", include_targets=False)
                total = float(likelihood[0])
            yield tokens[0].tolist(), total / length


@pytest.mark.parametrize("count", [2, 5])
def test_the_likeliest_length_is_kept(untrained, count):
    translator = asked(untrained, candidates=count, deduplicate=False)
    for text in tiny.SOURCES:
        rows = list(scored_lengths(translator, text, count))
        row, score = max(rows, key=lambda one: one[1])
        (found,) = translator.translate([text], 1)
        assert found.score == pytest.approx(score, rel=1e-4)
        assert found.ids == tuple(token for token in row if token > 3)
        assert found.candidates == count


def test_a_teacher_chooses_by_its_own_log_probability(untrained, loaded):
    teacher = loaded["teacher"].model
    translator = replace(asked(untrained, candidates=5), rescorer=teacher)
    for text in tiny.SOURCES:
        source, _ = encoded(translator, text)
        ranked = []
        for tokens, _ in scored_lengths(translator, text, 5):
            row = [*deduplicated([token for token in tokens if token > 3]), 2]
            with torch.no_grad():
                begin = torch.tensor([[1, *row[:-1]]])
                scores = teacher.body(input_ids=source, decoder_input_ids=begin).logits[0].double().numpy()
            logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
            ranked.append((logs[range(len(row)), row].sum() / len(row), tuple(row[:-1])))
        score, row = max(ranked)
        (found,) = translator.translate([text], 1)
        assert (found.ids, found.score) == (row, pytest.approx(score, rel=1e-4))


# Padding, end and begin stand between two 5s, unknown is the likeliest of all at the end.
WRITTEN = [5, 5, 0, 5, 2, 6, 1, 6, 7, 3]


@pytest.mark.parametrize("kind", STUDENTS)
def test_repeats_and_special_tokens_are_left_out(subwords, kind, monkeypatch):
    config = tiny.recipe(model__kind=kind, lengths={"kind": "offset", "offset": 8})
    translator = Translator(assemble(config, subwords).eval(), subwords, config.decode)
    source, mask = encoded(translator, tiny.SOURCES[0])
    wanted = torch.tensor(WRITTEN)[:, None] == torch.arange(len(subwords))

    def emissions(hidden):
        own = torch.zeros(*hidden.shape[:2], len(subwords))
        own[:, : len(WRITTEN)] = 100.0 * wanted[: hidden.shape[1]]
        own[:, len(WRITTEN) :, 3] = 100.0
        return own

    monkeypatch.setattr(translator.model.body, "emissions", emissions)
    tokens, _ = one_step(
        translator.model,
        translator.model.body.encode(source, mask),
        source,
        mask,
        mask.sum(1) + 8,
        scored=False,
    )
    assert tokens[0, : len(WRITTEN)].tolist() == WRITTEN
    (found,) = translator.translate(tiny.SOURCES[:1], 1)
    assert found.ids == (5, 6, 7)
    (found,) = asked(translator, deduplicate=False).translate(tiny.SOURCES[:1], 1)
    assert found.ids == (5, 5, 5, 6, 6, 7)


def test_no_special_token_is_ever_written(untrained, loaded):
    found = asked(untrained, deduplicate=False).translate(tiny.SOURCES, 6)
    found += translator_of(loaded["teacher"]).translate(tiny.SOURCES, 6)
    assert all(token > 3 for one in found for token in one.ids)


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_a_source_that_is_too_long_is_refused_by_its_position(loaded, name):
    translator = translator_of(loaded[name])
    assert len(translator.translate(["x" * 14], 1)) == 1
    with pytest.raises(
        InputError, match=r"^sentence 2 has 17 subwords with its end, the model reads 16 at most"
    ):
        translator.translate(["cat", "x" * 15, "cat"], 1)


@torch.no_grad()
def greedy(model, source):
    """The likeliest token, one after the other, by the model's scores of the whole beginning."""
    row = [1]
    while len(row) < tiny.POSITIONS:
        scores = model.body(input_ids=source, decoder_input_ids=torch.tensor([row])).logits[0, -1]
        row.append(int(scores.argmax()))
        if row[-1] == 2:
            break
    return tuple(token for token in row if token > 3)


def test_one_beam_is_greedy(loaded):
    translator = asked(translator_of(loaded["teacher"]), beam=1)
    for text in tiny.SOURCES:
        (found,) = translator.translate([text], 1)
        assert found.ids == greedy(translator.model, encoded(translator, text)[0])
        assert found.score is None


def test_more_beams_give_their_log_probability_a_token(loaded):
    translator = asked(translator_of(loaded["teacher"]), beam=3)
    for text in tiny.SOURCES:
        (found,) = translator.translate([text], 1)
        source, mask = encoded(translator, text)
        target = torch.tensor([[*found.ids, 2]])[:, :15]
        batch = {"source": source, "source_mask": mask, "target": target}
        batch["target_mask"] = torch.ones_like(target, dtype=torch.bool)
        with torch.no_grad():
            total = translator.model.log_probabilities(batch).item()
        assert found.score == pytest.approx(total / target.shape[1], rel=1e-4)
        assert found.candidates == 3


def test_a_rescorer_must_fit(loaded, nart, teacher, tmp_path):
    student = loaded["student"]
    decode = DecodeConfig(candidates=3, rescore=str(teacher))
    assert translator_of(student, decode).rescorer is not None
    assert translator_of(student, decode.model_copy(update={"candidates": 1})).rescorer is None
    for folder, message in (
        (nart, "decode.rescore must be an autoregressive translator, .* is a nart"),
        (tmp_path / "none", "decode.rescore .*none is missing: train it with"),
    ):
        with pytest.raises(ConfigError, match=message):
            translator_of(student, decode.model_copy(update={"rescore": str(folder)}))
