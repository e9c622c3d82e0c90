"""What may be read: regular files of UTF-8 text."""

import os

import pytest

from petkit.data.config import DataConfig
from petkit.data.files import placed_lines, read_text, refuse_special, refuse_url
from petkit.data.images import FileImages, read_image
from petkit.data.jsonl import read_rows
from petkit.data.listings import list_vtab
from petkit.data.loading import list_data
from petkit.errors import InputError

SPECIAL = "must be a regular file, got a folder, pipe or device"


@pytest.fixture
def pipe(tmp_path):
    """A named pipe that nobody writes to: whoever opens it waits."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_text_is_read_and_its_faults_are_named(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("grün\n".encode())
    assert read_text(file) == "grün\n"
    file.write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"a\.txt cannot be read as UTF-8 text: 'utf-8' codec"):
        read_text(file)
    with pytest.raises(InputError, match=r"b\.txt is missing: expected a file of UTF-8 text$"):
        read_text(tmp_path / "b.txt")


def test_a_pipe_and_a_folder_are_refused_and_a_missing_file_is_left_alone(pipe, tmp_path):
    for path in (pipe, tmp_path):
        with pytest.raises(InputError, match=f"^{path} {SPECIAL}$"):
            refuse_special(path)
    refuse_special(tmp_path / "missing")


def test_a_link_counts_as_what_it_leads_to(pipe, tmp_path):
    (tmp_path / "link").symlink_to(pipe)
    with pytest.raises(InputError, match=SPECIAL):
        refuse_special(tmp_path / "link")
    (tmp_path / "file").write_text("x")
    (tmp_path / "good").symlink_to(tmp_path / "file")
    refuse_special(tmp_path / "good")


def test_nobody_waits_for_a_pipe(pipe, tmp_path, preprocess):
    with pytest.raises(InputError, match=f"pipe is not a readable image .*{SPECIAL}"):
        read_image(FileImages((pipe,)), 0, preprocess)
    with pytest.raises(InputError, match=SPECIAL):
        read_rows(pipe, dict)
    (tmp_path / "train800.txt").symlink_to(pipe)
    with pytest.raises(InputError, match=SPECIAL):
        list_vtab(tmp_path, ["train"])


def test_a_pipe_in_a_list_file_is_refused(pipe, tmp_path, preprocess):
    (tmp_path / "test.txt").write_text("pipe 0\n")
    config = DataConfig(format="vtab", path=str(tmp_path))
    splits = list_data(config, "image_classification", splits=("test",))(preprocess, None)
    with pytest.raises(InputError, match=SPECIAL):
        splits.test[0]


def test_only_line_ends_end_a_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\u2028still\r\n \n\nfour".encode())
    assert list(placed_lines(tmp_path / "a.txt")) == [
        (f"{tmp_path / 'a.txt'}:1", "one\u2028still"),
        (f"{tmp_path / 'a.txt'}:4", "four"),
    ]


@pytest.mark.parametrize("name", ["https://x.org/a.png", "S3://bucket/a.png", "data:image/png;base64,iVBO"])
def test_addresses_are_refused_and_not_taken_for_files(name):
    with pytest.raises(InputError) as caught:
        refuse_url(name, "image")
    assert str(caught.value) == (
        f"image {name} is a URL, and URLs are not fetched: download it and name the file"
    )


def test_file_names_that_look_a_little_like_addresses_pass():
    for name in ("a:b.png", "http:/a.png", "database/a.png", "C:\\a.png", "x/http://y"):
        refuse_url(name, "image")


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ntwo")
    assert read_text(tmp_path / "a.txt") == "one\ntwo"
