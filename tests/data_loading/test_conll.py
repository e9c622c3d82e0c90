import pytest

from petkit.data.conll import Columns, read_conll, read_word_column, read_words, sample_file
from petkit.errors import ConfigError, InputError


def write(tmp_path, text, name="f.conll"):
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8"))
    return path


def test_sentences_with_their_lines(tmp_path):
    path = write(tmp_path, "\ufeff-DOCSTART- O\n\n\nThe  O\r\ncat\tB-X\n\n  \nSat O")
    first, second = read_conll(path, Columns())
    assert (first.words, first.tags, first.lines) == (("The", "cat"), ("O", "B-X"), (4, 5))
    assert (second.words, second.tags, second.place(0)) == (("Sat",), ("O",), f"{path}:8")


def test_columns_separator_and_comments(tmp_path):
    path = write(tmp_path, "# text = New York\n1\tNew York\tPROPN\tx\n2\tis\tVERB\t_\n")
    (found,) = read_conll(path, Columns(1, 2, "\t", "#"))
    assert (found.words, found.tags) == (("New York", "is"), ("PROPN", "VERB"))


def test_blanks_other_than_space_and_tab_stay_in_a_word(tmp_path):
    (found,) = read_conll(write(tmp_path, "10\u00a0km O\na\u2028b O\n# O\n"), Columns())
    assert found.words == ("10\u00a0km", "a\u2028b", "#")


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("a O\nb c O\n", Columns(), r"f.conll:2 must have 2 columns as line 1 has, got 3"),
        ("a O\n\nb\n", Columns(), r"f.conll:3 must have 2 columns as line 1 has, got 1"),
        ("\n \n", Columns(), r"f.conll must hold at least one sentence of words and tags, got none"),
        ("-DOCSTART- O\n", Columns(), "at least one sentence"),
        ("a O\n", Columns(tag=2), r"f.conll:1 must have a column 2 \(data.tag_column\), got 2 columns"),
        ("a O\n", Columns(word=-3), r"column -3 \(data.word_column\)"),
        ("a\t\tO\n", Columns(1, 2, "\t"), r"f.conll:1 must have text in column 1 \(data.word_column\)"),
        ("a\t\n", Columns(0, 1, "\t"), r"f.conll:1 must have text in column 1 \(data.tag_column\)"),
        (
            "\na\nb\n",
            Columns(),
            r"f.conll:2 has only 1 column, so that word and tag would be the same",
        ),
        ("a O\n", Columns(1, -1), r"f.conll:1 has 2 columns, so that word and tag would be the same column"),
        ("a\tO\n", Columns(separator=";"), r"has only 1 column, .* give each word its tag, or set data.sep"),
    ],
)
def test_a_faulty_file_is_refused_by_line(tmp_path, text, columns, message):
    with pytest.raises(InputError, match=message):
        read_conll(write(tmp_path, text), columns)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no.conll is missing"):
        read_conll(tmp_path / "no.conll", Columns())


def test_words_without_tags(tmp_path):
    lines = write(tmp_path, "The cat\n\n sat  down\n", "a.txt")
    assert read_words(lines) == [(("The", "cat"), 1), (("sat", "down"), 3)]
    column = write(tmp_path, "\nThe\ncat\n\n\nsat\n")
    assert read_word_column(column, Columns()) == [(("The", "cat"), 2), (("sat",), 6)]
    with pytest.raises(InputError, match="at least one sentence"):
        read_words(write(tmp_path, "\n", "b.txt"))


def test_an_unknown_sample_is_refused():
    with pytest.raises(ConfigError, match=r"data.sample must be one of made-names, got 'x'"):
        sample_file("x", "train")
