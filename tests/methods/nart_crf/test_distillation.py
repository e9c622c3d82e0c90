"""The teacher's translations: each made once, kept as they come, of one teacher and one beam."""

import hashlib
import json
import logging
from pathlib import Path

import pytest

from petkit.data.parallel import SentencePair
from petkit.errors import ConfigError, InputError
from petkit.methods.nart_crf import distillation
from petkit.methods.nart_crf.distillation import DistilledFile, distil
from petkit.methods.nart_crf.recipe import plan, prepare, run
from petkit.methods.nart_crf.splits import load_splits
from petkit.methods.nart_crf.stored import load_translator, translator_of
from petkit.training.distributed import World
from tests.methods.nart_crf import tiny

SHA256 = "a" * 64


class Shouting:
    """Stands in for a teacher: to upper case, silence to nothing; it remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def translate(self, sources, batch_size):
        self.asked.append(list(sources))
        return list(sources)

    def texts(self, found):
        return ["" if text == "silence" else text.upper() for text in found]


def pairs(*sources):
    return [SentencePair(source, "own", str(at)) for at, source in enumerate(sources)]


def targets(found):
    return [pair.target for pair in found]


@pytest.fixture
def file(tmp_path):
    return DistilledFile(tmp_path / "deep" / "teacher.distilled.jsonl", SHA256, 4)


def again(file, sha256=SHA256, beam=4):
    return DistilledFile(file.path, sha256, beam)


def test_a_translation_is_made_once(file, monkeypatch):
    monkeypatch.setattr(distillation, "CHUNK", 2)
    teacher, counted = Shouting(), []
    found = distil(pairs("a", "b", "a", "c"), teacher, file, 8, counted.append)
    assert targets(found) == ["A", "B", "A", "C"]
    assert [pair.id for pair in found] == ["0", "1", "2", "3"]
    assert (teacher.asked, counted) == ([["a", "b"], ["c"]], [2, 1])
    found = distil(pairs("d", "c", "a"), teacher, again(file), 8)
    assert (targets(found), teacher.asked[2:]) == (["D", "C", "A"], [["d"]])
    rows = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert rows[0] == {"teacher_sha256": SHA256, "beam": 4}
    assert rows[1:] == [{"source": one, "target": one.upper()} for one in "abcd"]


@pytest.mark.parametrize("cut", [1, 20, 43, 60])
def test_a_killed_runs_last_line_is_made_again(file, cut):
    teacher = Shouting()
    distil(pairs("a", "ü\u2028"), teacher, file, 8)
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-cut])
    assert targets(distil(pairs("a", "ü\u2028"), Shouting(), again(file), 8)) == ["A", "Ü\u2028"]
    assert file.path.read_bytes() == whole


def test_a_file_without_a_whole_line_begins_anew(file):
    file.path.parent.mkdir()
    file.path.write_text('{"teacher_sha')
    distil(pairs("a"), Shouting(), again(file), 8)
    assert again(file).known == {"a": "A"}


@pytest.mark.parametrize(
    ("sha256", "beam", "message"),
    [
        ("b" * 64, 4, f"holds translations with teacher_sha256 {SHA256}, not {'b' * 64}: remove it, or name"),
        (SHA256, 2, "holds translations with beam 4, not 2: remove it, or name another file"),
    ],
)
def test_another_teachers_translations_are_refused(file, sha256, beam, message):
    distil(pairs("a"), Shouting(), file, 8)
    with pytest.raises(InputError, match=message):
        again(file, sha256, beam)


@pytest.mark.parametrize("line", ["{", "[]", '{"source": "a"}', '{"source": "a", "target": 3}', ""])
def test_a_broken_line_is_named(file, line):
    distil(pairs("a", "b"), Shouting(), file, 8)
    lines = file.path.read_text().splitlines()
    file.path.write_text("\n".join([*lines[:2], line, lines[2], ""]))
    with pytest.raises(InputError, match=r"distilled.jsonl:3 must be a translation that petkit wrote"):
        again(file)


@pytest.mark.parametrize("text", ['{"source": "a", "target": "b"}\n', "hello\n", "\n", "\0\n"])
def test_a_file_of_something_else_is_refused(file, text):
    file.path.parent.mkdir()
    file.path.write_text(text)
    with pytest.raises(
        InputError, match=r"must hold a teacher's translations that petkit wrote: name another"
    ):
        again(file)
    assert file.path.read_text() == text


def test_a_folder_in_its_place_is_refused(file):
    file.path.mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        again(file)
    with pytest.raises(InputError, match="cannot be written: Is a directory"):
        file.append(["a"], ["A"])


def test_two_runs_do_not_write_over_each_other(file):
    other = again(file)
    distil(pairs("a"), Shouting(), file, 8)
    with pytest.raises(
        InputError, match=r"has \d+ bytes, this run left it with 0: another run writes it too"
    ):
        distil(pairs("b"), Shouting(), other, 8)
    assert again(file).known == {"a": "A"}


def test_an_empty_translation_leaves_the_target(file, caplog):
    with caplog.at_level(logging.WARNING):
        found = distil(pairs("silence", "b"), Shouting(), file, 8)
    assert targets(found) == ["own", "B"]
    assert "the teacher's translations of 1 of 2 sentences are empty" in caplog.text
    assert again(file).missing(["silence", "b"]) == []


def test_a_student_learns_what_its_lineage_says(student, teacher, loaded):
    """The hash is that of the training sentences with the teacher's translations, made here once more."""
    config = tiny.recipe(start="unused", teacher={"model": str(teacher), "beam": 2})
    train = load_splits(config).train
    decode = loaded["teacher"].config.decode.model_copy(update={"beam": 2})
    translator = translator_of(loaded["teacher"], decode)
    own = translator.texts(translator.translate([pair.source for pair in train], 20))
    made = [[pair.source, text or pair.target] for pair, text in zip(train, own, strict=True)]
    encoded = translator.vocabulary.encode([target for _, target in made])
    made = [pair for pair, ids in zip(made, encoded, strict=True) if len(ids) < tiny.POSITIONS]
    wanted = hashlib.sha256(json.dumps(made).encode()).hexdigest()
    inputs = loaded["student"].manifest.lineage[0].inputs
    assert inputs["pairs"] == wanted
    assert inputs["teacher"] == loaded["teacher"].tensors_sha256
    assert inputs["start"] == loaded["nart"].tensors_sha256
    rows = teacher.with_name("teacher.distilled.jsonl").read_text().splitlines()
    assert len(rows) == 1 + len({pair.source for pair in train})


def test_a_finished_file_is_used_as_it_is(student, teacher, recipe):
    config = recipe(model__kind="nart", teacher={"model": str(teacher), "beam": 2}, training__max_steps=1)
    assert plan(config, tiny.context(config))["sentences_to_distil"] == 0
    before = teacher.with_name("teacher.distilled.jsonl").read_bytes()
    run(config, tiny.context(config))
    assert teacher.with_name("teacher.distilled.jsonl").read_bytes() == before
    step = load_translator(Path(config.output)).manifest.lineage[0]
    assert step.inputs["pairs"] == load_translator(student).manifest.lineage[0].inputs["pairs"]


def test_several_processes_need_a_finished_file(student, teacher, recipe, tmp_path):
    own = {"model": str(teacher), "beam": 2}
    config = recipe(model__kind="nart", teacher=own)
    two = tiny.context(config, world=World(0, 2))
    assert prepare(config, two).distilled is not None
    config = recipe(model__kind="nart", teacher={**own, "distilled": str(tmp_path / "new.jsonl")})
    for work in (plan, run):
        with pytest.raises(
            ConfigError, match=r"new.jsonl lacks 200 translations of the teacher, and several"
        ):
            work(config, tiny.context(config, world=World(0, 2)))
    assert not Path(config.output).exists()


def test_a_teacher_may_give_its_vocabulary_alone(teacher, recipe):
    config = recipe(model__kind="nart", teacher={"model": str(teacher), "distill": False})
    ready = prepare(config, tiny.context(config))
    assert ready.distilled is None
    assert ready.vocabulary.to_json() == load_translator(teacher).vocabulary.to_json()
