"""From the data section to splits, over every format, and what is refused."""

import logging

import pytest
import torch

from petkit.data.config import DataConfig
from petkit.data.loading import list_data, load_data
from petkit.errors import ConfigError, InputError
from tests.data_loading.conftest import CHATML

IMAGES = "image_classification"
TALK = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def load(config, task=IMAGES, **options):
    return load_data(DataConfig(**config), task, **options)


def values(dataset):
    """The grey value of every flat image."""
    return [int(dataset[index]["pixel_values"].float().mean().round()) for index in range(len(dataset))]


def test_vtab(vtab, preprocess):
    splits = load({"format": "vtab", "path": str(vtab)}, preprocess=preprocess)
    assert splits.classes == ("0", "1", "2")
    assert values(splits.train) == list(range(1, 10))
    assert values(splits.validation) == [10, 11, 12]
    assert values(splits.everything) == list(range(1, 13))
    assert values(splits.test) == list(range(13, 19))
    assert splits.everything.labels == [0, 1, 2] * 4
    assert splits.preprocess["interpolation"] == "bicubic"


def test_train_and_validation_share_decoded_images(vtab, preprocess):
    splits = load({"format": "vtab", "path": str(vtab)}, preprocess=preprocess)
    splits.train[2]
    (vtab / "images" / "train800 2.png").unlink()
    splits.everything[2]


def test_image_folders(folders, preprocess):
    splits = load({"format": "image_folder", "path": str(folders)}, preprocess=preprocess)
    assert splits.classes == ("cat", "dog")
    assert splits.train.labels == [0, 0, 0, 1, 1, 1]
    assert values(splits.test) == [20, 21, 10, 11]


def test_a_folder_without_validation(folders, preprocess):
    (folders / "val").rename(folders / "unused")
    splits = load({"format": "image_folder", "path": str(folders)}, preprocess=preprocess)
    assert splits.validation is None
    assert len(splits.everything) == len(splits.train) == 6


def test_sample_and_sizes(preprocess):
    splits = load({"train_size": 40, "test_size": 30}, preprocess=preprocess, seed=1)
    assert [len(part) for part in (splits.train, splits.validation, splits.everything, splits.test)] == [
        40,
        200,
        40,
        30,
    ]
    assert {splits.train.labels.count(label) for label in range(10)} == {4}
    again = load({"train_size": 40}, preprocess=preprocess, seed=1, splits=["train"])
    assert again.train.rows == splits.train.rows
    assert again.test is None
    other = load({"train_size": 40}, preprocess=preprocess, seed=2, splits=["train"])
    assert other.train.rows != splits.train.rows


def test_texts(write_rows, tokenizer):
    rows = [{"text": "good", "label": "yes"}, {"text": "bad!", "label": "no"}]
    folder = write_rows(train=rows, test=rows[:1])
    splits = load({"format": "text", "path": str(folder)}, "text_classification", tokenizer=tokenizer)
    assert splits.classes == ("no", "yes")
    assert splits.train.labels == [1, 0]
    batch = splits.train.collate([splits.train[0], splits.train[1]])
    assert tokenizer.decode(batch["input_ids"][1]) == "bad!"
    assert batch["labels"].tolist() == [1, 0]
    assert batch["attention_mask"].sum(1).tolist() == [4, 4]


def test_numbered_texts_keep_their_numbers(write_rows, tokenizer):
    folder = write_rows(train=[{"text": "a", "label": 0}, {"text": "b", "label": 10}])
    options = {"tokenizer": tokenizer, "splits": ["train"]}
    splits = load({"format": "text", "path": str(folder)}, "text_classification", **options)
    assert len(splits.classes) == 11
    assert splits.train.labels == [0, 10]


def test_chats(write_rows, tokenizer):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    longer = [{"role": "user", "content": "aaa"}, turns[1]]
    folder = write_rows(train=[{"messages": turns}, {"messages": longer}])
    splits = load({"format": "chat", "path": str(folder)}, "causal_lm", tokenizer=tokenizer)
    assert (splits.classes, splits.test) == ((), None)
    batch = splits.train.collate([splits.train[0], splits.train[1]])
    assert batch["input_ids"].shape == batch["labels"].shape
    assert batch["attention_mask"].sum(1).diff().tolist() == [2]
    assert batch["labels"][0, -2:].tolist() == [-100, -100]
    assert (batch["labels"] != -100).sum(1).tolist() == [2, 2]


def test_a_chat_without_an_assistant_names_its_line(write_rows, tokenizer):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    folder = write_rows(train=[{"messages": turns}, {"messages": turns[:1]}])
    with pytest.raises(InputError, match=r"train\.jsonl:2: messages must hold one of role assistant"):
        load({"format": "chat", "path": str(folder)}, "causal_lm", tokenizer=tokenizer)


def test_an_artifacts_classes_hold(folders, preprocess):
    config = {"format": "image_folder", "path": str(folders)}
    options = {"preprocess": preprocess, "splits": ["test"]}
    assert load(config, **options, classes=("dog", "owl", "cat")).test.labels == [2, 2, 0, 0]
    with pytest.raises(InputError, match="class 'dog' of the test split is none of the 2 that were trained"):
        load(config, **options, classes=("owl", "cat"))


def test_a_class_that_training_never_saw(vtab, folders, preprocess):
    (vtab / "test.txt").write_text("images/test 0.png 3\n")
    config = {"format": "vtab", "path": str(vtab)}
    with pytest.raises(InputError, match=r"1 classes of the test split were never seen in training \('3'\)"):
        load(config, preprocess=preprocess)
    allowed = load(config | {"allow_unseen_classes": True}, preprocess=preprocess)
    assert allowed.classes == ("0", "1", "2", "3")
    (folders / "test" / "cat").rename(folders / "test" / "owl")
    config = {"format": "image_folder", "path": str(folders)}
    with pytest.raises(InputError, match="class 'owl' of the test split"):
        load(config, preprocess=preprocess)
    assert load(config | {"allow_unseen_classes": True}, preprocess=preprocess).classes == (
        "cat",
        "dog",
        "owl",
    )


def test_unreadable_images_are_left_out_on_request(vtab, preprocess, caplog):
    (vtab / "images" / "train800 4.png").write_bytes(b"broken")
    config = {"format": "vtab", "path": str(vtab)}
    with pytest.raises(InputError, match=r"train800 4\.png"):
        values(load(config, preprocess=preprocess).train)
    with caplog.at_level(logging.WARNING):
        splits = load(config | {"skip_bad": True}, preprocess=preprocess)
    assert values(splits.train) == [1, 2, 3, 4, 6, 7, 8, 9]
    assert values(splits.validation) == [10, 11, 12]
    assert "train800 4.png" in caplog.text


def test_malformed_lines_of_list_files_are_left_out_on_request(vtab, preprocess, caplog):
    (vtab / "test.txt").write_text("images/test 0.png 0\nimages/test 1.png one\n")
    config = {"format": "vtab", "path": str(vtab)}
    with pytest.raises(InputError, match=r"test\.txt:2: expected 'relative/path label'"):
        load(config, preprocess=preprocess)
    with caplog.at_level(logging.WARNING):
        assert values(load(config | {"skip_bad": True}, preprocess=preprocess).test) == [13]
    assert "1 of 2 lines are faulty and left out" in caplog.text


def test_half_a_character_names_its_line(write_rows, tokenizer):
    good, bad = {"text": "x", "label": "a"}, '{"text": "\\ud800", "label": "a"}'
    config = {"format": "text", "path": str(write_rows(train=[good, bad], test=[good]))}
    with pytest.raises(InputError, match=r"train\.jsonl:2: text must hold whole characters"):
        load(config, "text_classification", tokenizer=tokenizer)
    splits = load(config | {"skip_bad": True}, "text_classification", tokenizer=tokenizer)
    assert len(splits.train) == 1


def test_nothing_readable_is_an_error(vtab, preprocess):
    for path in vtab.glob("images/test*"):
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match="no readable example is left in the test split"):
        load({"format": "vtab", "path": str(vtab), "skip_bad": True}, preprocess=preprocess)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "test.txt").unlink(), "has no test split"),
        (lambda folder: (folder / "train800.txt").unlink(), "has no train split"),
        (lambda folder: (folder / "val200.txt").write_text("\n"), "the validation split of .* is empty"),
    ],
)
def test_missing_and_empty_splits(vtab, preprocess, break_it, message):
    break_it(vtab)
    with pytest.raises(InputError, match=message):
        load({"format": "vtab", "path": str(vtab)}, preprocess=preprocess)


@pytest.mark.parametrize(
    ("config", "task", "error", "message"),
    [
        ({"format": "chat"}, IMAGES, ConfigError, "must be sample or vtab or image_folder, got 'chat'"),
        ({"format": "vtab"}, IMAGES, ConfigError, r"data\.path is needed for data\.format vtab"),
        ({"format": "vtab", "path": "/no/such"}, IMAGES, InputError, "is not a folder"),
    ],
)
def test_sections_that_cannot_serve(preprocess, config, task, error, message):
    with pytest.raises(error, match=message):
        load(config, task, preprocess=preprocess)


def test_images_need_the_models_preprocessing():
    with pytest.raises(ConfigError, match="need the model's preprocess"):
        load({})


def test_texts_and_chats_need_the_models_tokenizer(write_rows, tokenizer):
    folder = str(
        write_rows(train=[{"text": "good", "label": "yes", **TALK}], test=[{"text": "a", "label": "yes"}])
    )
    with pytest.raises(ConfigError, match="a model with a tokenizer"):
        load({"format": "text", "path": folder}, "text_classification")
    with pytest.raises(InputError, match="has a chat template"):
        load({"format": "chat", "path": folder}, "causal_lm", splits=["train"])


def test_listing_finds_what_needs_no_model(vtab):
    (vtab / "val200.txt").write_text("images/val200 0.png\n")
    with pytest.raises(InputError, match=r"val200\.txt:1: expected 'relative/path label'"):
        list_data(DataConfig(format="vtab", path=str(vtab)), IMAGES)
    (vtab / "val200.txt").unlink()
    (vtab / "test.txt").write_text("images/test 0.png 7\n")
    with pytest.raises(InputError, match=r"never seen in training \('7'\)"):
        list_data(DataConfig(format="vtab", path=str(vtab)), IMAGES)
    (vtab / "test.txt").unlink()
    with pytest.raises(InputError, match="has no test split"):
        list_data(DataConfig(format="vtab", path=str(vtab)), IMAGES)


@pytest.mark.parametrize(
    ("kind", "task", "message"),
    [
        ("text", "text_classification", r"train\.jsonl:1: text must be a string"),
        ("chat", "causal_lm", r"train\.jsonl:2: messages is missing"),
    ],
)
def test_listing_parses_rows_without_a_tokenizer(write_rows, kind, task, message):
    folder = write_rows(train=[TALK, {"text": "good", "label": "yes"}], test=[])
    with pytest.raises(InputError, match=message):
        list_data(DataConfig(format=kind, path=str(folder)), task)


def test_a_listed_file_is_not_read_again(write_rows, tokenizer):
    folder = write_rows(train=[TALK])
    finish = list_data(DataConfig(format="chat", path=str(folder)), "causal_lm")
    (folder / "train.jsonl").unlink()
    assert len(finish(None, tokenizer).train) == 1


def test_an_empty_conversation_and_unused_tools_name_their_line(write_rows, tokenizer):
    bad = [{"messages": []}, TALK | {"tools": "f"}]
    config = {"format": "chat", "path": str(write_rows(train=[TALK, *bad]))}
    with pytest.raises(InputError) as caught:
        load(config, "causal_lm", tokenizer=tokenizer)
    empty, tools, _ = str(caught.value).splitlines()
    assert empty.endswith("train.jsonl:2: messages must be a list that is not empty, got an empty one")
    assert "train.jsonl:3: tools must be a list of JSON schemas" in tools
    config["path"] = str(write_rows(train=[TALK, TALK | {"tools": [{"name": "f"}]}]))
    with pytest.raises(InputError, match=r"train\.jsonl:2: the model's chat template has no place for tools"):
        load(config, "causal_lm", tokenizer=tokenizer)


def test_a_chat_that_the_template_refuses_names_its_line(write_rows, tokenizer, caplog):
    tokenizer.chat_template = "{{ raise_exception('no') if messages[0]['role'] == 'system' }}" + CHATML
    system = {"messages": [{"role": "system", "content": "s"}, *TALK["messages"]]}
    folder = write_rows(train=[TALK, system])
    config = {"format": "chat", "path": str(folder)}
    with pytest.raises(InputError, match=r"train\.jsonl:2: the chat template refuses it: no"):
        load(config, "causal_lm", tokenizer=tokenizer)
    with caplog.at_level(logging.WARNING):
        assert len(load(config | {"skip_bad": True}, "causal_lm", tokenizer=tokenizer).train) == 1
    assert "train.jsonl:2" in caplog.text


def test_a_split_of_which_nothing_is_left_to_learn_is_empty(write_rows, tokenizer):
    folder = write_rows(train=[TALK])
    config = {"format": "chat", "path": str(folder), "max_length": 3}
    with pytest.raises(InputError, match=r"the train split of .* is empty"):
        load(config, "causal_lm", tokenizer=tokenizer)


@pytest.mark.slow
def test_loader_processes_give_the_same_batches(preprocess):
    splits = load({"train_size": 12}, preprocess=preprocess)
    batches = [
        next(
            iter(
                torch.utils.data.DataLoader(
                    splits.train, 12, collate_fn=splits.train.collate, num_workers=workers
                )
            )
        )
        for workers in (0, 2)
    ]
    assert torch.equal(batches[0]["pixel_values"], batches[1]["pixel_values"])
    assert torch.equal(batches[0]["labels"], batches[1]["labels"])
