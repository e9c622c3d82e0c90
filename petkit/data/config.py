"""The `data:` section of a recipe. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from petkit.configuration import Config, applies_to


class DataConfig(Config):
    """Where the examples are and how they become tensors."""

    format: Literal["sample", "vtab", "image_folder", "text", "chat"] = "sample"
    """sample: a set inside the package; vtab: list files train800.txt, val200.txt, train800val200.txt
    and test.txt;
    image_folder: split/class/file; text: JSONL of {text, label}; chat: JSONL of {messages}."""

    path: str | None = Field(
        default=None, json_schema_extra=applies_to(format=("vtab", "image_folder", "text", "chat"))
    )
    """Folder (vtab, image_folder) or folder of train.jsonl, validation.jsonl, test.jsonl (text, chat)."""

    sample: str = Field(default="fashion-mnist-1k", json_schema_extra=applies_to(format=("sample",)))
    """Name of the embedded set."""

    train_size: int | None = Field(default=None, ge=1)
    """Use this many training examples (the first of a seeded, class-balanced order)."""

    test_size: int | None = Field(default=None, ge=1)
    """Use this many test examples, chosen likewise."""

    normalize: Literal["model", "none"] = Field(
        default="model", json_schema_extra=applies_to(format=("sample", "vtab", "image_folder"))
    )
    """model: the backbone's mean and standard deviation; none: plain [0, 1] pixels, as in the paper."""

    interpolation: Literal["bicubic", "bilinear"] = Field(
        default="bicubic", json_schema_extra=applies_to(format=("sample", "vtab", "image_folder"))
    )
    """Resampling filter of the resize."""

    max_length: int = Field(default=512, ge=1, json_schema_extra=applies_to(format=("text", "chat")))
    """Longest sequence in tokens, at most what the model takes; longer ones are cut and counted."""

    allow_unseen_classes: bool = Field(
        default=False,
        json_schema_extra=applies_to(format=("vtab", "image_folder", "text")),
    )
    """Accept test examples of a class that training never saw (VTAB's sun397 has some)."""

    skip_bad: bool = False
    """Leave out unreadable images and faulty lines, each named in the log, instead of stopping there."""

    workers: int = Field(default=0, ge=0)
    """Loader processes; 0 loads in the training process."""
