"""`petkit decode`: translations of sentences and files, and what it refuses."""

import json
import re
from pathlib import Path

import pytest

from petkit.data.parallel import SentencePair, read_pairs
from petkit.methods.nart_crf.stored import load_translator, translator_of
from tests.methods.nart_crf import tiny

FIRST, SECOND = tiny.SOURCES[:2]


@pytest.fixture
def decode(petkit, student):
    """`decode("dog")` asks the student; `ask=folder` another one."""

    def call(*arguments, ask=student):
        return petkit("decode", ask, *arguments, "--threads", "1", "--device", "cpu")

    return call


def items(result):
    assert result.code == 0, result.err
    return json.loads(result.out)["items"]


def translated(folder, *sources, **changes):
    stored = load_translator(folder)
    translator = translator_of(stored, stored.config.decode.model_copy(update=changes))
    return translator.texts(translator.translate(sources, 8))


def test_sentences_are_translated_one_a_line(decode, student):
    result = decode(FIRST, f"  {SECOND} ")
    assert result.code == 0, result.err
    assert result.out.splitlines() == translated(student, FIRST, SECOND)
    assert "2 sentences, " in result.err


def test_json_says_all_of_it(decode, student):
    result = decode(FIRST, "--json")
    content = json.loads(result.out)
    (target,) = translated(student, FIRST)
    assert content.keys() == {"schema_version", "items", "sentences_per_second"}
    assert content["items"] == [{"id": "", "source": FIRST, "target": target, "score": None, "candidates": 1}]
    assert content["sentences_per_second"] > 0


def test_a_text_files_lines_keep_their_numbers(decode, student, tmp_path):
    file = tmp_path / "a.TXT"
    # Of the separators only a line feed ends a line, as in files of lines that are learned from.
    file.write_bytes(f"\n{FIRST}\r\n \nred\u2028dog\x0csees\n{SECOND}".encode())
    found = items(decode(file, "--json"))
    assert [(one["id"], one["source"]) for one in found] == [
        ("2", FIRST),
        ("4", "red dog sees"),
        ("5", SECOND),
    ]
    assert found[2]["target"] == translated(student, SECOND)[0]
    # Blank lines stay, so that the output is parallel to the file.
    printed = decode(file).out.split("\n")
    assert printed[:-1] == ["", found[0]["target"], "", found[1]["target"], found[2]["target"]]
    written = tmp_path / "out.jsonl"
    assert decode(file, "-o", str(written)).code == 0
    assert [json.loads(line)["id"] for line in written.read_text().splitlines()] == ["2", "4", "5"]


def test_rows_may_have_a_target(decode, student, tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [{"source": FIRST, "target": "alt"}, {"source": SECOND}, {"source": "cat", "id": "x"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = items(decode(file, FIRST, "--json"))
    assert [one["id"] for one in found] == ["1", "2", "x", ""]
    assert [one["target"] for one in found] == translated(student, FIRST, SECOND, "cat", FIRST)


def test_faulty_rows_are_named_or_left_out(decode, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"source": "{FIRST}"}}\n{{"source": " "}}\n{{"sourc": "a"}}\n')
    refused = decode(file)
    assert (refused.code, refused.out) == (2, "")
    assert "a.jsonl:2: source must be a text that is not empty" in refused.err
    assert "a.jsonl:3: unknown key 'sourc'" in refused.err
    assert "repair the 2 lines or pass --skip-bad" in refused.err
    assert "data.skip_bad" not in refused.err
    kept = decode(file, "--skip-bad", "--json")
    assert [one["id"] for one in items(kept)] == ["1"]
    assert "2 of 3 lines are faulty and left out" in kept.err


def test_a_file_of_translations_can_be_learned_from(decode, student, tmp_path):
    source, file = tmp_path / "a.txt", tmp_path / "new" / "b.jsonl"
    source.write_text(f"{FIRST}\n\n{SECOND}\n")
    result = decode(source, "--output", file)
    assert result.code == 0, result.err
    texts = translated(student, FIRST, SECOND)
    assert result.out.splitlines() == [texts[0], "", texts[1]]
    assert read_pairs(file) == [
        SentencePair(FIRST, " ".join(texts[0].split()), "1"),
        SentencePair(SECOND, " ".join(texts[1].split()), "3"),
    ]


def test_one_id_of_several_rows_is_told_of(decode, tmp_path):
    source, file = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    names = ["", "1", "x", "x"]
    source.write_text("".join(json.dumps({"source": FIRST, "id": name}) + "\n" for name in names))
    result = decode(source, "--output", file)
    assert result.code == 0
    assert "several rows have the id '1' and 1 more: the order of the rows tells them apart" in result.err
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ["1", "1", "x", "x"]
    result = decode(FIRST, SECOND, "--output", tmp_path / "c.jsonl")
    assert "several rows" not in result.err


def test_an_output_is_not_written_over(decode, tmp_path):
    file = tmp_path / "b.jsonl"
    file.write_text("kept")
    refused = decode(FIRST, "-o", file)
    assert (refused.code, refused.out, file.read_text()) == (2, "", "kept")
    assert "b.jsonl is there already: choose another name, or --overwrite" in refused.err
    assert decode(FIRST, "-o", file, "--overwrite").code == 0
    assert len(read_pairs(file)) == 1
    content = file.read_text()
    refused = decode(file, "-o", file, "--overwrite")
    assert (refused.code, refused.out, file.read_text()) == (2, "", content)
    assert "--output must not be a file that is translated, got" in refused.err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("b.json", "--output must end in .jsonl, got"),
        ("folder.jsonl", "--output must be a file,"),
        ("file/b.jsonl", "cannot write to output folder"),
        ("file/deep/b.jsonl", "output"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(decode, tmp_path, name, message):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file").write_text("")
    result = decode(FIRST, "-o", tmp_path / name, "--overwrite")
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert "sentences/s" not in result.err


def test_latency_is_that_of_a_sentence_alone(decode, student):
    result = decode(*tiny.SOURCES[:4], "--latency", "--json")
    content = json.loads(result.out)
    assert [one["target"] for one in content["items"]] == translated(student, *tiny.SOURCES[:4])
    times = content["latency_ms"]
    assert times.keys() == {"median", "p90", "p99", "mean"}
    assert 0 < times["median"] <= times["p90"] <= times["p99"]
    assert content["sentences_per_second"] == pytest.approx(1000 / times["mean"])
    assert "a sentence alone" in result.err
    assert "ms in the median, 90 % below" in result.err
    refused = decode(FIRST, "--latency", "--batch-size", "1")
    assert (refused.code, refused.out) == (2, "")
    assert "--latency and --batch-size exclude each other" in refused.err


def test_batches_change_nothing(decode):
    whole = items(decode(*tiny.SOURCES, "--json"))
    for size in ("1", "4"):
        assert items(decode(*tiny.SOURCES, "--json", "--batch-size", size)) == whole


def test_flags_choose_how_a_student_is_asked(decode, student, teacher):
    found = items(decode(FIRST, "--candidates", "3", "--repeats", "--json"))[0]
    assert found["candidates"] == 3
    assert found["score"] < 0
    assert found["target"] == translated(student, FIRST, candidates=3, deduplicate=False)[0]
    again = items(decode(FIRST, "--candidates", "3", "--rescore", teacher, "--no-repeats", "--json"))[0]
    assert again["target"] == translated(student, FIRST, candidates=3, rescore=str(teacher))[0]
    assert again["score"] != found["score"]


def test_flags_choose_how_a_teacher_is_asked(decode, teacher):
    found = items(decode(FIRST, "--beam", "2", "--json", ask=teacher))[0]
    assert found["target"] == translated(teacher, FIRST, beam=2)[0]
    assert found["score"] < 0
    assert items(decode(FIRST, "--beam", "1", "--json", ask=teacher))[0]["score"] is None


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("student", ["--beam", "2"], "--beam has no effect on a translator of all tokens at once: leave it"),
        ("student", ["--rescore", "x"], "--rescore has no effect on a single candidate: give --candidates"),
        ("teacher", ["--candidates", "2"], "--candidates has no effect on an autoregressive translator"),
        ("teacher", ["--rescore", "x"], "--rescore has no effect on an autoregressive translator"),
        ("teacher", ["--repeats"], "--repeats has no effect on an autoregressive translator"),
        ("teacher", ["--no-repeats"], "--repeats has no effect on an autoregressive translator"),
        ("student", ["--candidates", "0"], "invalid value for '--candidates': Input should be greater"),
        ("teacher", ["--beam", "65"], "invalid value for '--beam': Input should be less"),
        ("student", ["--batch-size", "0"], "invalid value for '--batch-size': Input should be greater"),
    ],
)
def test_flags_without_effect_are_refused(decode, request, name, flags, message):
    result = decode(FIRST, *flags, ask=request.getfixturevalue(name))
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_a_rescorer_must_be_a_teacher(decode, student, tmp_path):
    for folder, message in (
        (student, "error: --rescore must be an autoregressive translator"),
        (tmp_path / "none", f"error: --rescore {tmp_path / 'none'} is missing: train it with"),
    ):
        result = decode(FIRST, "--candidates", "2", "--rescore", folder)
        assert (result.code, result.out) == (2, "")
        assert message in result.err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("  ", "an INPUT must hold at least one word, got blanks"),
        ("", "an INPUT must hold at least one word, got blanks"),
        ("a.md", "must end in .jsonl (rows) or .txt (a sentence a line), got .md"),
        ("plain", "must end in .jsonl (rows) or .txt (a sentence a line), got no ending"),
        ("empty.txt", "empty.txt must hold at least one sentence, got none"),
        ("empty.jsonl", "empty.jsonl must hold at least one row"),
        ("none.txt", "none.txt is missing: expected a file of UTF-8 text"),
        ("none.jsonl", "none.jsonl is missing: expected a file of UTF-8 text"),
        ("latin.txt", "latin.txt cannot be read as UTF-8 text"),
        ("./corpus.de", "./corpus.de does not exist: expected a file, .jsonl (rows) or .txt"),
        ("nowhere/file.en", "nowhere/file.en does not exist"),
        ("folder", "folder is a folder: expected a file"),
        ("-", "an INPUT must be a file or a sentence, got -: name a file, .jsonl (rows) or .txt"),
    ],
)
def test_inputs_that_hold_no_sentence_are_refused(decode, tmp_path, monkeypatch, argument, message):
    monkeypatch.chdir(tmp_path)
    for name in ("a.md", "plain"):
        Path(name).write_text(FIRST)
    for name in ("empty.txt", "empty.jsonl"):
        Path(name).write_text("\n \n")
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    Path("folder").mkdir()
    result = decode(argument)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_a_sentence_may_be_longer_than_a_files_name(decode):
    # As a path it could not even be looked for.
    result = decode("dog sees cat " * 30)
    assert (result.code, result.out) == (2, "")
    assert "sentence 1 has" in result.err
    assert result.err.endswith("the model reads 16 at most: divide it\n")


LONG = "dog sees cat " * 30


def test_a_sentence_that_is_too_long_is_named_by_its_line(decode, tmp_path):
    short, text, rows = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.jsonl"
    short.write_text(f"{FIRST}\n")
    text.write_text(f"\n{FIRST}\n{LONG}\n")
    result = decode(short, text)
    assert (result.code, result.out) == (2, "")
    count = re.search(rf"^error: {re.escape(str(text))}:3 has (\d+) subwords with its end", result.err)
    assert count is not None
    assert int(count[1]) > 16
    assert result.err.endswith("the model reads 16 at most: divide it, or pass --skip-bad\n")
    rows.write_text(json.dumps({"source": FIRST, "id": "x"}) + "\n" + json.dumps({"source": LONG, "id": "y"}))
    assert f"{rows}:2 has {count[1]} subwords" in decode(rows).err
    result = decode(rows, text, FIRST, LONG)
    assert f"{rows}:2 has {count[1]} subwords" in result.err
    assert "at most (2 more are too long): divide them, or pass --skip-bad" in result.err
    assert f"sentence 2 has {count[1]} subwords" in decode(FIRST, LONG).err


def test_sentences_that_are_too_long_are_left_out(decode, student, tmp_path):
    text, rows = tmp_path / "b.txt", tmp_path / "c.jsonl"
    text.write_text(f"{FIRST}\n{LONG}\n\n{SECOND}\n{LONG}\n")
    rows.write_text("".join(json.dumps({"source": one}) + "\n" for one in (LONG, FIRST)))
    first, second = translated(student, FIRST, SECOND)
    result = decode(text, "--skip-bad", "-o", tmp_path / "out.jsonl")
    assert result.code == 0, result.err
    # Empty lines stand for them, so that the output stays parallel to the file.
    assert result.out == f"{first}\n\n\n{second}\n\n"
    assert (
        "warning: 2 of 4 sentences left out, with more subwords than the 16 that the model reads: the first "
        f"is {text}:2\n"
    ) in result.err
    assert [pair.id for pair in read_pairs(tmp_path / "out.jsonl")] == ["1", "4"]
    # Rows have ids of their own, and need no line.
    result = decode(rows, "--skip-bad")
    assert result.out == f"{first}\n"
    assert "1 of 2 sentences left out, " in result.err
    assert f"the model reads: the first is {rows}:1\n" in result.err
    found = items(decode(rows, text, "--skip-bad", "--json"))
    assert [one["id"] for one in found] == [f"{rows}:2", f"{text}:1", f"{text}:4"]


def test_something_must_be_left(decode, tmp_path):
    text = tmp_path / "b.txt"
    text.write_text(f"\n{LONG}\n")
    result = decode(text, "--skip-bad", "--latency")
    assert (result.code, result.out) == (2, "")
    assert "error: each sentence has more subwords than the 16 that the model reads" in result.err
    assert f"the first is {text}:2: divide them" in result.err


def test_ids_of_several_files_are_apart(decode, tmp_path):
    names = [tmp_path / name for name in ("a.txt", "b.txt", "c.jsonl", "d.jsonl")]
    for name in names[:2]:
        name.write_text(f"{FIRST}\n{SECOND}\n")
    names[2].write_text(json.dumps({"source": FIRST}) + "\n" + json.dumps({"source": FIRST, "id": "x"}))
    names[3].write_text(json.dumps({"source": SECOND}))
    found = [one["id"] for one in items(decode(*names, "--json"))]
    a, b, c, d = names
    assert found == [f"{a}:1", f"{a}:2", f"{b}:1", f"{b}:2", f"{c}:1", "x", f"{d}:1"]
    # A sentence of the command line is no file.
    assert [one["id"] for one in items(decode(a, FIRST, "--json"))] == ["1", "2", ""]


def test_one_sentence_is_not_several(decode):
    assert "1 sentence, " in decode(FIRST).err


def test_what_is_no_translator_is_refused(decode, tmp_path):
    for folder, message in (
        (tmp_path, "is no translator: it has no petkit.json"),
        (tmp_path / "none", "expected an artifact folder"),
    ):
        result = decode(FIRST, ask=folder)
        assert (result.code, result.out) == (2, "")
        assert message in result.err
    (tmp_path / "petkit.json").write_text('{"kind": "router"}')
    assert "must hold a translator, its petkit.json says kind 'router'" in decode(FIRST, ask=tmp_path).err


def test_a_sentence_is_needed(petkit, student):
    result = petkit("decode", student)
    assert (result.code, result.out) == (2, "")
    assert "missing argument 'INPUT...'" in result.err


def test_help_names_every_option(petkit):
    result = petkit("decode", "--help")
    assert (result.code, result.err) == (0, "")
    assert "Translate sentences with what `petkit train nat` made." in result.out
    for name in ("--candidates", "--rescore", "--beam", "--repeats", "--latency", "--output", "--overwrite"):
        assert name in result.out
    assert "decode" in petkit("--help").out


@pytest.mark.parametrize("flag", ["--overwrite", "--skip-bad"])
def test_flags_without_a_file_are_refused(decode, flag):
    done = decode("a b", flag)
    assert (done.code, done.out) == (2, "")
    assert f"{flag} has no effect without" in done.err
