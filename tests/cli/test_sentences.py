"""What of a command line is a sentence, and what looks like a file's name."""

import os

import pytest

from petkit.cli.sentences import words_of
from petkit.errors import ConfigError, InputError

KINDS = ".txt (a sentence a line)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello.", "Hello."),
        ("hello", "hello"),
        ("Wait...", "Wait..."),
        ("...what", "...what"),
        ("3.14", "3.14"),
        ("e.g", "e.g"),
        ("U.S.", "U.S."),
        ("¿Qué?", "¿Qué?"),
        ("this and/or that", "this and/or that"),
        ("  see\tnowhere/file.en \n now", "see nowhere/file.en now"),
        ("- a dash", "- a dash"),
        ("long " * 2000, ("long " * 2000).strip()),
        ("l" * 5000, "l" * 5000),
        ("a\x00b", "a\x00b"),
    ],
)
def test_sentences_are_kept_with_one_space_between_words(text, words):
    assert words_of(text, KINDS) == words


@pytest.mark.parametrize(
    "text", ["./corpus.de", "corpus.de", "nowhere/file.en", "and/or", "/", "a.en.gz", r"data\test", " x.en "]
)
def test_one_word_like_a_files_name_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"expected a file, \.txt \(a sentence a line\)"):
        words_of(text, KINDS)


def test_a_missing_file_is_said_to_be_missing():
    with pytest.raises(InputError, match=r"^\./corpus\.de does not exist: .*one word, put it on a line of"):
        words_of("./corpus.de", KINDS)


def test_what_is_there_and_no_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs", "two words"):
        (tmp_path / name).mkdir()
        with pytest.raises(InputError, match=f"^{name} is a folder: expected a file"):
            words_of(name, KINDS)
    os.mkfifo("pipe")
    with pytest.raises(InputError, match=r"^pipe is a pipe or device: expected a file"):
        words_of("pipe", KINDS)


@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u00a0"])
def test_blanks_are_refused(text):
    with pytest.raises(ConfigError, match="must hold at least one word, got blanks"):
        words_of(text, KINDS)


def test_the_standard_input_is_not_read():
    with pytest.raises(ConfigError, match=r"must be a file or a sentence, got -: name a file, \.txt"):
        words_of("-", KINDS)
