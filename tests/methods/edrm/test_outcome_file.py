import json

import pytest

from petkit.data.questions import Question
from petkit.errors import InputError
from petkit.methods.edrm.config import PromptConfig, RouterConfig, ThresholdConfig
from petkit.methods.edrm.outcome_file import OutcomeFile, model_files, outcome_key

QUESTION = Question("1", "how many?", answer="3", dataset="sums")
RECORD = {
    "id": "1",
    "dataset": "sums",
    "entropies": [0.5],
    "probabilities": [0.9],
    "probe_tokens": 1,
    "modes": {mode: {"correct": 1.0, "tokens": 3, "text": "3"} for mode in ("direct", "standard", "cot")},
}


def test_the_key_names_all_that_the_outcome_depends_on():
    config = RouterConfig()
    key = outcome_key(QUESTION, config, "a" * 64)
    assert key == outcome_key(QUESTION, config, "a" * 64)
    assert key == outcome_key(QUESTION, RouterConfig(thresholds=ThresholdConfig(cumulative=5)), "a" * 64)
    others = [
        outcome_key(QUESTION, config, "b" * 64),
        outcome_key(Question("1", "how many?", answer="4", dataset="sums"), config, "a" * 64),
        outcome_key(QUESTION, RouterConfig(max_new_tokens=77), "a" * 64),
        outcome_key(QUESTION, RouterConfig(prompts=PromptConfig(cot="{question}!")), "a" * 64),
    ]
    assert len({key, *others}) == 5


def test_records_come_back(tmp_path):
    path = tmp_path / "deep" / "outcomes.jsonl"
    OutcomeFile(path).append([("k1", RECORD), ("k2", {**RECORD, "id": "zwei ü"})])
    again = OutcomeFile(path)
    again.append([("k3", RECORD)])
    assert OutcomeFile(path).records == {"k1": RECORD, "k2": {**RECORD, "id": "zwei ü"}, "k3": RECORD}


def test_a_line_that_a_kill_cut_off_is_measured_again(tmp_path):
    path = tmp_path / "outcomes.jsonl"
    OutcomeFile(path).append([("k1", RECORD), ("k2", RECORD)])
    path.write_bytes(path.read_bytes()[:-20])
    kept = OutcomeFile(path)
    assert list(kept.records) == ["k1"]
    kept.append([("k2", RECORD)])
    assert list(OutcomeFile(path).records) == ["k1", "k2"]


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        json.dumps({"key": "x"}),
        "[1]",
        json.dumps({"key": "x", **RECORD, "modes": {}}),
        json.dumps({"key": "x", **RECORD, "entropies": ["x"]}),
        json.dumps({"key": "x", **RECORD, "model": "m"}),
        json.dumps({"key": "x", **RECORD, "model": {"measured_by": "a"}}),
    ],
)
def test_a_line_that_is_no_outcome_is_named(tmp_path, line):
    path = tmp_path / "outcomes.jsonl"
    OutcomeFile(path).append([("k1", RECORD)])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=r"outcomes\.jsonl:2 must be an outcome that petkit wrote"):
        OutcomeFile(path)


def test_two_processes_do_not_write_over_each_other(tmp_path):
    path = tmp_path / "outcomes.jsonl"
    first, second = OutcomeFile(path), OutcomeFile(path)
    first.append([("k1", RECORD)])
    with pytest.raises(InputError, match="were changed by another process: run it again"):
        second.append([("k2", RECORD)])


def test_a_place_that_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        OutcomeFile(tmp_path)
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        OutcomeFile(blocker / "outcomes.jsonl").append([("k", RECORD)])


def test_without_a_path_nothing_is_written(tmp_path):
    kept = OutcomeFile(None)
    kept.append([("k", RECORD)])
    assert kept.records == {"k": RECORD}


def test_outcomes_are_found_by_the_files_of_their_model(tmp_path):
    path, config, other = tmp_path / "outcomes.jsonl", RouterConfig(), Question("2", "why?", answer="x")
    key = outcome_key(QUESTION, config, "a" * 64)
    OutcomeFile(path).append([(key, RECORD)])
    assert OutcomeFile(path, "files").find([QUESTION], config) is None
    OutcomeFile(path, "files").append([(key, RECORD)], "a" * 64)
    kept = OutcomeFile(path, "files")
    assert kept.measured_by == "a" * 64
    assert kept.find([QUESTION], config) == [{**RECORD, "model": {"measured_by": "a" * 64, "files": "files"}}]
    assert kept.find([QUESTION, other], config) is None
    assert kept.find([QUESTION], RouterConfig(max_new_tokens=77)) is None
    assert OutcomeFile(path, "others").find([QUESTION], config) is None
    assert OutcomeFile(path).find([QUESTION], config) is None


def test_files_of_a_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = model_files(str(tmp_path))
    assert before == model_files(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert model_files(str(tmp_path)) not in (before, None)
    # An adapter's base is elsewhere, and so are the weights behind a server or of a hub.
    (tmp_path / "petkit.json").write_text("{}")
    for name in (str(tmp_path), "hf/org/name", "http://h/v1#m"):
        assert model_files(name) is None
