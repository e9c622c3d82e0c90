"""Make the embedded sample `fashion-mnist-1k` from the four files of Fashion-MNIST.

    python petkit/data/samples/make_fashion_mnist.py FOLDER OUTPUT

FOLDER holds train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and their t10k- counterparts, as the
Debian package `dataset-fashion-mnist` installs them. OUTPUT receives train.png, validation.png and
test.png, each a mosaic of 28 x 28 tiles in row-major order, and labels.json. The choice is seeded and
class-balanced: the same files always come out.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
SIDE = 28
COLUMNS = 40
SEED = 20230716


def main() -> None:
    """Write the three mosaics and their labels."""
    parser = argparse.ArgumentParser(description="Make the embedded sample fashion-mnist-1k.")
    parser.add_argument("folder", type=Path, help="folder of the four .gz files")
    parser.add_argument("output", type=Path, help="folder of the mosaics and labels.json")
    arguments = parser.parse_args()
    random = np.random.default_rng(SEED)
    images, labels = read_split(arguments.folder, "train")
    chosen = balanced_choice(labels, 100, random)
    # 80 of each class train and 20 validate: the layout of VTAB-1K.
    first = np.concatenate([chosen[label::10][:80] for label in range(10)])
    parts = {
        "train": (images, labels, np.sort(first)),
        "validation": (images, labels, np.setdiff1d(chosen, first)),
    }
    images, labels = read_split(arguments.folder, "t10k")
    parts["test"] = (images, labels, np.sort(balanced_choice(labels, 200, random)))
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, (pixels, _, rows) in parts.items():
        mosaic(pixels[rows]).save(arguments.output / f"{name}.png", optimize=True)
    splits = {name: [int(label) for label in targets[rows]] for name, (_, targets, rows) in parts.items()}
    text = json.dumps({"classes": CLASSES, "tile": SIDE, "columns": COLUMNS, "labels": splits}) + "\n"
    (arguments.output / "labels.json").write_text(text)


def read_split(folder: Path, prefix: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read images uint8 (count, 28, 28) and labels uint8 (count,) of one part, `train` or `t10k`."""
    pixels = gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, SIDE, SIDE)
    return images, np.frombuffer(labels, np.uint8, offset=8)


def balanced_choice(
    labels: NDArray[np.uint8], per_class: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Choose rows, interleaved by class: position i holds class i modulo 10."""
    chosen = [random.permutation(np.flatnonzero(labels == label))[:per_class] for label in range(10)]
    return np.stack(chosen, axis=1).reshape(-1)


def mosaic(tiles: NDArray[np.uint8]) -> Image.Image:
    """Lay tiles (count, 28, 28) side by side, `COLUMNS` to a row, the last row filled with black."""
    rows = -(-len(tiles) // COLUMNS)
    filled = np.zeros((rows * COLUMNS, SIDE, SIDE), np.uint8)
    filled[: len(tiles)] = tiles
    grid = filled.reshape(rows, COLUMNS, SIDE, SIDE).swapaxes(1, 2)
    return Image.fromarray(grid.reshape(rows * SIDE, COLUMNS * SIDE))


if __name__ == "__main__":
    main()
