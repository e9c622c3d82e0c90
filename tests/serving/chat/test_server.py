"""The official client against a real server."""

from __future__ import annotations

import openai
import pytest

from tests.serving.chat.support import client, local_source, running
from tests.serving.text_models import save_llama

MESSAGES = [{"role": "user", "content": "the cat sat"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def source(folder):
    found = local_source(folder)
    yield found
    found.close()


@pytest.fixture(scope="module")
def server(source):
    with running(source) as found:
        yield found


@pytest.fixture
def chat(server):
    with client(server.url) as found:
        yield found


def ask(chat, **fields):
    return chat.chat.completions.create(model="tiny", messages=MESSAGES, **fields)


def test_models(chat):
    assert [model.id for model in chat.models.list()] == ["tiny"]
    assert chat.models.retrieve("tiny").owned_by == "petkit"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other' here"):
        chat.models.retrieve("other")


def test_a_plain_answer(chat):
    answer = ask(chat, max_tokens=8)
    (choice,) = answer.choices
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens <= 8
    assert answer.petkit["mode"] == "standard"
    assert answer.petkit["tokens"] == answer.usage.completion_tokens
