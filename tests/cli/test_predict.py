"""`petkit predict` from its command line: one artifact, a bank, and refusals."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from petkit.models.config import AdapterConfig
from tests.quantization.artifacts import write
from tests.serving.text_models import save_bert, save_llama, write_text

CONFIG = AdapterConfig(bits=1, bottleneck=4, dropout=0.0)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def bank(tmp_path):
    for seed, name in enumerate(("cats", "dogs")):
        write(tmp_path / "bank" / name, CONFIG, seed=seed, classes=2 + seed)
    return tmp_path / "bank"


def rows(path, *items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def test_a_folder_of_pictures(petkit, pictures, bank):
    code, out, _ = petkit("predict", bank / "dogs", pictures, "--top-k", "2")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["input", "class", "probability"]
    assert len(lines) == 2 + 3 * 2
    assert "class-" in lines[2]


def test_settings_are_for_taggers(petkit, pictures, bank):
    for words in ((bank / "dogs", pictures), ("--bank", bank, "rows.jsonl")):
        result = petkit("predict", *words, "--set", "data.word_column=1")
        assert (result.code, result.out) == (2, "")
        assert result.err == "error: --set has no effect, since it is for taggers: leave it out\n"


def test_json_and_jsonl_hold_the_same(petkit, pictures, bank):
    code, out, _ = petkit("predict", bank / "dogs", pictures, "--json")
    whole = json.loads(out)
    assert code == 0
    assert whole["schema_version"] == 1
    assert whole["left_out"] == []
    assert len(whole["predictions"]) == 3
    assert sum(entry["probability"] for entry in whole["predictions"][0]["classes"]) == pytest.approx(1)
    lines = [
        json.loads(line) for line in petkit("predict", bank / "dogs", pictures, "--jsonl").out.splitlines()
    ]
    assert [{key: line[key] for key in ("input", "classes")} for line in lines] == whole["predictions"]
    assert all(line["schema_version"] == 1 for line in lines)


def test_a_bank(petkit, pictures, bank):
    wanted = [("0.png", "dogs"), ("1.png", "cats"), ("2.png", "dogs")]
    inputs = rows(pictures / "in.jsonl", *({"image": image, "adapter": name} for image, name in wanted))
    code, out, err = petkit("predict", "--bank", bank, inputs, "--json")
    assert code == 0
    found = json.loads(out)["predictions"]
    assert [(one["input"], one["adapter"]) for one in found] == wanted
    assert [len(one["classes"]) for one in found] == [3, 2, 3]
    assert "2 adapters resident in" in err
    text = petkit("predict", "--bank", bank, inputs).out
    assert text.splitlines()[0].split() == ["input", "adapter", "class", "probability"]


def probabilities(result):
    assert result.code == 0, result.err
    return [one["classes"][0]["probability"] for one in json.loads(result.out)["predictions"]]


def test_dtype_changes_the_forward_pass(petkit, pictures, bank):
    inputs = rows(pictures / "in.jsonl", {"image": "0.png", "adapter": "dogs"})
    for arguments in ((bank / "dogs", pictures / "0.png"), ("--bank", bank, inputs)):
        exact = probabilities(petkit("predict", *arguments, "--json"))
        rounded = probabilities(petkit("predict", *arguments, "--json", "--dtype", "bfloat16"))
        assert exact == probabilities(petkit("predict", *arguments, "--json", "--dtype", "float32"))
        assert rounded != exact
        # A few roundings of 8 bits each.
        assert rounded == pytest.approx(exact, rel=0.03)


def test_an_adapter_that_the_bank_lacks_is_named_with_its_line(petkit, pictures, bank):
    good = {"image": "0.png", "adapter": "dogs"}
    inputs = rows(pictures / "in.jsonl", good, good, {"image": "0.png", "adapter": "dog"})
    code, out, err = petkit("predict", "--bank", bank, inputs)
    assert (code, out) == (2, "")
    assert "in.jsonl:3: adapter 'dog' is not in the bank of 2 adapters; did you mean 'dogs'?" in err
    assert petkit("predict", "--bank", bank, inputs, "--skip-bad").code == 0


def test_all_faulty_rows_are_reported_at_once(petkit, pictures, bank):
    good = {"image": "0.png", "adapter": "dogs"}
    inputs = rows(
        pictures / "in.jsonl", good, {"image": "0.png", "adapter": "dog"}, good, {"adapter": "cats"}
    )
    code, out, err = petkit("predict", "--bank", bank, inputs)
    assert (code, out) == (2, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "in.jsonl:2: adapter 'dog' is not in the bank" in errors[0]
    assert "in.jsonl:4: image must be a string that is not empty, got None" in errors[1]
    assert errors[2:] == ["error: repair the 2 lines or pass --skip-bad"]


def test_an_unreadable_picture_ends_with_2_unless_it_is_skipped(petkit, pictures, bank):
    (pictures / "bad.png").write_bytes(b"nothing")
    code, _, err = petkit("predict", bank / "cats", pictures)
    assert code == 2
    assert "bad.png is not a readable image" in err
    skipped = petkit("predict", bank / "cats", pictures, "--skip-bad", "--json")
    assert skipped.code == 0
    assert len(json.loads(skipped.out)["predictions"]) == 3
    (left_out,) = json.loads(skipped.out)["left_out"]
    assert left_out["input"] == str(pictures / "bad.png")
    assert "bad.png is not a readable image" in left_out["reason"]
    assert "left out" in skipped.err
    only = petkit("predict", bank / "cats", pictures / "bad.png", "--skip-bad")
    assert (only.code, only.out) == (2, "")
    assert "nothing was predicted" in only.err


def test_rows_that_are_left_out_are_listed_wherever_their_fault_was_found(petkit, pictures, bank):
    (pictures / "bad.png").write_bytes(b"nothing")
    good = {"image": "0.png", "adapter": "cats"}
    bad = {"image": "bad.png", "adapter": "cats", "id": "q"}
    inputs = rows(pictures / "in.jsonl", {"adapter": "cats"}, good, bad)
    code, out, _ = petkit("predict", "--bank", bank, inputs, "--skip-bad", "--json")
    assert code == 0
    found = json.loads(out)
    assert [one["row"] for one in found["predictions"]] == [f"{inputs}:2"]
    unread, undecoded = found["left_out"]
    assert unread == {"input": f"{inputs}:1", "reason": "image must be a string that is not empty, got None"}
    assert (undecoded["input"], undecoded["row"]) == ("bad.png", "q")
    assert "bad.png is not a readable image" in undecoded["reason"]


def test_text_rows_that_are_left_out_are_listed(petkit, tmp_path):
    config = AdapterConfig(method="lora", bits=1, bottleneck=4)
    folder = write_text(tmp_path / "a", save_bert(tmp_path / "bert"), config)
    inputs = rows(tmp_path / "in.jsonl", {"text": "good dog"}, {"text": "\ud800"})
    assert petkit("predict", folder, inputs).code == 2
    code, out, _ = petkit("predict", folder, inputs, "--skip-bad", "--json")
    assert code == 0
    (left_out,) = json.loads(out)["left_out"]
    assert left_out["input"] == f"{inputs}:2"
    assert left_out["reason"].startswith("text must hold whole characters")


def test_a_row_that_names_a_pipe_is_refused_and_not_waited_for(petkit, pictures, bank):
    os.mkfifo(pictures / "pipe.png")
    inputs = rows(pictures / "in.jsonl", {"image": "pipe.png", "adapter": "cats"})
    code, out, err = petkit("predict", "--bank", bank, inputs)
    assert (code, out) == (2, "")
    assert (
        "pipe.png must be a regular file, got a folder, pipe or device); repair it or pass --skip-bad" in err
    )


def test_texts_and_a_bank_of_text_adapters(petkit, tmp_path):
    base = save_bert(tmp_path / "bert")
    config = AdapterConfig(method="lora", bits=1, bottleneck=4)
    folder = write_text(tmp_path / "bank" / "a", base, config)
    code, out, _ = petkit("predict", folder, "the cat sat", "good dog", "--json")
    assert code == 0
    assert [one["input"] for one in json.loads(out)["predictions"]] == ["the cat sat", "good dog"]
    inputs = rows(tmp_path / "in.jsonl", {"text": "the cat sat", "adapter": "a"})
    banked = json.loads(petkit("predict", "--bank", tmp_path / "bank", inputs, "--json").out)["predictions"]
    assert banked[0]["classes"][0]["class"] == json.loads(out)["predictions"][0]["classes"][0]["class"]


def test_a_language_model_writes(petkit, tmp_path):
    config = AdapterConfig(method="lora", bits=1, bottleneck=4)
    folder = write_text(tmp_path / "a", save_llama(tmp_path / "llama"), config, task="causal_lm")
    code, out, _ = petkit("predict", folder, "the cat", "--max-new-tokens", "3", "--json")
    assert code == 0
    assert len(json.loads(out)["predictions"][0]["text"].split()) <= 3
    assert petkit("predict", folder, "the cat", "--max-new-tokens", "3").out.startswith("the cat\n")
    assert petkit("predict", folder, "the cat", "--top-k", "3").code == 2
    talk = [{"role": "user", "content": "the cat " * 20}]
    inputs = rows(tmp_path / "in.jsonl", {"text": "the dog"}, {"messages": talk, "id": "long"})
    code, out, _ = petkit("predict", folder, inputs, "--max-new-tokens", "1", "--json")
    assert code == 0
    named = [(one["row"], one["input"]) for one in json.loads(out)["predictions"]]
    assert named == [(f"{inputs}:1", "the dog"), ("long", "the cat " * 20)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--json", "--jsonl"), "exclude each other"),
        (("--max-new-tokens", "3"), "--max-new-tokens has no effect"),
        (("--device", "tpu"), "--device must be"),
        (("--top-k", "0"), "--top-k"),
        (("--dtype", "float16"), "'float16' is not one of 'float32', 'bfloat16'"),
    ],
)
def test_bad_flags_end_with_2(petkit, pictures, bank, flags, message):
    code, out, err = petkit("predict", bank / "cats", pictures, *flags)
    assert (code, out) == (2, "")
    assert message in err


def test_bad_paths_end_with_2(petkit, pictures, bank, tmp_path):
    for arguments, message in (
        ((bank / "cats",), "needs an ARTIFACT and at least one INPUT"),
        ((tmp_path / "missing", pictures), "missing"),
        ((bank / "cats", tmp_path / "no.png"), "got no such file"),
        (
            (bank / "cats", "https://x.org/a.png"),
            "INPUT https://x.org/a.png is a URL, and URLs are not fetched: download it and name the file",
        ),
        (("--bank", tmp_path / "missing", pictures), "must be a folder of artifacts"),
        (("--bank", bank, pictures), "whose rows name their adapter"),
        (("--bank", bank, pictures, "--max-new-tokens", "3"), "a bank holds classifiers"),
    ):
        code, out, err = petkit("predict", *arguments)
        assert (code, out) == (2, "")
        assert message in err
