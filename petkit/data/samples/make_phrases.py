"""Write the embedded set of parallel phrases: `python petkit/data/samples/make_phrases.py`.

The phrases are made from the lists below, not taken from a corpus: they check that a translator learns, and
say nothing of how well it does on real text. Articles and adjectives agree in gender and case, and some verbs
have two translations, between which a model that writes all words at once must not waver.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "made_phrases"
SIZES = {"train": 1500, "validation": 100, "test": 150}
NOUNS = """
dog=Hund m, cat=Katze f, house=Haus n, tree=Baum m, flower=Blume f, book=Buch n, table=Tisch m, lamp=Lampe f,
car=Auto n, bird=Vogel m, bridge=Brücke f, boat=Boot n, letter=Brief m, street=Straße f, picture=Bild n
"""
ADJECTIVES = "old=alt, new=neu, big=groß, small=klein, red=rot, green=grün, quiet=leise, heavy=schwer"
# Of some a part goes behind the object.
VERBS = """
sees=sieht, finds=findet, buys=kauft, hides=versteckt, begins=beginnt, begins=fängt an, cleans=putzt,
paints=malt an, paints=streicht
"""
TIMES = "today=heute, tomorrow=morgen, in the evening=am Abend, every day=jeden Tag"
ARTICLES = {"subject": {"m": "der", "f": "die", "n": "das"}, "object": {"m": "den", "f": "die", "n": "das"}}


def pairs(text: str) -> list[list[str]]:
    """The pairs of a list."""
    return [pair.strip().split("=") for pair in text.split(",")]


def main() -> None:
    """Write a file for each split; the same every time, and no phrase in two of them."""
    FOLDER.mkdir(exist_ok=True)
    source = random.Random("phrases")
    seen: set[str] = set()
    for split, size in SIZES.items():
        rows: list[str] = []
        while len(rows) < size:
            english, german = phrase(source)
            if english not in seen:
                seen.add(english)
                rows.append(json.dumps({"source": english, "target": german}, ensure_ascii=False) + "\n")
        (FOLDER / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8")


def phrase(source: random.Random) -> tuple[str, str]:
    """A sentence of subject, verb, object and perhaps a time, in both languages."""
    subject, object_ = noun(source, "subject"), noun(source, "object")
    verb, ways = source.choice(pairs(VERBS))
    own, _, behind = ways.partition(" ")
    time = source.choice([["", ""], *pairs(TIMES)])
    english = [subject[0], verb, object_[0], time[0]]
    german = [subject[1], own, time[1], object_[1], behind]
    return tuple(" ".join(filter(None, words)) + "." for words in (english, german))  # type: ignore[return-value]


def noun(source: random.Random, case: str) -> tuple[str, str]:
    """A noun with its article and perhaps an adjective."""
    english, german = source.choice(pairs(NOUNS))
    name, gender = german.split(" ")
    ending = "en" if (case, gender) == ("object", "m") else "e"
    adjective = source.choice([["", ""], *pairs(ADJECTIVES)])
    own = adjective[1] and adjective[1] + ending
    article = ARTICLES[case][gender]
    return " ".join(filter(None, ["the", adjective[0], english])), " ".join(
        filter(None, [article, own, name])
    )


if __name__ == "__main__":
    main()
