"""The gain-consistency cosine by hand and by law, and files of scores."""

import json

import numpy as np
import pytest

from petkit.errors import ConfigError, InputError
from petkit.merging.analysis.gains import gain_consistency, gains_of_files, read_scores
from tests.reference import shifts as reference

BASE = np.array([0.0, 0.0, 1.0, 0.5])
EXPERTS = {"a": np.array([1.0, 0.0, 0.0, 0.5]), "b": np.array([0.0, 1.0, 1.0, 0.5])}


def by_model(found):
    return {one["model"]: one for one in found["models"]}


def test_by_hand():
    found = gain_consistency(BASE, EXPERTS, {"merged": np.array([1.0, 1.0, 0.0, 1.0])})
    # The union gains on the first two items; the merge on the last as well, and loses the third.
    assert found["union"] == {"gain": 0.5, "gained": 2}
    merged = by_model(found)["merged"]
    assert merged["cosine"] == pytest.approx(2 / (2 * 2.25) ** 0.5)
    assert (merged["role"], merged["gained"], merged["lost"]) == ("merged", 3, 1)
    assert merged["score"] == 0.75
    assert by_model(found)["a"]["cosine"] == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("seed", range(4))
def test_the_union_itself_has_1_and_others_are_the_references(seed):
    drawing = np.random.default_rng(seed)
    base, *scores = drawing.random((5, 40))
    experts = {"a": scores[0], "b": scores[1]}
    union = np.max([base, *experts.values()], axis=0)
    found = by_model(gain_consistency(base, experts, {"union": union, "c": scores[2]}, seed))
    assert found["union"]["cosine"] == pytest.approx(1, abs=1e-12)
    assert found["union"]["low"] == pytest.approx(1, abs=1e-12)
    assert found["union"]["high"] <= 1
    wanted = reference.gain_cosine(base, list(experts.values()), scores[2])
    assert found["c"]["cosine"] == pytest.approx(wanted, rel=1e-12)
    assert found["c"]["low"] < wanted < found["c"]["high"]


def test_intervals_narrow_with_items_and_are_the_seeds():
    drawing = np.random.default_rng(0)
    widths = []
    for items in (50, 5000):
        base, a, b, c = drawing.random((4, items))
        found = [
            by_model(gain_consistency(base, {"a": a, "b": b}, {"c": c}, seed))["c"] for seed in (0, 0, 1)
        ]
        assert found[0] == found[1] != found[2]
        widths.append(found[0]["high"] - found[0]["low"])
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.5)


def test_no_gain_has_no_cosine():
    merged = by_model(gain_consistency(BASE, EXPERTS, {"same": BASE}))["same"]
    assert (merged["cosine"], merged["low"], merged["high"]) == (None, None, None)


def written(path, scores):
    rows = [{"id": name, "score": score, "more": 1} for name, score in scores.items()]
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_files(tmp_path, name):
    read = read_scores(written(tmp_path / name, {"x": True, 7: 0.5}))
    assert read.by_id == {"x": 1.0, "7": 0.5}


def test_items_are_matched_by_id(tmp_path):
    files = {
        "base": written(tmp_path / "base.jsonl", {"x": 0, "y": 0}),
        "a": written(tmp_path / "a.json", {"y": 1, "x": 0}),
        "merged": written(tmp_path / "merged.jsonl", {"y": 1, "x": 0}),
    }
    found = by_model(gains_of_files(files, ["a"]))
    assert found["merged"]["cosine"] == 1.0
    with pytest.raises(ConfigError, match="none are given for b, add b=FILE"):
        gains_of_files(files, ["a", "b"])
    written(files["merged"], {"y": 1})
    with pytest.raises(InputError, match=r"merged.jsonl lacks the item x of .*base.jsonl"):
        gains_of_files(files, ["a"])
    written(files["merged"], dict.fromkeys("xyabcd", 1))
    with pytest.raises(InputError, match=r"base.jsonl lacks the items a, b, c and 1 more of .*merged.jsonl"):
        gains_of_files(files, ["a"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.jsonl",
            '{"id": "x", "score": 1}\n{"id": "x", "score": 0}\n',
            "a.jsonl:2: the id 'x' comes twice",
        ),
        ("a.jsonl", '{"id": "x", "score": "1"}\n', "score must be a finite number, got '1'"),
        ("a.jsonl", '{"id": "x", "score": NaN}\n', "score must be a finite number, got nan"),
        ("a.jsonl", '{"score": 1}\n', "expected an object with id and score"),
        ("a.jsonl", "\n", "must hold at least one score"),
        ("a.json", '{"id": "x", "score": 1}', "must hold a list of {id, score}, got dict"),
        ("a.json", "[1]", r"a.json\[0\]: expected an object with id and score, got 1"),
        ("a.json", "[", "is not valid JSON"),
    ],
)
def test_faults_are_named(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_scores(path)
    with pytest.raises(InputError, match="is missing"):
        read_scores(tmp_path / f"gone-{name}")
