"""What a report says of a distillation of image classifiers."""

import json

import pytest
from PIL import Image

from petkit.report.distillation import (
    before_and_after,
    by_data_set,
    captions,
    draw_distillation,
    teacher_rows,
)
from petkit.report.figures import FIT_PIXELS
from petkit.report.html import write_report

RESULT = {
    "status": "completed",
    "accuracy": 0.75,
    "interval": [0.6, 0.9],
    "n": 40,
    "split": "test",
    "teacher": {
        "id": "runs/t",
        "sha256": "ab",
        "accuracy": 0.8,
        "interval": [0.7, 0.9],
        "n": 40,
        "agreement": 0.625,
    },
}


def test_the_teacher_stands_beside_its_student(tmp_path):
    assert teacher_rows(RESULT) == [
        ("teacher", "runs/t, sha256 ab"),
        ("teacher's accuracy", "80.0%, 95 % interval 70.0% to 90.0%"),
        ("same answer as the teacher", "62.5%"),
    ]
    assert teacher_rows({"teacher": {"id": "t", "sha256": "a"}}) == [("teacher", "t, sha256 a")]
    assert teacher_rows({"teacher": "a name"}) == teacher_rows({}) == []
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    page = write_report(tmp_path).read_text()
    assert page.count("62.5%") == page.count("80.0%, 95") == 1
    assert "teacher.accuracy" not in page


def test_curves_of_what_is_learnt(tmp_path):
    row = {"loss": 1.0, "cross_entropy": 1.0, "kl": 0.1, "feature_distance": 0.5, "agreement": 0.5}
    (drawn,) = draw_distillation([{"step": step, **row} for step in (1, 2)], tmp_path)
    assert drawn.name == "teaching.png"
    assert draw_distillation([{"step": 1, "loss": 1.0}], tmp_path) == []


def test_data_sets_stand_beside_each_other(tmp_path):
    def measured(reward, n):
        return {"reward": reward, "interval": [0, 1], "forward_kl": None, "reverse_kl": None, "n": n}

    before = {**measured(0.25, 8), "datasets": {"sums": measured(0.5, 4), "words": measured(0.0, 4)}}
    after = {**measured(0.625, 8), "datasets": {"sums": measured(0.75, 4), "words": measured(0.5, 4)}}
    result = {"status": "completed", "before": before, "after": after}
    table = by_data_set(result)
    assert table.columns == ("data set", "measure", "before", "after")
    assert [row for row in table.rows if row[1] in ("reward", "answers")] == [
        ("sums", "reward", "50.0%", "75.0%"),
        ("sums", "answers", "4", "4"),
        ("words", "reward", "0.0%", "50.0%"),
        ("words", "answers", "4", "4"),
    ]
    assert ("reward", "25.0%", "62.5%") in before_and_after(result).rows
    assert by_data_set({"before": None, "after": after}).rows[0] == ("sums", "reward", "", "75.0%")
    assert by_data_set({"after": measured(1.0, 4)}) is by_data_set({}) is None
    (tmp_path / "result.json").write_text(json.dumps(result))
    page = write_report(tmp_path).read_text()
    assert page.count("words") == 3
    assert "datasets" not in page


def test_evaluations_are_curves(tmp_path):
    row = {"loss": 1.0, "reverse_kl": 0.1, "reward": 0.5, "response_length": 4.0}
    rows = [{"step": step, **row} for step in (1, 2)]
    plain, more = tmp_path / "plain", tmp_path / "more"
    draw_distillation(rows, plain)
    evaluated = {"step": 2, "eval_reward": 0.5, "eval_forward_kl": 0.2, "eval_reverse_kl": 0.2}
    draw_distillation([*rows, evaluated], more)
    pictures = [(folder / "learning.png").read_bytes() for folder in (plain, more)]
    assert pictures[0] != pictures[1]


def measured(reward, forward=0.5):
    reverse = None if forward is None else 0.25
    return {"reward": reward, "interval": [0.1, 0.625], "forward_kl": forward, "reverse_kl": reverse, "n": 24}


def on_policy(**more):
    """The result of a distillation of language models."""
    return {
        "status": "completed",
        "objective": "tropd",
        "steps": 8,
        "best_step": None,
        "teachers": {"": {"id": "models/large", "sha256": "cd"}},
        "before": measured(0.25),
        "after": measured(0.5),
    } | more


ROW = {"loss": -1.5, "learning_rate": 1e-3, "gradient_norm": 1.0, "reward": 0.5, "reverse_kl": 0.4}
ROW |= {"outlier_ratio": 0.1, "entropy": 0.3, "teacher_entropy": 0.2, "response_length": 9.0}


def write_run(folder, result, **more):
    rows = [{"step": step, **ROW, **more} for step in (1, 2)]
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "petkit.json").write_text(json.dumps({"base": {"id": "models/small"}, "lineage": []}))
    return rows


def test_the_result_says_of_which_step_it_is():
    table = before_and_after(on_policy())
    assert ("reward", "25.0%", "50.0%") in table.rows
    assert ("95 % interval of the reward", "10.0% to 62.5%", "10.0% to 62.5%") in table.rows
    assert "of step 8, the last one" in table.note
    assert "of step 3, which the validation prompts chose" in before_and_after(on_policy(best_step=3)).note
    assert "No divergences" not in table.note
    served = before_and_after(on_policy(before=None, after=measured(0.5, None)))
    assert "No divergences: a served or kept teacher" in served.note
    assert [row[1] for row in served.rows] == [""] * 3


def test_a_report_has_the_teacher_and_captions_and_no_lists(tmp_path):
    write_run(tmp_path, on_policy())
    page = write_report(tmp_path).read_text()
    assert page.count("models/large, sha256 cd") == 1
    assert page.index("<h2>Origin</h2>") < page.index("models/large, sha256 cd")
    assert "[0.1" not in page
    for part in (
        "Loss and learning rate at",
        "may be negative",
        "Gradient norm: before",
        "Outliers: the mean",
    ):
        assert part in page
    assert "accuracy and learning rate" not in page


def test_every_panel_can_be_seen_on_a_narrow_screen(tmp_path):
    write_run(tmp_path, on_policy())
    page = write_report(tmp_path).read_text()
    pictures = sorted((tmp_path / "plots").iterdir())
    assert [picture.name for picture in pictures] == ["learning.png", "tokens.png", "training.png"]
    for picture in pictures:
        with Image.open(picture) as image:
            width, height = image.size
        assert width <= FIT_PIXELS
        # One below the other.
        assert height > width
    assert page.count('<figure class="fit">') == 3
    assert "figure.fit img { max-width: 100%; }" in page


@pytest.mark.parametrize(
    ("more", "objective", "part"),
    [
        ({"unguided_reward": 0.5}, "opd", "counts what the teacher wrote at their beginnings"),
        ({"forward_kl": 0.1}, "gkd", "and forward, on all tokens."),
        ({"forward_kl": 0.1}, "fkl", "and forward, on the teacher's likeliest, the others as one."),
        ({"trusted": 0.1}, "tropd", "within the trust region: the part"),
    ],
)
def test_captions_tell_of_what_was_drawn(tmp_path, more, objective, part):
    plain = captions(write_run(tmp_path, on_policy()), on_policy(objective=objective))
    found = captions(write_run(tmp_path, on_policy(), **more), on_policy(objective=objective))
    assert part in " ".join(found.values())
    assert part not in " ".join(plain.values())
    assert captions([{"step": 1, "loss": 1.0, "accuracy": 0.5}], {}) == {
        "training.png": "Loss and accuracy at every optimiser step."
    }


def test_what_the_teacher_wrote_is_drawn_too(tmp_path):
    rows = write_run(tmp_path, on_policy(), forward_kl=0.3)
    written = [{k: v for k, v in row.items() if k not in ("reverse_kl", "outlier_ratio")} for row in rows]
    drawn = draw_distillation(written, tmp_path / "plots")
    assert [path.name for path in drawn] == ["learning.png", "tokens.png"]
    found = captions(written, on_policy(objective="fkl"))
    likeliest = "on the teacher's likeliest, the others as one, along the teacher's responses."
    assert f"KL to the teacher: forward, {likeliest}" in found["learning.png"]
    assert found["tokens.png"].startswith("Tokens that the teacher wrote, all of every response.")
    for row in written:
        del row["forward_kl"]
    assert "KL" not in captions(written, on_policy(objective="fkl"))["learning.png"]


def test_a_cache_is_told_of(tmp_path):
    asked = {"": {"id": "models/large", "sha256": "cd", "cache": "ef"}}
    rows = write_run(tmp_path, on_policy(teachers=asked))
    page = write_report(tmp_path).read_text()
    assert page.count("models/large, sha256 cd, from the cache of sha256 ef") == 1
    # Neither the rewards nor the tokens of a cache are the student's as it is.
    found = " ".join(captions(rows, on_policy(teachers=asked)).values())
    assert "of each step that are right, which are the cache's and not the student's." in found
    assert "the mean of log student - log teacher at the tokens of the cache" in found
    assert "Tokens that a student sampled into the cache." in found


def test_grouped_entropies_are_told_of_where_a_server_teaches(tmp_path):
    for name, told in (("models/large", False), ("http://localhost:8000/v1#large", True)):
        asked = {"": {"id": name, "sha256": "cd"}}
        found = " ".join(captions(write_run(tmp_path, on_policy()), on_policy(teachers=asked)).values())
        assert ("that of a served teacher counts" in found) == told


def test_the_reward_of_ones_own_function_is_a_mean(tmp_path):
    own = {"function": "rewards.py:score", "sha256": "ab"}
    for reward, part in (
        (own, "Reward: the mean reward of the responses of each step. "),
        (None, "Reward: the part of the responses of each step that are right. "),
    ):
        found = captions(write_run(tmp_path, on_policy()), on_policy(reward_function=reward))
        assert found["learning.png"].startswith(part)
