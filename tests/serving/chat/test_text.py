from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from petkit.serving.chat.text import Detokenizer, StopFilter, TokenNames


def wrapped(core):
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>")


def byte_level():
    """A token for each byte, as GPT-2 writes them."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({sign: n for n, sign in enumerate([*signs, "</s>", "<pad>"])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return wrapped(core)


def byte_fallback():
    """As sentencepiece has it: pieces, and tokens such as <0xE2> for everything else."""
    names = ["</s>", "<pad>", "<unk>", "\u2581", "\u2581a", "b", *(f"<0x{byte:02X}>" for byte in range(256))]
    core = Tokenizer(
        models.BPE({name: n for n, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return wrapped(core)


TOKENIZERS = {"byte level": byte_level(), "byte fallback": byte_fallback()}


def streamed(tokenizer, ids):
    detokenizer = Detokenizer(tokenizer)
    parts = [detokenizer.add(token) for token in ids]
    return [*parts, detokenizer.rest()]


@given(st.lists(st.integers(0, 257), max_size=30))
def test_parts_add_up_to_the_whole_even_where_it_is_no_text(ids):
    tokenizer = TOKENIZERS["byte level"]
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@given(st.lists(st.sampled_from([[4], [5], [3], [6 + 0xE2, 6 + 0x82, 6 + 0xAC], [0]]), max_size=10))
def test_parts_add_up_to_the_whole_of_pieces_and_bytes(pieces):
    tokenizer, ids = TOKENIZERS["byte fallback"], [token for piece in pieces for token in piece]
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=20))
def test_characters_come_whole(text):
    tokenizer = TOKENIZERS["byte level"]
    parts = streamed(tokenizer, tokenizer(text)["input_ids"])
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)


def test_names_of_tokens():
    names = TokenNames(TOKENIZERS["byte level"])
    (first, second) = TOKENIZERS["byte level"]("é")["input_ids"]
    assert (names.of(first), names.of(second)) == (("\ufffd", (0xC3,)), ("\ufffd", (0xA9,)))
    space = TOKENIZERS["byte level"](" ")["input_ids"][0]
    assert names.of(space) == (" ", (0x20,))
    names = TokenNames(TOKENIZERS["byte fallback"])
    ids = TOKENIZERS["byte fallback"].convert_tokens_to_ids(["<0xE2>", "\u2581a", "</s>"])
    assert [names.of(token) for token in ids] == [("\ufffd", (0xE2,)), (" a", (0x20, 0x61)), ("</s>", None)]


def stopped(parts, stops):
    """What is given out until a stop, and whether one came."""
    found, given = StopFilter(stops), []
    for part in parts:
        given.append(found.add(part))
        if found.hit:
            return given, True
    return [*given, found.rest()], False


@given(st.lists(st.text("abc", max_size=3), max_size=8), st.lists(st.text("abc", min_size=1, max_size=3)))
def test_nothing_of_a_stop_leaks(parts, stops):
    given, hit = stopped(parts, stops)
    whole = "".join(parts)
    places = [whole.find(stop) for stop in stops if stop in whole]
    assert hit == bool(places)
    if not places:
        assert "".join(given) == whole
        return
    # The first stop to be complete ends the text; one that begins earlier may still be incomplete then.
    text = "".join(given)
    assert whole.startswith(text)
    assert any(whole[len(text) :].startswith(stop) for stop in stops)


def test_text_is_held_back_no_longer_than_needed():
    assert stopped(["ab", "x", "ab", "c", "!"], ["abc"]) == (["", "abx", "", ""], True)
    assert stopped(["a", "b"], []) == (["a", "b", ""], False)
    assert stopped(["xEN", "D more"], ["END"]) == (["x", ""], True)
