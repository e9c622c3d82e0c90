import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petkit.data.conll import TaggedSentence
from petkit.data.spans import SPAN_SCHEMES, Span, checked_tags, likely_scheme, spans_of, tags_of
from petkit.errors import InputError
from petkit.nn import bio_constraints
from tests.reference import spans as reference

LETTERS = {"BIO": "BI", "IOB1": "BI", "BIOUL": "BIUL", "BIOES": "BIES", "BMES": "BMES"}


def labels(scheme, types=("X", "Y")):
    return ["O", *(f"{letter}-{kind}" for letter in LETTERS[scheme] for kind in types)]


def sentence(tags):
    return TaggedSentence(("w",) * len(tags), tuple(tags), "f.conll", tuple(range(3, 3 + len(tags))))


@pytest.mark.parametrize("scheme", SPAN_SCHEMES)
def test_spans_are_those_of_the_definition(scheme):
    for length in range(4):
        for tags in itertools.product(labels(scheme), repeat=length):
            assert set(spans_of(tags)) == reference.spans(tags)


@pytest.mark.parametrize("scheme", SPAN_SCHEMES)
def test_tags_pass_where_the_constraints_of_the_crf_let_them(scheme):
    names = labels(scheme)
    allowed = bio_constraints(names, scheme)
    for length in range(1, 4):
        for path in itertools.product(range(len(names)), repeat=length):
            legal = bool(allowed.start[path[0]] and allowed.end[path[-1]]) and all(
                bool(allowed.transitions[a, b]) for a, b in itertools.pairwise(path)
            )
            tags = [names[number] for number in path]
            if legal:
                assert checked_tags(sentence(tags), scheme, repair=False) == tuple(tags)
            else:
                with pytest.raises(InputError, match=r"^f.conll:[345]: tag .* breaks the scheme"):
                    checked_tags(sentence(tags), scheme, repair=False)


@pytest.mark.parametrize("scheme", SPAN_SCHEMES)
@given(data=st.data())
def test_spans_come_back_from_their_tags(scheme, data):
    cuts = data.draw(st.lists(st.integers(0, 12), unique=True).map(sorted))
    pairs = [(a, b) for a, b in itertools.pairwise(cuts) if data.draw(st.booleans())]
    wanted = [Span(a, b, data.draw(st.sampled_from(["X", "Y", ""]))) for a, b in pairs]
    tags = tags_of(wanted, 12, scheme)
    assert spans_of(tags) == wanted
    assert checked_tags(sentence(tags), scheme, repair=False) == tuple(tags)


def test_repair_keeps_the_spans_and_writes_them_in_the_scheme():
    assert checked_tags(sentence(["I-X", "I-Y", "O", "I-X"]), "BIO", True) == ("B-X", "B-Y", "O", "B-X")
    assert checked_tags(sentence(["B-X", "O", "I-Y", "L-Y"]), "BIOUL", True) == ("U-X", "O", "B-Y", "L-Y")


def test_the_message_names_the_line_and_what_would_fit():
    message = r"f.conll:4: tag I-X breaks the scheme BIO here, where B-X would fit: .*faulty_tags=repair"
    with pytest.raises(InputError, match=message):
        checked_tags(sentence(["O", "I-X"]), "BIO", False)


@pytest.mark.parametrize("tag", ["NOUN", "B-", "X-PER", "L-PER", ""])
def test_a_tag_of_another_scheme_is_refused_even_for_repair(tag):
    with pytest.raises(InputError, match=r"f.conll:3: tag .* must be O or B, I with -TYPE in the scheme BIO"):
        checked_tags(sentence([tag]), "BIO", True)


def test_without_a_scheme_any_tag_will_do():
    assert checked_tags(sentence(["NOUN", "I-X"]), "none", False) == ("NOUN", "I-X")


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        (["B-X", "I-X", "O"], "BIO"),
        (["I-X", "I-X", "O"], "IOB1"),
        (["B-X", "L-X", "U-Y"], "BIOUL"),
        (["B-X", "E-X", "S-Y"], "BIOES"),
        (["B-X", "M-X", "E-X"], "BMES"),
        # Broken in every scheme that knows the letters: a B may not follow O in IOB1, nor I-X in BIO.
        (["B-X", "O", "I-X"], "BIO"),
        (["NOUN", "O"], None),
        (["B", "O", "I"], None),
        (["B-X", "NOUN"], None),
        (["O"], None),
    ],
)
def test_tags_tell_their_scheme(tags, scheme):
    assert likely_scheme([sentence(tags), sentence(["O", "O"])]) == scheme


def test_no_sentence_tells_no_scheme():
    assert likely_scheme([]) is None
