"""Write parallel sentences from the translated messages of installed programs (gettext catalogues).

python benchmarks/parallel_catalogues.py --language de OUT /usr/share/locale

Writes OUT/train.jsonl, valid.jsonl and test.jsonl, rows of source (English), target and id. A source string
is in one split alone, chosen by its hash, so that more catalogues never move a sentence from one split to
another. The messages are their translators', under the licences of the programs: make the files where they
are used, and do not pass them on.
"""

from __future__ import annotations

import argparse
import gettext
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

# Printf and brace arguments, markup and shortcuts say nothing about a language.
CODE = re.compile(r"%[-+ #0-9.*$]*[a-zA-Z]|%\([^)]*\)[a-z]|\{[^}]*\}|<[^>]*>|\\[a-z]|\$\w+|https?://")
SHARES = {"test": 5, "valid": 5}


def catalogues(folders: list[Path], language: str) -> Iterator[Path]:
    """Compiled catalogues of a language, in the order of their paths."""
    for folder in folders:
        yield from sorted(folder.rglob(f"{language}/LC_MESSAGES/*.mo"))


def messages(path: Path) -> Iterator[tuple[str, str]]:
    """Messages and translations of a catalogue; plural forms and contexts are left out."""
    try:
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)
    except (OSError, UnicodeDecodeError, ValueError, LookupError):
        return
    # The standard library has no public way to list a catalogue.
    for source, target in catalogue._catalog.items():  # type: ignore[attr-defined]
        if isinstance(source, str) and isinstance(target, str) and "\x04" not in source:
            yield clean(source), clean(target)


def clean(text: str) -> str:
    """One line, without the marks of keyboard shortcuts."""
    return " ".join(text.replace("_", "").replace("&", "").split())


def usable(source: str, target: str, least: int, most: int) -> bool:
    """Sentences of some words on both sides, of about the same length, without code."""
    if CODE.search(source) or CODE.search(target) or source == target:
        return False
    words, others = len(source.split()), len(target.split())
    return (
        least <= words <= most and 1 <= others <= most and others <= 2 * words + 2 and words <= 2 * others + 2
    )


def split_of(source: str) -> str:
    """The split of a source string, by its hash."""
    place = int(hashlib.sha256(source.lower().encode()).hexdigest(), 16) % 100
    for name, share in SHARES.items():
        if place < share:
            return name
        place -= share
    return "train"


def main() -> None:
    """Read the catalogues, write the splits, say how many rows each has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", type=Path, nargs="+", help="where .../LANGUAGE/LC_MESSAGES/*.mo lie")
    parser.add_argument("--language", default="de")
    parser.add_argument("--least-words", type=int, default=3)
    parser.add_argument("--most-words", type=int, default=30)
    arguments = parser.parse_args()
    pairs: dict[str, tuple[str, str]] = {}
    for path in catalogues(arguments.folders, arguments.language):
        for source, target in messages(path):
            if usable(source, target, arguments.least_words, arguments.most_words):
                # Of several translations the first catalogue's, whatever upper case the others have.
                pairs.setdefault(source.lower(), (source, target))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in ("train", "valid", "test"):
        rows = [pair for pair in pairs.values() if split_of(pair[0]) == name]
        with (arguments.out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for i, (source, target) in enumerate(rows, 1):
                row = {"id": f"{name}-{i}", "source": source, "target": target}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"{name}: {len(rows)} pairs")


if __name__ == "__main__":
    main()
