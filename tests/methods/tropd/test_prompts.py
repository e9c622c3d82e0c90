"""Questions become prompts by the student's template, and those that no context holds are told of."""

import json

import pytest

from petkit.data.questions import Question
from petkit.errors import InputError
from petkit.methods.tropd.prompts import Prompt
from petkit.methods.tropd.recipe import plan, prepare
from tests.methods.tropd import tiny


def test_prompts_are_put_by_the_students_template(recipe, models):
    config = recipe(
        student=models(0, chat=True), from_teacher=models(1), data__system="good dog", data__suffix=" ran"
    )
    ready = prepare(config, tiny.context(config))
    ids = ready.loaded.tokenizer.convert_ids_to_tokens(ready.train.prompts[0].ids)
    assert " ".join(ids) == "<unk> good dog user the cat sat ran assistant"
    config = recipe(student=models(0, chat=True), data__chat_template=False, data__suffix=" ran")
    ready = prepare(config, tiny.context(config))
    ids = ready.loaded.tokenizer.convert_ids_to_tokens(ready.train.prompts[0].ids)
    assert " ".join(ids) == "the cat sat ran"


def test_prompts_longer_than_a_context_are_refused(recipe, models):
    for side in ("student", "from_teacher"):
        config = recipe(**{side: models(3, context=4)}, sampling__max_new_tokens=1)
        with pytest.raises(
            InputError, match=r"question 2 must be 1 to 3 tokens long, got 5: the student's context must"
        ):
            plan(config, tiny.context(config))


def test_prompts_longer_than_a_context_can_be_left_out(recipe, models, tmp_path, caplog):
    path = tmp_path / "questions.jsonl"
    rows = ["the cat", "the cat sat on the cat sat on", "good dog"]
    path.write_text("\n".join(json.dumps({"question": row}) for row in rows))
    config = recipe(
        student=models(3, context=4),
        data={"train": str(path), "skip_bad": True},
        sampling__max_new_tokens=1,
        training__batch_size=1,
    )
    ready = prepare(config, tiny.context(config))
    assert [one.question.text for one in ready.train.prompts] == [rows[0], rows[2]]
    assert "left out 1 of 3 prompts, which must be 1 to 3 tokens long" in caplog.text
    path.write_text(json.dumps({"question": rows[1]}))
    with pytest.raises(InputError, match="must be 1 to 3 tokens long"):
        prepare(config, tiny.context(config))


def test_a_prompt_set_is_known_by_what_it_trains_on(recipe, tmp_path):
    def sha(**changes):
        config = recipe(**changes)
        return prepare(config, tiny.context(config)).train.sha256

    assert sha() == sha(objective__kind="opd")
    other = tiny.write_questions(
        tmp_path / "other.jsonl", [("the cat sat", "dog"), *tiny.QUESTIONS[1:]], "questions"
    )
    assert sha(data__train=other) != sha()


def test_a_question_is_a_prompt_with_its_number(recipe):
    ready = prepare(recipe(), tiny.context(recipe()))
    number, prompt = ready.train[3]
    assert (number, prompt.question.text) == (3, "bad")
    assert isinstance(prompt, Prompt)
    assert isinstance(prompt.question, Question)
    assert ready.train.collate([ready.train[0]]) == [ready.train[0]]
