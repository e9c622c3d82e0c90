"""The reward and the divergences of a student: of all answers, of each data set, and while it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from petkit.errors import ConfigError
from petkit.methods.tropd.recipe import prepare, run
from petkit.ops.divergence import divergence
from petkit.training.checkpoint import newest
from tests.methods.tropd import tiny


def go(config, **more):
    return run(config, tiny.context(config, **more))


@pytest.mark.parametrize("tuning", ["adapter", "full"])
def test_a_student_is_measured_every_so_many_steps(recipe, tmp_path, tuning):
    own = {"adapter__dropout": 0.3} if tuning == "adapter" else {"adapter": {}, "student__tuning": "full"}
    changes = {"data__validation": str(tmp_path / "questions.jsonl"), **own}
    file = "adapter_packed.safetensors" if tuning == "adapter" else "model.safetensors"

    def told(folder):
        rows = tiny.records(folder)
        return [{key: row[key] for key in row if not key.endswith("_per_second")} for row in rows]

    plain, whole, cut = (tmp_path / name for name in ("plain", "whole", "cut"))
    assert go(recipe(output=plain, **changes))["best_step"] is None
    result = go(recipe(output=whole, training__evaluate_every_steps=3, **changes))
    # The evaluations change nothing of the training, and choose nothing.
    assert result["best_step"] is None
    assert (plain / file).read_bytes() == (whole / file).read_bytes()
    evaluated = [row for row in told(whole) if "eval_reward" in row]
    assert [row["step"] for row in evaluated] == [3, 4]
    assert told(plain) == [row for row in told(whole) if "eval_reward" not in row]
    # What was trained and its artifact differ by rounding alone.
    assert evaluated[-1]["eval_forward_kl"] == pytest.approx(result["after"]["forward_kl"], rel=1e-3)
    changes["training__evaluate_every_steps"] = 3
    go(recipe(output=cut, training__max_steps=2, **changes))
    go(recipe(output=cut, **changes), resume=newest(cut))
    assert told(cut) == told(whole)


def test_every_data_set_is_measured_by_itself(recipe, models, tmp_path):
    rows = {"math": tiny.QUESTIONS[:5], "code": tiny.QUESTIONS[5:]}
    parts = [
        Path(tiny.write_questions(tmp_path / f"{name}.jsonl", part, name)) for name, part in rows.items()
    ]
    both = tmp_path / "both.jsonl"
    # One behind the other in turn, so that a batch has answers of both.
    lines = [file.read_text().splitlines() for file in parts]
    order = [lines[0][0], lines[1][0], *lines[0][1:], *lines[1][1:]]
    both.write_text("\n".join(order) + "\n")
    config = recipe(
        data__train=str(both),
        data__validation=str(both),
        sampling__batch_size=3,
        objective={"kind": "opd"},
        teacher={"domains": {"math": models(1), "code": models(2)}},
        training__max_steps=1,
    )
    ready = prepare(config, tiny.context(config))
    found = ready.evaluate()
    assert list(found.datasets) == ["code", "math"]
    for name, file in zip(rows, parts, strict=True):
        alone = recipe(data__validation=str(file), from_teacher=ready.teachers.of(name).name)
        wanted = prepare(alone, tiny.context(alone)).evaluate()
        assert wanted.datasets == {}
        own = found.datasets[name].payload()
        assert own.pop("interval") == list(wanted.interval)
        assert own == pytest.approx({key: value for key, value in wanted.payload().items() if key in own})
    assert found.tokens == sum(one.tokens for one in found.datasets.values())
    result = go(config)
    for time in ("before", "after"):
        assert {name: one["n"] for name, one in result[time]["datasets"].items()} == {"code": 3, "math": 5}
    assert "datasets" not in found.record()
    card = (Path(config.output) / "README.md").read_text()
    assert "| before, code | reward " in card
    assert "| after, math | reward " in card


def test_an_evaluation_counts_whole_divergences_along_greedy_answers(recipe, tmp_path):
    config = recipe(data__validation=str(tmp_path / "questions.jsonl"), sampling__batch_size=3)
    ready = prepare(config, tiny.context(config))
    found, teacher = ready.evaluate(), ready.teachers.of("").head.model
    ready.model.eval()
    sums, tokens = [0.0, 0.0], 0
    for prompt in ready.validation.prompts:
        ids = list(prompt.ids)
        for _ in range(5):
            with torch.no_grad():
                sides = [one(input_ids=torch.tensor([ids])).logits[0, -1:] for one in (ready.model, teacher)]
            parts = divergence(*(side.contiguous() for side in sides), 0.0)
            sums[0], sums[1] = sums[0] + float(parts.forward_kl), sums[1] + float(parts.reverse_kl)
            tokens += 1
            ids.append(int(sides[0].argmax()))
            if ids[-1] == tiny.END:
                break
    assert (found.n, found.tokens) == (8, tokens)
    assert found.forward_kl == pytest.approx(sums[0] / tokens, rel=1e-4)
    assert found.reverse_kl == pytest.approx(sums[1] / tokens, rel=1e-4)


def test_evaluations_that_choose_nothing_may_begin_later(recipe, tmp_path):
    changes = {"data__validation": str(tmp_path / "questions.jsonl"), "training__max_steps": 2}
    go(recipe(**changes))
    saved = newest(tmp_path / "run")
    more = recipe(**{**changes, "training__max_steps": 3, "training__evaluate_every_steps": 3})
    go(more, resume=saved)
    assert [row["step"] for row in tiny.records(tmp_path / "run") if "eval_reward" in row] == [3]
    chooses = recipe(**changes, training__select="validation", training__evaluate_every_steps=3)
    with pytest.raises(ConfigError, match=r"training.evaluate_every_steps: '\(absent\)' -> 3"):
        prepare(chooses, tiny.context(chooses, resume=newest(tmp_path / "run")))
