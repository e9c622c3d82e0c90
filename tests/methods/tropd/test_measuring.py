"""A student's artifact, measured again: as the run measured it, and on other questions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from petkit.errors import ArtifactError, ConfigError
from petkit.methods.tropd.measuring import SETTABLE, measure, measured_recipe
from petkit.methods.tropd.recipe import run
from petkit.models.loading import load_adapted
from petkit.training.evaluate import wilson_interval
from tests.methods.tropd import tiny

CPU = torch.device("cpu")
FULL = {"student__tuning": "full", "adapter": {}}


@pytest.fixture
def trained(recipe, tmp_path):
    """`trained(student__tuning="full")` runs a step; gives the folder and result.json's content."""

    def go(**changes):
        config = recipe(training__max_steps=1, **changes)
        return Path(config.output), run(config, tiny.context(config))

    return go


def again(folder, questions=None, settings=(), **flags):
    return measure(folder, measured_recipe(folder, questions, settings, flags), CPU)


@pytest.mark.parametrize("changes", [{}, {"adapter__bits": 1}, FULL])
def test_it_is_measured_as_the_run_did(trained, tmp_path, changes):
    questions = str(tmp_path / "questions.jsonl")
    folder, result = trained(data__validation=questions, data__validation_size=5, **changes)
    found = again(folder)
    for name in ("reward", "n", "tokens"):
        assert getattr(found, name) == result["after"][name]
    assert list(found.interval) == result["after"]["interval"]
    assert found.forward_kl is found.reverse_kl is None
    assert found.n == 5
    assert again(folder, **{"sampling.batch_size": 2}).tokens == found.tokens
    # The size was that of the run's own questions.
    assert again(folder, questions).n == 8
    assert again(folder, questions, ["data.validation_size=3"]).n == 3
    assert again(folder, None, ["data.validation_size=6"]).n == 6
    assert again(folder, None, ["sampling.max_new_tokens=1"]).tokens == 5


def test_rewards_are_those_of_the_answers(trained, tmp_path):
    """Asked for what it says by itself, a student is right; for anything else it is not."""
    folder, _ = trained()
    adapted = load_adapted(folder)
    rows, expected = [], 0
    for place, (question, _) in enumerate(tiny.QUESTIONS):
        ids = start = adapted.tokenizer(question)["input_ids"]
        for _ in range(5):
            with torch.no_grad():
                ids = [*ids, int(adapted.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
            if ids[-1] == tiny.END:
                break
        said = adapted.tokenizer.decode(ids[len(start) :], skip_special_tokens=True).strip()
        asked = place % 2 == 0 and bool(said)
        expected += asked
        rows.append((question, said if asked else "nothing of that"))
    found = again(folder, tiny.write_questions(tmp_path / "own.jsonl", rows))
    assert expected >= 2
    assert found.reward == expected / 8
    assert found.interval == wilson_interval(expected, 8)


def test_data_sets_have_rewards_of_their_own(trained, tmp_path):
    folder, _ = trained()
    parts = [
        Path(tiny.write_questions(tmp_path / f"{name}.jsonl", tiny.QUESTIONS[:size], name)).read_text()
        for name, size in (("b", 3), ("a", 2))
    ]
    both = tmp_path / "both.jsonl"
    both.write_text("".join(parts))
    assert {name: one.n for name, one in again(folder, str(both)).datasets.items()} == {"a": 2, "b": 3}


def test_what_cannot_be_measured_is_refused(trained, tmp_path):
    folder, _ = trained(**FULL)
    with pytest.raises(ConfigError, match=r"does not record questions with answers .*: pass --data FILE"):
        measured_recipe(folder, None, (), {})
    with pytest.raises(ConfigError, match=r"did you mean data.validation_size\?"):
        measured_recipe(folder, "q.jsonl", ["data.validaton_size=1"], {})
    with pytest.raises(ConfigError, match=rf"sampling.top_p has no effect .*: it takes {SETTABLE[0]}, "):
        measured_recipe(folder, "q.jsonl", ["sampling.top_p=0.5"], {})
    questions = str(tmp_path / "questions.jsonl")
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="was altered"):
        again(folder, questions)


def test_questions_that_are_gone_are_named(trained, tmp_path):
    held = Path(tiny.write_questions(tmp_path / "held.jsonl"))
    folder, _ = trained(data__validation=str(held))
    held.unlink()
    with pytest.raises(ConfigError, match=r"held.jsonl, and there is no such file: pass --data FILE"):
        measured_recipe(folder, None, (), {})
