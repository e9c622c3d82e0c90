import logging

import pytest
from PIL import Image

from petkit.errors import InputError
from petkit.serving.samples import read_samples

IMAGES, TEXTS, CHATS = "image_classification", "text_classification", "causal_lm"


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "deep/c.png"):
        Image.new("RGB", (4, 4)).save(folder / name, format="PNG")
    (folder / "notes.txt").write_text("no picture")
    return folder


def jsonl(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_folders_are_searched_in_order(pictures):
    found = [sample.image.name for sample in read_samples([str(pictures)], IMAGES)]
    assert found == ["a.JPG", "b.png", "c.png"]
    one = read_samples([str(pictures / "b.png")], IMAGES)[0]
    assert one.name == str(pictures / "b.png")


def test_texts_come_from_the_line_a_file_or_rows(tmp_path):
    (tmp_path / "t.txt").write_text("one\n\ntwo\n")
    rows = jsonl(tmp_path / "r.jsonl", '{"text": "three", "label": "x"}')
    samples = read_samples(["zero words", str(tmp_path / "t.txt"), rows], TEXTS)
    assert [sample.text for sample in samples] == ["zero words", "one", "two", "three"]
    assert samples[2].name == f"{tmp_path / 't.txt'}:3"


def test_conversations_are_for_language_models(tmp_path):
    rows = jsonl(tmp_path / "r.jsonl", '{"messages": [{"role": "user", "content": "hi"}]}')
    assert read_samples([rows], CHATS)[0].messages == ({"role": "user", "content": "hi"},)
    with pytest.raises(InputError, match=r"r\.jsonl:1: text must be a string"):
        read_samples([rows], TEXTS)


def test_rows_name_their_adapter_and_paths_are_relative_to_the_file(pictures):
    rows = jsonl(pictures / "r.jsonl", '{"image": "b.png", "adapter": "x"}')
    (sample,) = read_samples([rows], IMAGES, lambda name: None)
    assert (sample.adapter, sample.image, sample.name) == ("x", pictures / "b.png", "b.png")


def test_faulty_rows_are_left_out_on_request(tmp_path, caplog):
    rows = jsonl(tmp_path / "r.jsonl", '{"text": ""}', '{"text": "fine"}')
    with caplog.at_level(logging.WARNING):
        assert [sample.text for sample in read_samples([rows], TEXTS, skip_bad=True)] == ["fine"]
    assert "r.jsonl:1: text must be a string that is not empty" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":1: "),
        ('{"image": 3, "adapter": "x"}', ":1: image must be a string that is not empty, got 3"),
        ('{"image": "a.png"}', ":1: adapter must be the name of an adapter in the bank, got None"),
        ('{"image": "a.png", "adapter": "y"}', ":1: y is not here; repair the line or pass --skip-bad"),
    ],
)
def test_faulty_rows_are_named_by_line(tmp_path, line, message):
    rows = jsonl(tmp_path / "r.jsonl", line)
    with pytest.raises(InputError, match=message):
        read_samples([rows], IMAGES, lambda name: None if name == "x" else f"{name} is not here")


def test_every_faulty_row_is_named_at_once(tmp_path):
    rows = jsonl(tmp_path / "r.jsonl", *['{"image": "a.png", "adapter": "y"}', "{}"] * 11)
    with pytest.raises(InputError) as caught:
        read_samples([rows], IMAGES, lambda name: f"{name} is not here")
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[0] == f"{rows}:1: y is not here"
    assert lines[1] == f"{rows}:2: adapter must be the name of an adapter in the bank, got None"
    assert lines[20] == "and 2 more; repair the 22 lines or pass --skip-bad"


def test_an_adapter_without_a_bank_is_refused(tmp_path):
    rows = jsonl(tmp_path / "r.jsonl", '{"text": "x", "adapter": "a"}')
    with pytest.raises(InputError, match="adapter has an effect with --bank only"):
        read_samples([rows], TEXTS)


@pytest.mark.parametrize("messages", ["[]", '"hi"', '[{"role": "user"}]', "[3]"])
def test_faulty_conversations_are_refused(tmp_path, messages):
    rows = jsonl(tmp_path / "r.jsonl", f'{{"messages": {messages}}}')
    with pytest.raises(
        InputError, match="messages must be a list of objects with the strings role and content"
    ):
        read_samples([rows], CHATS)


def test_refusals(tmp_path, pictures):
    with pytest.raises(InputError, match=r"must be a picture, a folder or a \.jsonl file, got no such file"):
        read_samples([str(tmp_path / "x.png")], IMAGES)
    with pytest.raises(InputError, match="must be a JSONL file, got no such file"):
        read_samples([str(tmp_path / "x.jsonl")], IMAGES)
    with pytest.raises(InputError, match="cannot be read as UTF-8 text"):
        read_samples([str(tmp_path / "x.txt")], TEXTS)
    with pytest.raises(InputError, match="whose rows name their adapter"):
        read_samples([str(pictures)], IMAGES, lambda name: None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no picture"):
        read_samples([str(tmp_path / "empty")], IMAGES)
    with pytest.raises(InputError, match="at least one input is needed"):
        read_samples([jsonl(tmp_path / "none.jsonl", "")], IMAGES)
