"""What a report says of a distillation of image classifiers."""

import json

from petkit.report.distillation import draw_distillation, teacher_rows
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
