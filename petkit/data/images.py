"""Images as map-style data sets: decoded and resized once, normalised a batch at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from petkit.data.config import DataConfig
from petkit.data.files import refuse_special
from petkit.errors import InputError

log = logging.getLogger(__name__)

# Resized pixels of a split are kept when they take no more than this: later epochs then decode nothing.
CACHE_BYTES = 512 * 2**20
# How long, and how many, other unreadable pictures are looked for when one is met.
SECONDS_FOR_FAULTS = 10.0
MOST_FAULTS = 20
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class ImageSource(Protocol):
    """Where pictures come from: numbered, named for messages, decoded on demand."""

    def __len__(self) -> int:
        """How many pictures there are."""

    def name(self, index: int) -> str:
        """What to call a picture in a message."""

    def load(self, index: int) -> Image.Image:
        """Decode a picture; raises what the decoder raises."""


@dataclass(frozen=True)
class FileImages:
    """Pictures in files, decoded to RGB."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.paths[index])

    def load(self, index: int) -> Image.Image:
        """Decode one file."""
        refuse_special(self.paths[index])
        with Image.open(self.paths[index]) as image:
            return image.convert("RGB")


@dataclass(frozen=True)
class ArrayImages:
    """Pictures in one array, grey (count, height, width) or colour (count, height, width, 3), uint8."""

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    label: str = "image"

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        """The set's name and the number."""
        return f"{self.label}[{index}]"

    def load(self, index: int) -> Image.Image:
        """Make an RGB picture of one entry."""
        return Image.fromarray(self.pixels[index]).convert("RGB")


@dataclass(frozen=True)
class JoinedImages:
    """Several sources, one after another."""

    parts: tuple[ImageSource, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def name(self, index: int) -> str:
        """The name within the source that holds the picture."""
        part, inner = self._locate(index)
        return part.name(inner)

    def load(self, index: int) -> Image.Image:
        """Decode from the source that holds the picture."""
        part, inner = self._locate(index)
        return part.load(inner)

    def _locate(self, index: int) -> tuple[ImageSource, int]:
        for part in self.parts:
            if index < len(part):
                return part, index
            index -= len(part)
        raise IndexError(index)


def read_image(source: ImageSource, index: int, preprocess: Mapping[str, Any]) -> Tensor:
    """Decode one picture and resize it to a square, without cropping.

    Args:
        source: Pictures.
        index: Number of the picture.
        preprocess: `image_size` in pixels and `interpolation`, bicubic or bilinear.

    Returns:
        Pixels uint8 (3, image_size, image_size).

    Raises:
        InputError: The picture cannot be decoded; the message names it.
    """
    size = preprocess["image_size"]
    try:
        image = source.load(index).resize((size, size), FILTERS[preprocess["interpolation"]])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{source.name(index)} is not a readable image ({reason}); repair it or set data.skip_bad"
        ) from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale pixels to [0, 1], subtract the mean and divide by the standard deviation.

    Args:
        pixels: uint8 (..., 3, height, width).
        mean, std: Three numbers each, in units of [0, 1].

    Returns:
        float32 of the same shape.
    """
    shape = (3, 1, 1)
    return (pixels.float() / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


class ImageDataset:
    """A map-style set of `{"pixel_values": uint8 (3, size, size), "labels": int}`; `collate` normalises.

    Args:
        source: Pictures.
        labels: One class number per picture.
        preprocess: image_size, mean, std and interpolation.
    """

    def __init__(self, source: ImageSource, labels: Sequence[int], preprocess: Mapping[str, Any]) -> None:
        self.source, self.labels, self.preprocess = source, list(labels), dict(preprocess)
        self.rows = list(range(len(source)))
        self._cache: dict[int, Tensor] = {}
        self._cached = len(source) * 3 * self.preprocess["image_size"] ** 2 <= CACHE_BYTES

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        try:
            return {"pixel_values": self._pixels(row), "labels": self.labels[index]}
        except InputError as error:
            raise InputError("\n".join([str(error), *self._more_faults(row)])) from error

    def _pixels(self, row: int) -> Tensor:
        pixels = self._cache.get(row)
        if pixels is None:
            pixels = read_image(self.source, row, self.preprocess)
            if self._cached:
                self._cache[row] = pixels
        return pixels

    def _more_faults(self, known: int) -> list[str]:
        """The other pictures that cannot be decoded, as far as some seconds of looking find them."""
        end = time.monotonic() + SECONDS_FOR_FAULTS
        faults: list[str] = []
        for row in self.rows:
            if time.monotonic() > end or len(faults) == MOST_FAULTS:
                break
            try:
                if row != known:
                    self._pixels(row)
            except InputError as error:
                faults.append(str(error))
        return faults

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a batch: pixel_values float32 (batch, 3, size, size) and labels int64 (batch,).

        Raises:
            InputError: The batch is empty.
        """
        if not examples:
            raise InputError("a batch needs at least one image, got none")
        pixels = torch.stack([example["pixel_values"] for example in examples])
        return {
            "pixel_values": normalize(pixels, self.preprocess["mean"], self.preprocess["std"]),
            "labels": torch.tensor([example["labels"] for example in examples], dtype=torch.int64),
        }

    def select(self, indices: Sequence[int]) -> ImageDataset:
        """The examples at the given positions, in that order; decoded pixels are shared with this set."""
        chosen = ImageDataset.__new__(ImageDataset)
        chosen.__dict__.update(self.__dict__)
        chosen.rows = [self.rows[index] for index in indices]
        chosen.labels = [self.labels[index] for index in indices]
        return chosen

    def prepared(self, preprocess: Mapping[str, Any]) -> ImageDataset:
        """The same examples in the same order, prepared for another model.

        Args:
            preprocess: image_size, mean, std and interpolation of that model. Pictures are decoded anew and
                resized to its size, so that nothing is lost to the size of this set; they are not kept.
        """
        other = self.select(range(len(self)))
        other.preprocess = dict(preprocess)
        if any(self.preprocess[key] != preprocess[key] for key in ("image_size", "interpolation")):
            other._cache, other._cached = {}, False
        return other

    def readable(self) -> ImageDataset:
        """The examples that can be decoded; each other one is named in the log, and their number."""
        good = [index for index in range(len(self)) if self._is_readable(index)]
        if len(good) < len(self):
            log.warning("%d of %d images are unreadable and left out", len(self) - len(good), len(self))
        return self.select(good)

    def _is_readable(self, index: int) -> bool:
        try:
            self._pixels(self.rows[index])
        except InputError as error:
            # What to do about it was done: the picture is left out.
            log.warning("left out: %s", str(error).rpartition("; ")[0])
            return False
        return True


def effective_preprocess(preprocess: Mapping[str, Any], config: DataConfig) -> dict[str, Any]:
    """What is done to pixels after the data section has had its say: what the artifact records.

    Args:
        preprocess: The model's image_size, mean, std and interpolation.
        config: `normalize` and `interpolation` of the data section.

    Returns:
        The same four keys.
    """
    plain = config.normalize == "none"
    return {
        "image_size": int(preprocess["image_size"]),
        "mean": [0.0] * 3 if plain else [float(value) for value in preprocess["mean"]],
        "std": [1.0] * 3 if plain else [float(value) for value in preprocess["std"]],
        "interpolation": config.interpolation,
    }


def with_preprocess(config: DataConfig, preprocess: Mapping[str, Any]) -> DataConfig:
    """A data section that treats pixels as an artifact's record says, whatever it said before.

    Args:
        config: The data section of an evaluation.
        preprocess: The artifact's image_size, mean, std and interpolation.

    Returns:
        A copy with `normalize` and `interpolation` set.
    """
    return config.model_copy(update={"normalize": "model", "interpolation": preprocess["interpolation"]})
