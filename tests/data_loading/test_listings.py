"""List files, class folders and the embedded sample."""

import logging

import pytest

from petkit.data.listings import list_folders, list_sample, list_vtab
from petkit.errors import ConfigError, InputError, SafetyError

SPLITS = ("train", "validation", "test")


def test_vtab_lists_keep_their_order(vtab):
    listings = list_vtab(vtab, SPLITS)
    assert [len(listings[split].labels) for split in SPLITS] == [9, 3, 6]
    assert listings["train"].labels[:4] == ("0", "1", "2", "0")
    assert listings["test"].source.name(5) == str(vtab / "images" / "test 5.png")


def test_joined_list_serves_where_the_parts_are_missing(vtab):
    (vtab / "train800.txt").rename(vtab / "train800val200.txt")
    listings = list_vtab(vtab, SPLITS)
    assert set(listings) == {"train", "test"}
    assert len(listings["train"].labels) == 9


@pytest.mark.parametrize(
    "line", ["images/a.png", "images/a.png x", "images/a.png -1", "3", "images/a.png 1.5"]
)
def test_malformed_lines_are_named(vtab, line):
    (vtab / "test.txt").write_text(f"images/test 0.png 0\n\n{line}\n")
    with pytest.raises(InputError, match=r"test\.txt:3: expected 'relative/path label'"):
        list_vtab(vtab, SPLITS)


def test_malformed_lines_are_left_out_on_request(vtab, caplog):
    (vtab / "test.txt").write_text(
        "images/test 0.png 0\nno label\nhttps://x.org/a.png 1\nimages/test 1.png 1\n"
    )
    with caplog.at_level(logging.WARNING):
        listing = list_vtab(vtab, ["test"], skip_bad=True)["test"]
    assert listing.labels == ("0", "1")
    assert listing.source.paths == (vtab / "images/test 0.png", vtab / "images/test 1.png")
    assert f"left out: {vtab}/test.txt:2: expected 'relative/path label'" in caplog.text
    assert "test.txt:3: the picture https://x.org/a.png is a URL, and URLs are not fetched" in caplog.text
    assert "2 of 4 lines are faulty and left out" in caplog.text
    with pytest.raises(InputError, match=r"repair the 2 lines or set data\.skip_bad$"):
        list_vtab(vtab, ["test"])


def test_a_path_that_leaves_the_folder_is_refused_even_so(vtab):
    (vtab / "test.txt").write_text("../outside.png 0\nimages/test 0.png 0\n")
    with pytest.raises(SafetyError, match=r"test\.txt:1: .* leaves the data folder"):
        list_vtab(vtab, ["test"], skip_bad=True)


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "images/../../x.png", "link/x.png"])
def test_paths_stay_inside_the_folder(vtab, name):
    (vtab / "link").symlink_to(vtab.parent)
    (vtab / "train800.txt").write_text(f"{name} 0\n")
    with pytest.raises(SafetyError, match=r"train800\.txt:1: .* leaves the data folder"):
        list_vtab(vtab, SPLITS)


def test_class_folders_are_sorted_and_hold_images_only(folders):
    listings = list_folders(folders, SPLITS)
    assert listings["train"].labels == ("cat",) * 3 + ("dog",) * 3
    assert [listings["train"].source.name(i)[-9:] for i in (0, 5)] == ["cat/0.png", "dog/2.png"]
    assert len(listings["validation"].labels) == 2


def test_links_out_of_class_folders_are_refused(folders):
    outside = folders.parent / "outside.png"
    outside.write_bytes(b"")
    (folders / "train" / "cat" / "link.png").symlink_to(outside)
    with pytest.raises(SafetyError, match="leaves the data folder"):
        list_folders(folders, SPLITS)


def test_sample_is_balanced():
    listings, classes = list_sample("fashion-mnist-1k", SPLITS)
    assert len(classes) == 10
    for split, each in zip(SPLITS, (80, 20, 200), strict=True):
        labels = listings[split].labels
        assert {labels.count(name) for name in classes} == {each}
        assert len(listings[split].source) == len(labels)


def test_sample_tiles_match_their_labels():
    """Trousers are two tall legs: bright in the middle columns, dark at the sides; a bag fills its width."""
    listings, _ = list_sample("fashion-mnist-1k", ["test"])
    pixels, labels = listings["test"].source.pixels, listings["test"].labels
    sides = {
        name: pixels[[index for index, label in enumerate(labels) if label == name]][:, 10:20, :4].mean()
        for name in ("trouser", "bag")
    }
    assert sides["trouser"] < 10 < 50 < sides["bag"]


def test_unknown_sample_is_refused():
    with pytest.raises(ConfigError, match="must be one of fashion-mnist-1k, got 'imagenet'"):
        list_sample("imagenet", SPLITS)
