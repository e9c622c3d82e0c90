import pytest

from petkit.artifacts.paths import check_name, check_relative, looks_like_pickle, open_inside
from petkit.errors import InputError, SafetyError


@pytest.mark.parametrize("name", ["a", "blocks.0.down", "A-b_c.9", "x" * 128, "...", ".hidden"])
def test_plain_names(name):
    assert check_name(name, "a name") == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a b", "a\n", "a\0", "é", "x" * 129, "C:"])
def test_names_that_are_not_plain(name):
    with pytest.raises(SafetyError, match="a name must match"):
        check_name(name, "a name")


@pytest.mark.parametrize("name", ["/a", "a/", "a/../b", "./a", "a//b", ""])
def test_relative_paths_that_lead_elsewhere(name):
    with pytest.raises(SafetyError, match="must match"):
        check_relative(name)


def test_a_linked_folder_inside_is_followed_only_inside(tmp_path):
    folder = tmp_path / "a"
    (folder / "real").mkdir(parents=True)
    (folder / "real" / "x").write_bytes(b"1")
    (folder / "inside").symlink_to("real")
    with open_inside(folder, "inside/x") as file:
        assert file.read() == b"1"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_bytes(b"2")
    (folder / "outside").symlink_to(tmp_path / "out")
    with pytest.raises(SafetyError, match="leaves the artifact folder"):
        open_inside(folder, "outside/x")


def test_links_of_the_hubs_cache_are_followed_to_its_blobs_alone(tmp_path):
    own, other = tmp_path / "models--a--b", tmp_path / "models--c--d"
    folder = own / "snapshots" / "0123"
    folder.mkdir(parents=True)
    for repository, content in ((own, b"1"), (other, b"2")):
        (repository / "blobs").mkdir(parents=True)
        (repository / "blobs" / "abc").write_bytes(content)
    (own / "secret").write_bytes(b"3")
    (folder / "model.safetensors").symlink_to("../../blobs/abc")
    with open_inside(folder, "model.safetensors") as file:
        assert file.read() == b"1"
    for name, target in (("x", "../../../models--c--d/blobs/abc"), ("y", "../../secret")):
        (folder / name).symlink_to(target)
        with pytest.raises(SafetyError, match="leaves the artifact folder"):
            open_inside(folder, name)


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_inside(tmp_path, "none")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="must be a regular file"):
        open_inside(tmp_path, "folder")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot read .*: Not a directory"):
        open_inside(tmp_path, "file/x")


@pytest.mark.parametrize(
    ("head", "last", "pickle"),
    [
        (b"PK\x03\x04 zip", b"\0", True),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02", b"\0", True),
        (b"\x80\x04\x95", b".", True),
        (b"\x80\x04\x95", b"\0", False),
        (b"\x80\x06", b".", False),
        (b"", b".", False),
        (b"{", b".", False),
    ],
)
def test_pickles_are_recognised(head, last, pickle):
    assert looks_like_pickle(head, last) is pickle
