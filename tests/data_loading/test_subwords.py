from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petkit.data.subwords import load_subwords, train_subwords
from petkit.errors import InputError

TEXTS = ["could not open the file", "die Datei konnte nicht geöffnet werden", "open file", "Datei öffnen"] * 3


@pytest.fixture(scope="module")
def subwords():
    return train_subwords(TEXTS, 300)


def test_common_words_are_few_pieces(subwords):
    assert len(subwords) == 300
    (known,), (strange,) = subwords.encode(["Datei"]), subwords.encode(["Xylophon"])
    assert len(known) < len(strange)
    assert (subwords.pad_id, subwords.bos_id, subwords.eos_id, subwords.unknown_id) == (0, 1, 2, 3)


def test_special_ids_write_nothing(subwords):
    (ids,) = subwords.encode(["open file"])
    padded = [subwords.bos_id, *ids, subwords.eos_id, subwords.pad_id]
    assert [text.strip() for text in subwords.decode([padded])] == ["open file"]


def test_saved_and_read_back(subwords, tmp_path):
    subwords.save(tmp_path / "tokenizer.json")
    again = load_subwords(tmp_path / "tokenizer.json")
    assert again.encode(TEXTS) == subwords.encode(TEXTS)
    assert train_subwords(TEXTS, 300).encode(TEXTS) == subwords.encode(TEXTS)


def test_refusals(subwords, tmp_path):
    with pytest.raises(InputError, match="vocab_size must be at least 260: 256 bytes and 4, got 100"):
        train_subwords(TEXTS, 100)
    with pytest.raises(InputError, match=r"give \d+ subwords, fewer than vocab_size 5000"):
        train_subwords(TEXTS, 5000)
    with pytest.raises(InputError, match=r"missing.json is missing"):
        load_subwords(tmp_path / "missing.json")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(InputError, match=r"broken.json is no tokenizer of the tokenizers library"):
        load_subwords(tmp_path / "broken.json")


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=30))
def test_every_text_comes_back(subwords, text):
    clean = " ".join(text.split())
    (ids,) = subwords.encode([clean])
    assert subwords.unknown_id not in ids
    assert subwords.decode([ids])[0].removeprefix(" ") == clean
