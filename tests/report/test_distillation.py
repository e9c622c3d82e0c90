"""What a report says of a distillation of image classifiers."""

import json

from petkit.report.distillation import before_and_after, by_data_set, draw_distillation, teacher_rows
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
    assert table.rows == (
        ("sums", "reward", 0.5, 0.75),
        ("sums", "answers", 4, 4),
        ("words", "reward", 0.0, 0.5),
        ("words", "answers", 4, 4),
    )
    assert before_and_after(result).rows == (("reward", 0.25, 0.625), ("answers", 8, 8))
    assert by_data_set({"before": None, "after": after}).rows[0] == ("sums", "reward", None, 0.75)
    assert by_data_set({"after": measured(1.0, 4)}) is by_data_set({}) is None
    (tmp_path / "result.json").write_text(json.dumps(result))
    page = write_report(tmp_path).read_text()
    assert page.count("words") == 2
    assert "datasets" not in page


def test_evaluations_are_curves(tmp_path):
    rows = [{"step": step, "loss": 1.0, "reverse_kl": 0.1, "reward": 0.5} for step in (1, 2)]
    plain, more = tmp_path / "plain", tmp_path / "more"
    draw_distillation(rows, plain)
    evaluated = {"step": 2, "eval_reward": 0.5, "eval_forward_kl": 0.2, "eval_reverse_kl": 0.2}
    draw_distillation([*rows, evaluated], more)
    pictures = [(folder / "learning.png").read_bytes() for folder in (plain, more)]
    assert pictures[0] != pictures[1]
