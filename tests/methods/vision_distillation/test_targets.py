"""The teacher sees each picture as it was trained to, whatever the student sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from petkit.data.images import ArrayImages, ImageDataset
from petkit.data.loading import load_data
from petkit.methods.vision_distillation.config import VisionDistillationConfig
from petkit.methods.vision_distillation.targets import Targets, TaughtDataset, ask
from petkit.methods.vision_distillation.teacher import Teacher, load_teacher
from petkit.models.loading import load_adapted
from tests.methods.vision_distillation import tiny

CPU = torch.device("cpu")
STUDENT = {"image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}


@pytest.fixture
def pictures() -> ImageDataset:
    config = VisionDistillationConfig.model_validate(tiny.content(Path("x"), "y"))
    splits = load_data(config.data, "image_classification", STUDENT)
    assert isinstance(splits.test, ImageDataset)
    return splits.test


class Seen(torch.nn.Module):
    """Remembers what it was shown, and answers with the mean of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.shown = torch.nn.Identity(), []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.shown.append(pixels)
        return self.last(pixels.mean((2, 3)))


@pytest.mark.parametrize("size", [16, 32, 50])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_teacher_sees_its_own_size_and_mean(size: int, interpolation: str) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    dataset = ImageDataset(ArrayImages(pixels), [0, 1, 2, 3, 4], STUDENT).select([4, 0, 2])
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    own = {"image_size": size, "mean": mean, "std": std, "interpolation": interpolation}
    model = Seen()
    teacher = Teacher("t", "0", model, (model.last,), own, True, 3)
    targets = ask(teacher, dataset, CPU, features=True, batch_size=2)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    for place, row in enumerate((4, 0, 2)):
        resized = np.array(Image.fromarray(pixels[row]).resize((size, size), filters[interpolation]))
        expected = (resized.transpose(2, 0, 1) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(
            std, (3, 1, 1)
        )
        shown = torch.cat(model.shown)[place].double().numpy()
        np.testing.assert_allclose(shown, expected, atol=1e-5)
        np.testing.assert_allclose(targets.features[place], expected.mean((1, 2)), atol=1e-4)
    # The student's view is untouched.
    assert dataset[0]["pixel_values"].shape == (3, 32, 32)
    assert dataset.preprocess == STUDENT


def test_the_answers_are_those_of_the_artifact_on_its_own_data(teacher: str, pictures: ImageDataset) -> None:
    config = VisionDistillationConfig.model_validate(tiny.content(Path("x"), teacher))
    loaded = load_teacher(config, tiny.CLASSES, CPU)
    done: list[int] = []
    targets = ask(loaded, pictures, CPU, features=True, batch_size=8, advance=done.append)
    assert done == [8, 2]
    adapted = load_adapted(teacher)
    own = load_data(config.data, "image_classification", adapted.preprocess).test
    assert isinstance(own, ImageDataset)
    shown = ImageDataset(own.source, own.labels, adapted.preprocess).select(range(len(own)))
    shown.rows = own.rows
    with torch.no_grad():
        expected = adapted.model(shown.collate([shown[index] for index in range(10)])["pixel_values"])
    torch.testing.assert_close(targets.logits, expected, rtol=1e-4, atol=1e-4)
    assert targets.features.shape == (10, 64)
    assert ask(loaded, pictures, CPU, features=False, batch_size=8).features is None


def test_a_batch_has_the_answers_to_its_own_examples(pictures: ImageDataset) -> None:
    targets = Targets(torch.arange(10.0)[:, None], 10 + torch.arange(10.0)[:, None])
    taught = TaughtDataset(pictures, targets)
    batch = taught.collate([taught[7], taught[0]])
    assert batch["teacher_logits"].tolist() == [[7.0], [0.0]]
    assert batch["teacher_features"].tolist() == [[17.0], [10.0]]
    assert torch.equal(batch["pixel_values"][1], pictures.collate([pictures[0]])["pixel_values"][0])
    assert batch["labels"].tolist() == [pictures.labels[7], pictures.labels[0]]
    assert "index" not in batch
    chosen = taught.select([5, 6])
    assert (len(chosen), len(taught), chosen.rows) == (2, 10, pictures.rows[5:7])
    assert chosen.collate([chosen[1]])["teacher_logits"].tolist() == [[6.0]]
    assert "teacher_features" not in TaughtDataset(pictures, Targets(targets.logits, None)).collate(
        [taught[0]]
    )
