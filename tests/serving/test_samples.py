import logging
import os

import pytest
from PIL import Image

from petkit.data.chat import Chat
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
    texts = ["zero words", "one", "two", "three"]
    assert [sample.text for sample in samples] == [sample.name for sample in samples] == texts
    text = tmp_path / "t.txt"
    assert [sample.row for sample in samples] == [None, f"{text}:1", f"{text}:3", f"{rows}:1"]


def test_conversations_are_for_language_models(tmp_path):
    rows = jsonl(tmp_path / "r.jsonl", '{"messages": [{"role": "user", "content": "hi"}]}')
    (sample,) = read_samples([rows], CHATS)
    assert sample.chat == Chat(({"role": "user", "content": "hi"},))
    assert (sample.name, sample.row) == ("hi", f"{rows}:1")
    with pytest.raises(InputError, match=r"r\.jsonl:1: text must be a string"):
        read_samples([rows], TEXTS)


def test_rows_name_their_adapter_and_paths_are_relative_to_the_file(pictures):
    rows = jsonl(pictures / "r.jsonl", '{"image": "b.png", "adapter": "x"}')
    (sample,) = read_samples([rows], IMAGES, lambda name: None)
    assert (sample.adapter, sample.image, sample.name) == ("x", pictures / "b.png", "b.png")
    assert sample.row == f"{rows}:1"


def test_rows_may_have_a_name(tmp_path):
    lines = [f'{{"text": "a", "id": {key}}}' for key in ('"q-1"', "7", "0", '""', "null", "[1]", "true")]
    rows = jsonl(tmp_path / "r.jsonl", *lines)
    named = [sample.row for sample in read_samples([rows], TEXTS)]
    assert named == ["q-1", "7", "0", *(f"{rows}:{number}" for number in (4, 5, 6, 7))]


def test_a_conversation_that_ends_without_words_is_called_by_its_place(tmp_path):
    call = '{"role": "assistant", "content": null, "tool_calls": [{}]}'
    rows = jsonl(tmp_path / "r.jsonl", f'{{"messages": [{call}], "tools": "[{{}}]", "id": "x"}}')
    (sample,) = read_samples([rows], CHATS)
    assert (sample.name, sample.row, sample.chat.tools) == (f"{rows}:1", "x", ({},))


def test_faulty_rows_are_left_out_on_request(tmp_path, caplog):
    rows = jsonl(tmp_path / "r.jsonl", '{"text": ""}', '{"text": "fine"}')
    left_out = []
    with caplog.at_level(logging.WARNING):
        found = read_samples([rows], TEXTS, skip_bad=True, left_out=left_out)
    assert [sample.text for sample in found] == ["fine"]
    assert "r.jsonl:1: text must be a string that is not empty" in caplog.text
    reason = "text must be a string that is not empty, got ''"
    assert [one.payload() for one in left_out] == [{"input": f"{rows}:1", "reason": reason}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":1: "),
        ('{"image": 3, "adapter": "x"}', ":1: image must be a string that is not empty, got 3"),
        (
            '{"image": "https://x.org/a.png", "adapter": "x"}',
            ":1: image https://x.org/a.png is a URL, and URLs are not fetched: download it and name the file",
        ),
        ('{"image": "a\\ud800.png", "adapter": "x"}', ":1: image must hold whole characters"),
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


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("[]", "messages must be a list that is not empty, got an empty one"),
        ('"hi"', "messages must be a list of messages, got str"),
        ('[{"role": "user"}]', r"messages\[0\] must have the strings role and content"),
        ("[3]", r"messages\[0\] must have the strings role and content, got 3"),
        ('[{"role": "user", "content": "x"}], "tools": 3', "tools must be a list of JSON schemas"),
    ],
)
def test_faulty_conversations_are_refused(tmp_path, messages, message):
    rows = jsonl(tmp_path / "r.jsonl", f'{{"messages": {messages}}}')
    with pytest.raises(InputError, match=rf"r\.jsonl:1: {message}"):
        read_samples([rows], CHATS)


@pytest.mark.parametrize("text", ["", " \n", "caf\udce9"])
def test_texts_that_are_none_are_refused(text):
    with pytest.raises(InputError) as caught:
        read_samples([text], TEXTS)
    assert str(caught.value) == f"INPUT must be UTF-8 text that is not empty, got {text!r}"


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("p.txt", TEXTS, r"p\.txt must be a regular file, got a folder, pipe or device"),
        ("p.jsonl", TEXTS, r"p\.jsonl must be a JSONL file, got a folder, pipe or device"),
        ("p.png", IMAGES, r"p\.png must be a picture, a folder or .*, got a folder, pipe or device"),
    ],
)
def test_nobody_waits_for_a_pipe(tmp_path, name, task, message):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=message):
        read_samples([str(tmp_path / name)], task)


@pytest.mark.parametrize(("name", "task"), [("a.png", IMAGES), ("a.jsonl", TEXTS), ("a.txt", CHATS)])
def test_addresses_are_refused(name, task):
    with pytest.raises(InputError, match=rf"^INPUT https://x\.org/{name} is a URL, and URLs are not fetched"):
        read_samples([f"https://x.org/{name}"], task)


def test_a_text_about_an_address_is_a_text():
    assert read_samples(["https://x.org"], TEXTS)[0].text == "https://x.org"


def test_refusals(tmp_path, pictures):
    with pytest.raises(InputError, match=r"must be a picture, a folder or a \.jsonl file, got no such file"):
        read_samples([str(tmp_path / "x.png")], IMAGES)
    with pytest.raises(InputError, match="must be a JSONL file, got no such file"):
        read_samples([str(tmp_path / "x.jsonl")], IMAGES)
    with pytest.raises(InputError, match=r"x\.txt is missing"):
        read_samples([str(tmp_path / "x.txt")], TEXTS)
    with pytest.raises(InputError, match="got no such file"):
        read_samples(["x" * 5000], IMAGES)
    with pytest.raises(InputError, match="whose rows name their adapter"):
        read_samples([str(pictures)], IMAGES, lambda name: None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no picture"):
        read_samples([str(tmp_path / "empty")], IMAGES)
    with pytest.raises(InputError, match="at least one input is needed"):
        read_samples([jsonl(tmp_path / "none.jsonl", "")], IMAGES)
