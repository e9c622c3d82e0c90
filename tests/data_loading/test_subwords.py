from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petkit.data.subwords import subwords_of, train_subwords
from petkit.errors import ArtifactError, InputError

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


def test_written_and_read_back(subwords):
    text = subwords.to_json()
    again = subwords_of(text.decode(), "a.json")
    assert again.encode(TEXTS) == subwords.encode(TEXTS)
    assert again.to_json() == text
    # Whoever writes the JSON anew writes the same vocabulary: its hash is taken of what the library writes.
    assert subwords_of(json.dumps(json.loads(text), indent=1), "a.json").to_json() == text
    assert train_subwords(TEXTS, 300).to_json() == text
    assert train_subwords(TEXTS, 290).to_json() != text


def test_a_text_that_looks_like_a_special_token_is_a_text(subwords):
    (ids,) = subwords.encode(["a <eos> <pad>"])
    assert min(ids) > subwords.unknown_id
    again = subwords_of(subwords.to_json().decode(), "a.json")
    assert again.encode(["a <eos> <pad>"]) == [ids]


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(InputError, match=r"vocabulary.size must be at least 260: 256 bytes and 4, got 100"):
        train_subwords(TEXTS, 100)
    with pytest.raises(InputError, match=r"give \d+ subwords, fewer than vocabulary.size 5000"):
        train_subwords(TEXTS, 5000)


@pytest.mark.parametrize("text", ["{}", "[]", "", "{", '{"model": null}'])
def test_what_is_no_tokenizer_is_refused(text):
    with pytest.raises(ArtifactError, match=r"^broken.json is no tokenizer of the tokenizers library"):
        subwords_of(text, "broken.json")


def test_a_tokenizer_without_the_special_tokens_is_refused():
    from tokenizers import Tokenizer, models

    other = Tokenizer(models.BPE({"a": 0, "<pad>": 1}, [])).to_str()
    message = r"^other.json must have <pad>, <bos>, <eos>, <unk> at ids 0 to 3, got \[1, None, None, None\]"
    with pytest.raises(ArtifactError, match=message):
        subwords_of(other, "other.json")


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=30))
def test_every_text_comes_back(subwords, text):
    clean = " ".join(text.split())
    (ids,) = subwords.encode([clean])
    assert subwords.unknown_id not in ids
    assert subwords.decode([ids])[0].removeprefix(" ") == clean
