"""Spans of words, and the letters that write them into tags: BIO, IOB1, BIOUL, BIOES, BMES."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

from petkit.data.conll import TaggedSentence
from petkit.errors import InputError

Scheme = Literal["none", "BIO", "IOB1", "BIOUL", "BIOES", "BMES"]
SPAN_SCHEMES: tuple[str, ...] = tuple(name for name in get_args(Scheme) if name != "none")


class Span(NamedTuple):
    """Words `start` to `end` - 1 of a sentence are of one type."""

    start: int
    end: int
    type: str


class _Letters(NamedTuple):
    """What a scheme writes for a span of one word, and for the first, middle and last of several."""

    single: str
    first: str
    middle: str
    last: str


_LETTERS = {
    "BIO": _Letters("B", "B", "I", "I"),
    # B only where a span touches one of its type before it, which `tags_of` adds.
    "IOB1": _Letters("I", "I", "I", "I"),
    "BIOUL": _Letters("U", "B", "I", "L"),
    "BIOES": _Letters("S", "B", "I", "E"),
    "BMES": _Letters("S", "B", "M", "E"),
}
_OPENS, _ALONE, _ENDS = "B", "US", "LE"


def spans_of(tags: Sequence[str]) -> list[Span]:
    """Read the spans of a tag sequence, also of one that breaks its scheme.

    Args:
        tags: `O`, or a letter with a type behind a hyphen, or a letter alone.

    Returns:
        Spans in order. B, U and S begin one; I, M, L and E go on with the span before them when it is of
        their type and has not ended, and begin one otherwise; U, S, L and E end theirs; whatever is open at
        `O` or at the end of the sentence ends there. The letters of the five schemes do not contradict each
        other, so that the scheme need not be known.

    Source:
        The reading of conlleval, which scores the CoNLL shared tasks.
    """
    spans: list[Span] = []
    is_open = False
    for position, tag in enumerate(tags):
        letter, _, kind = tag.partition("-")
        if tag == "O":
            is_open = False
            continue
        goes_on = is_open and letter not in _OPENS + _ALONE and spans[-1].type == kind
        if goes_on:
            spans[-1] = spans[-1]._replace(end=position + 1)
        else:
            spans.append(Span(position, position + 1, kind))
        is_open = letter not in _ALONE + _ENDS
    return spans


def tags_of(spans: Iterable[Span], length: int, scheme: str) -> list[str]:
    """Write spans into tags.

    Args:
        spans: in order, not overlapping.
        length: words of the sentence.
        scheme: one of `SPAN_SCHEMES`.

    Returns:
        A tag for each word.
    """
    letters, tags = _LETTERS[scheme], ["O"] * length
    before: Span | None = None
    for span in spans:
        written = [letters.middle] * (span.end - span.start)
        written[0], written[-1] = letters.first, letters.last
        if len(written) == 1:
            written = [letters.single]
        if scheme == "IOB1" and before is not None and (before.end, before.type) == (span.start, span.type):
            written[0] = "B"
        tags[span.start : span.end] = [f"{one}-{span.type}" if span.type else one for one in written]
        before = span
    return tags


def checked_tags(sentence: TaggedSentence, scheme: str, repair: bool) -> tuple[str, ...]:
    """Hold the tags of a sentence against their scheme.

    Args:
        sentence: with its tags.
        scheme: one of `Scheme`; none takes any tags.
        repair: rewrite a sequence that breaks the scheme, with the spans that `spans_of` reads in it.

    Returns:
        The tags, repaired where that is asked for and needed.

    Raises:
        InputError: a tag that the scheme does not know, or, without `repair`, one that may not stand where
            it does; the message names file and line.
    """
    if scheme == "none":
        return sentence.tags
    for position, tag in enumerate(sentence.tags):
        if not _is_known(tag, scheme):
            raise InputError(
                f"{sentence.place(position)}: tag {tag!r} must be O or {', '.join(_known(scheme))} with "
                f"-TYPE in the scheme {scheme}: set data.scheme or data.tag_column, or correct the line"
            )
    meant = tuple(tags_of(spans_of(sentence.tags), len(sentence.tags), scheme))
    if meant == sentence.tags or repair:
        return meant
    position = next(
        at for at, (own, other) in enumerate(zip(sentence.tags, meant, strict=True)) if own != other
    )
    raise InputError(
        f"{sentence.place(position)}: tag {sentence.tags[position]} breaks the scheme {scheme} here, where "
        f"{meant[position]} would fit: correct it, or set data.faulty_tags=repair"
    )


def likely_scheme(sentences: Iterable[TaggedSentence]) -> str | None:
    """Guess from tags which scheme wrote them.

    Args:
        sentences: with their tags.

    Returns:
        The first of `SPAN_SCHEMES` that no sentence breaks; where each is broken, the first that knows all
        tags; None where none does, or where no tag has a type behind a hyphen.
    """
    found = {sentence.tags for sentence in sentences}
    tags = {tag for own in found for tag in own}
    knowing = [scheme for scheme in SPAN_SCHEMES if all(_is_known(tag, scheme) for tag in tags)]
    # Letters alone, such as B, may be parts of speech.
    if not knowing or not any("-" in tag for tag in tags):
        return None
    kept = (scheme for scheme in knowing if all(_keeps(own, scheme) for own in found))
    return next(kept, knowing[0])


def _keeps(tags: Sequence[str], scheme: str) -> bool:
    return tuple(tags_of(spans_of(tags), len(tags), scheme)) == tuple(tags)


def _known(scheme: str) -> tuple[str, ...]:
    extra = ("B",) if scheme == "IOB1" else ()
    return tuple(dict.fromkeys((*extra, *_LETTERS[scheme])))


def _is_known(tag: str, scheme: str) -> bool:
    letter, hyphen, kind = tag.partition("-")
    return tag == "O" or (letter in _known(scheme) and bool(hyphen) == bool(kind))
