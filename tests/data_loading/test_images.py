"""Pixels: decoding, resizing, normalising, caching, unreadable files."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from petkit.data.config import DataConfig
from petkit.data.images import (
    ArrayImages,
    FileImages,
    ImageDataset,
    JoinedImages,
    effective_preprocess,
    normalize,
    with_preprocess,
)
from petkit.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)


@pytest.fixture
def dataset(preprocess):
    return ImageDataset(ArrayImages(PIXELS), [2, 0, 1], preprocess)


def test_normalisation_against_numpy():
    pixels = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4])
    expected = ((PIXELS / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(
        normalize(pixels, mean.tolist(), std.tolist()).numpy(), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_images_are_resized_to_a_square_like_torchvision_does(preprocess, name):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize, to_tensor

    dataset = ImageDataset(ArrayImages(PIXELS), [0, 0, 0], preprocess | {"interpolation": name})
    expected = resize(Image.fromarray(PIXELS[1]), [8, 8], InterpolationMode(name))
    assert torch.equal(dataset[1]["pixel_values"].float() / 255, to_tensor(expected))


def test_batches(dataset, preprocess):
    batch = dataset.collate([dataset[2], dataset[0]])
    assert batch["labels"].tolist() == [1, 2]
    expected = normalize(dataset[2]["pixel_values"], preprocess["mean"], preprocess["std"])
    assert torch.equal(batch["pixel_values"][0], expected)
    with pytest.raises(InputError, match="at least one image"):
        dataset.collate([])


def test_each_image_is_decoded_once(tmp_path, preprocess):
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS[0]).save(path)
    dataset = ImageDataset(FileImages((path,)), [0], preprocess)
    part = dataset.select([0])
    first = dataset[0]["pixel_values"]
    path.unlink()
    assert torch.equal(dataset[0]["pixel_values"], first)
    assert torch.equal(part[0]["pixel_values"], first)


def test_a_set_prepared_for_another_model_has_the_same_examples(dataset, preprocess):
    chosen = dataset.select([2, 0])
    other = chosen.prepared({**preprocess, "image_size": 7, "mean": [0.0] * 3, "std": [1.0] * 3})
    assert (other.rows, other.labels) == (chosen.rows, chosen.labels)
    batch = other.collate([other[0], other[1]])["pixel_values"]
    assert batch.shape == (2, 3, 7, 7)
    assert 0 <= batch.min() <= batch.max() <= 1
    # Neither a size nor a decoded picture is mixed up with the first set's.
    size = preprocess["image_size"]
    assert chosen[0]["pixel_values"].shape == (3, size, size)
    same = chosen.prepared({**preprocess, "mean": [0.0] * 3})
    assert torch.equal(same[0]["pixel_values"], chosen[0]["pixel_values"])


def test_large_sets_are_not_kept(tmp_path, preprocess, monkeypatch):
    monkeypatch.setattr("petkit.data.images.CACHE_BYTES", 8 * 8 * 3 * 2)
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS[0]).save(path)
    dataset = ImageDataset(FileImages((path,) * 3), [0] * 3, preprocess)
    dataset[0]
    path.unlink()
    with pytest.raises(InputError, match=r"image\.png is not a readable image"):
        dataset[0]


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_unreadable_files_are_named_and_left_out_on_request(tmp_path, preprocess, content, caplog):
    Image.fromarray(PIXELS[0]).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(whole[: len(whole) // 2] if content is None else content)
    names = ("good.png", "bad.png", "missing.png")
    dataset = ImageDataset(FileImages(tuple(tmp_path / name for name in names)), [5, 6, 7], preprocess)
    with pytest.raises(InputError, match=r"bad\.png is not a readable image .*data\.skip_bad"):
        dataset[1]
    # The others are named too, so that one look mends them all.
    with pytest.raises(InputError, match=r"(?s)bad\.png is not .*\n.*missing\.png is not a readable image"):
        dataset[1]
    with caplog.at_level(logging.WARNING):
        readable = dataset.readable()
    assert (readable.labels, readable.rows) == ([5], [0])
    assert "bad.png" in caplog.text
    assert "missing.png" in caplog.text
    assert "data.skip_bad" not in caplog.text
    assert "2 of 3 images are unreadable" in caplog.text


def test_joined_sources_number_on():
    joined = JoinedImages((ArrayImages(PIXELS[:1], "a"), ArrayImages(PIXELS[1:], "b")))
    assert len(joined) == 3
    assert joined.name(2) == "b[1]"
    assert np.array_equal(np.asarray(joined.load(2)), PIXELS[2])


def test_the_data_section_decides_on_normalisation(preprocess):
    plain = effective_preprocess(preprocess, DataConfig(normalize="none"))
    assert plain == {"image_size": 8, "mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bicubic"}
    model = effective_preprocess(preprocess, DataConfig(interpolation="bilinear"))
    assert model == preprocess


def test_an_artifacts_record_is_repeated_exactly(preprocess):
    recorded = effective_preprocess(preprocess, DataConfig(normalize="none", interpolation="bilinear"))
    again = with_preprocess(DataConfig(), recorded)
    assert effective_preprocess(recorded, again) == recorded
