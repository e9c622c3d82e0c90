"""Which images belong to which split and class: list files (VTAB), class folders, the embedded sample."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from petkit.data.files import placed_lines, refuse_url
from petkit.data.images import ArrayImages, FileImages, ImageSource
from petkit.data.jsonl import convert
from petkit.errors import ConfigError, SafetyError

VTAB_LISTS = {"train": "train800.txt", "validation": "val200.txt", "test": "test.txt"}
VTAB_JOINED = "train800val200.txt"
FOLDER_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SAMPLES = {"fashion-mnist-1k": "fashion_mnist_1k"}


@dataclass(frozen=True)
class Listing:
    """The pictures of one split with the class name of each."""

    source: ImageSource
    labels: tuple[str, ...]


def list_vtab(folder: Path, splits: Sequence[str], skip_bad: bool = False) -> dict[str, Listing]:
    """Read VTAB-1K's list files, lines of `relative/path label`.

    Args:
        folder: Data folder with train800.txt, val200.txt, test.txt; a folder that only has
            train800val200.txt has no validation split.
        splits: Splits to read; a missing one is left out.
        skip_bad: Leave malformed lines out, each named in the log.

    Returns:
        Listings by split, in the order of the files, class names being the numbers as text.

    Raises:
        InputError: Lines are malformed; the message names file and line of the first 20. Or a file cannot
            be read.
        SafetyError: A path leaves the folder, also with `skip_bad`.
    """
    files = {split: folder / VTAB_LISTS[split] for split in splits}
    if "train" in files and not files["train"].exists() and (folder / VTAB_JOINED).exists():
        files = {**files, "train": folder / VTAB_JOINED}
        files.pop("validation", None)
    return {split: _read_list(path, folder, skip_bad) for split, path in files.items() if path.exists()}


def _read_list(path: Path, folder: Path, skip_bad: bool) -> Listing:
    root = os.path.realpath(folder)
    rows = [(place, (place, line)) for place, line in placed_lines(path)]
    found = [pair for _, pair in convert(rows, lambda row: _listed(root, *row), skip_bad)]
    return Listing(FileImages(tuple(file for file, _ in found)), tuple(label for _, label in found))


def _listed(root: str, place: str, line: str) -> tuple[Path, str]:
    name, _, label = line.strip().rpartition(" ")
    if not name or not label.isdecimal():
        raise ValueError(f"expected 'relative/path label' with a label of 0 or more, got {line.strip()!r}")
    refuse_url(name, "the picture")
    return _inside(root, name.strip(), place), str(int(label))


def _inside(root: str, name: str, place: str) -> Path:
    resolved = os.path.realpath(os.path.join(root, name))
    if not resolved.startswith(root + os.sep):
        raise SafetyError(f"{place}: {name!r} leaves the data folder; move the file inside it")
    return Path(root, name)


def list_folders(folder: Path, splits: Sequence[str]) -> dict[str, Listing]:
    """List `split/class/file` folders.

    Args:
        folder: Data folder with train, test and perhaps validation (or valid, val).
        splits: Splits to list; a missing one is left out.

    Returns:
        Listings by split, sorted by class and file name.

    Raises:
        SafetyError: A symbolic link leaves the folder.
    """
    listings = {}
    for split in splits:
        present = [folder / name for name in FOLDER_NAMES[split] if (folder / name).is_dir()]
        if present:
            listings[split] = _list_classes(present[0], folder)
    return listings


def _list_classes(split: Path, folder: Path) -> Listing:
    files, labels = [], []
    root = os.path.realpath(folder)
    for directory in sorted(path for path in split.iterdir() if path.is_dir()):
        for path in sorted(directory.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                files.append(_inside(root, str(path.relative_to(folder)), str(split)))
                labels.append(directory.name)
    return Listing(FileImages(tuple(files)), tuple(labels))


def list_sample(name: str, splits: Sequence[str]) -> tuple[dict[str, Listing], tuple[str, ...]]:
    """Read an image set that is part of the package.

    Args:
        name: Name of the set.
        splits: Splits to read.

    Returns:
        Listings by split, and the class names in their own order.

    Raises:
        ConfigError: There is no such set.
    """
    if name not in SAMPLES:
        raise ConfigError(f"data.sample must be one of {', '.join(SAMPLES)}, got {name!r}")
    folder = Path(__file__).parent / "samples" / SAMPLES[name]
    facts = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    classes = tuple(facts["classes"])
    return {split: _read_mosaic(folder, split, name, facts) for split in splits}, classes


def _read_mosaic(folder: Path, split: str, name: str, facts: Mapping[str, list[str]]) -> Listing:
    labels, side = facts["labels"][split], int(facts["tile"])  # type: ignore[call-overload]
    with Image.open(folder / f"{split}.png") as image:
        grid = np.asarray(image)
    rows, columns = grid.shape[0] // side, grid.shape[1] // side
    tiles = grid.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)
    source = ArrayImages(np.ascontiguousarray(tiles[: len(labels)]), f"{name} {split}")
    return Listing(source, tuple(facts["classes"][label] for label in labels))
