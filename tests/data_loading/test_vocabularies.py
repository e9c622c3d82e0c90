"""Vocabularies are compared by what is in them, and not by their sizes."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from petkit.data.vocabularies import check_same_vocabulary
from petkit.errors import InputError

WORDS = ("<pad>", "<unk>", "red", "green", "blue")


def tokenizer(words=WORDS, added=(), **special):
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **special)
    found.add_tokens(list(added))
    return found


def check(own, other):
    check_same_vocabulary(own, other, "student", "teacher")


def test_the_same_content_is_the_same_vocabulary():
    check(tokenizer(), tokenizer())
    check(tokenizer(pad_token="<pad>"), tokenizer())
    check(tokenizer(added=["violet"]), tokenizer((*WORDS, "violet")))


def test_one_size_with_other_content_is_refused():
    with pytest.raises(InputError) as raised:
        check(tokenizer(), tokenizer(("<pad>", "<unk>", "green", "red", "blue")))
    assert str(raised.value) == (
        "student and teacher must have one vocabulary, got 5 and 5 tokens of which 2 differ: 'green' is 3 in "
        "one and 2 in the other"
    )
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("swapped", [False, True])
def test_a_token_of_one_side_alone_is_named(swapped):
    sides = [tokenizer(), tokenizer((*WORDS[:4], "teal"))]
    if swapped:
        sides.reverse()
    seen = "None in one and 4 in the other" if swapped else "4 in one and None in the other"
    with pytest.raises(InputError, match=f"got 5 and 5 tokens of which 2 differ: 'blue' is {seen}"):
        check(*sides)


def test_added_tokens_count():
    with pytest.raises(
        InputError, match=r"got 6 and 5 tokens of which 1 differ: '<tool>' is 5 in one and None"
    ):
        check(tokenizer(added=["<tool>"]), tokenizer())


@pytest.mark.parametrize(("own", "other", "name"), [(None, 1, "student"), (1, None, "teacher")])
def test_a_model_without_a_tokenizer_is_named(own, other, name):
    with pytest.raises(InputError, match=f"{name} must have a tokenizer, so that its vocabulary can be"):
        check(*(tokenizer() if one else None for one in (own, other)))
