from __future__ import annotations

import importlib.util
import json

import pytest

from petkit.data.parallel import SAMPLES, SentencePair, read_line_pairs, read_pairs, sample_pairs
from petkit.errors import ConfigError, InputError


def written(folder, *rows):
    file = folder / "pairs.jsonl"
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return file


def test_rows_and_their_names(tmp_path):
    file = written(
        tmp_path,
        {"source": "open the  file", "target": "die Datei öffnen"},
        "\n",
        {"source": "close", "target": "schließen", "id": 7},
    )
    assert read_pairs(file) == [
        SentencePair("open the file", "die Datei öffnen", "1"),
        SentencePair("close", "schließen", "7"),
    ]


def test_targets_may_be_unknown(tmp_path):
    file = written(tmp_path, {"source": "a"}, {"source": "b", "target": ""})
    assert [pair.target for pair in read_pairs(file, translated=False)] == ["", ""]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"source": "a"}, "target must be a text that is not empty, got None"),
        ({"source": " ", "target": "b"}, "source must be a text that is not empty, got ' '"),
        ({"source": 3, "target": "b"}, "source must be a text that is not empty, got 3"),
        (
            {"source": "a", "target": "b", "scource": "c"},
            "unknown key 'scource'; there are id, source, target",
        ),
        ({"source": "a", "target": "b", "id": 1.5}, "id must be a text or a whole number, got 1.5"),
        ("[1]\n", "expected a JSON object, got list"),
    ],
)
def test_faulty_rows_are_named(tmp_path, row, message):
    good = {"source": "a", "target": "b"}
    file = written(tmp_path, good, row)
    with pytest.raises(InputError, match=f"pairs.jsonl:2: {message}"):
        read_pairs(file)
    assert len(read_pairs(file, skip_bad=True)) == 1


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"must hold at least one row of source and target, got none"):
        read_pairs(written(tmp_path))


def test_two_files_line_by_line(tmp_path):
    source, target = tmp_path / "train.en", tmp_path / "train.de"
    source.write_text("one\ntwo\n")
    target.write_text("eins\nzwei")
    assert read_line_pairs(source, target) == [
        SentencePair("one", "eins", "1"),
        SentencePair("two", "zwei", "2"),
    ]
    target.write_text("eins\n\n")
    with pytest.raises(InputError, match=r"train.en:2: target must be a text that is not empty"):
        read_line_pairs(source, target)
    assert len(read_line_pairs(source, target, skip_bad=True)) == 1
    target.write_text("eins\n")
    with pytest.raises(InputError, match="must have as many lines as each other, got 2 and 1"):
        read_line_pairs(source, target)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_embedded_pairs_are_whole_and_apart(name):
    sizes, sources = [], []
    for split in ("train", "validation", "test"):
        found = read_pairs(sample_pairs(name, split))
        sizes.append(len(found))
        sources += [pair.source for pair in found]
    assert sizes == [1500, 100, 150]
    # No sentence of one split is in another one.
    assert len(set(sources)) == sum(sizes)


def test_the_embedded_pairs_are_made_by_their_script(tmp_path):
    path = sample_pairs("made-phrases", "test")
    script = path.parent.with_name("make_phrases.py")
    spec = importlib.util.spec_from_file_location("make_phrases", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.FOLDER = tmp_path / "made"
    module.main()
    for made in module.FOLDER.iterdir():
        assert made.read_bytes() == (path.parent / made.name).read_bytes()
    assert len(list(module.FOLDER.iterdir())) == 3


def test_an_unknown_set_is_refused():
    with pytest.raises(ConfigError, match=r"data.sample must be one of made-phrases, got 'phrases'"):
        sample_pairs("phrases", "train")
