"""Write the embedded set of tagged sentences: `python petkit/data/samples/make_names.py`.

The sentences are made from patterns and lists below, not taken from a corpus: they check that a tagger
learns, and say nothing of how well it does on real text. Names of persons and places are spans in BIO; a
third of the names of the test sentences do not occur in the others.
"""

from __future__ import annotations

import random
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "made_names"
SIZES = {"train": 240, "validation": 60, "test": 120}
# First names and last names of persons, and places; those of the test split alone come second.
KNOWN = (
    "Anna Boris Clara David Elena Felix Greta Hugo Irene Jonas Karla Leon Marta Nils Olga Peter",
    "Abel Brandt Castel Dorn Ehlers Falk Grimm Hansen Ilves Jansen Keller Lindt Moser Novak",
    "Aston Brookfield Camden_Falls Dunmore East_Haven Fairview Glenwood High_Point Lake_Orion Milton",
)
NEW = ("Quinn Rosa Sven", "Olsen Petri Quist", "New_Dover Weston")
PATTERNS = """
PER lives in LOC .
PER and PER met in LOC .
The train from LOC to LOC was late .
Mr. PER wrote a letter to PER .
Nobody in LOC had heard of PER .
She moved to LOC last year .
The old bridge near LOC is closed .
He gave the book to PER before noon .
It rained for two days .
PER , who grew up in LOC , paints houses .
The council of LOC thanked Mrs. PER .
In the morning they walked to the market .
" We will wait , " said PER .
A dog barked at PER .
"""


def main() -> None:
    """Write a file for each split; the same every time."""
    FOLDER.mkdir(exist_ok=True)
    for split, size in SIZES.items():
        source = random.Random(split)
        sentences = [sentence(source, fresh=split == "test") for _ in range(size)]
        (FOLDER / f"{split}.conll").write_text("\n".join(sentences), encoding="utf-8")


def sentence(source: random.Random, fresh: bool) -> str:
    """One sentence, a word and its tag on each line."""
    lines = []
    for part in source.choice(PATTERNS.strip().split("\n")).split(" "):
        if part not in ("PER", "LOC"):
            lines.append(f"{part} O\n")
            continue
        words = name(source, part, fresh)
        lines += [f"{word} {'I' if place else 'B'}-{part}\n" for place, word in enumerate(words)]
    return "".join(lines)


def name(source: random.Random, kind: str, fresh: bool) -> list[str]:
    """The words of a person's or a place's name."""
    lists = NEW if fresh and source.random() < 1 / 3 else KNOWN
    first, last, places = (text.split(" ") for text in lists)
    if kind == "LOC":
        return source.choice(places).split("_")
    both = [source.choice(first), source.choice(last)]
    return source.choice((both, both, both[:1], both[1:]))


if __name__ == "__main__":
    main()
