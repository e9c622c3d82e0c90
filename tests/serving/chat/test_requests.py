from __future__ import annotations

import json

import pytest

from petkit.serving.chat.errors import ChatError
from petkit.serving.chat.requests import parse_request

LEAST = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def parsed(**fields):
    return parse_request(json.dumps({**LEAST, **fields}).encode())


def test_the_least_request():
    request = parsed()
    assert (request.limit, request.top, request.stops) == (None, None, [])
    assert request.conversation == LEAST["messages"]


def test_every_field_that_is_taken():
    request = parsed(
        max_completion_tokens=5,
        temperature=1,
        top_p=0.5,
        seed=3,
        stop="x",
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=4,
        chat_template_kwargs={"enable_thinking": False},
        n=1,
        presence_penalty=0,
        frequency_penalty=0.0,
        logit_bias={},
        response_format={"type": "text"},
        tools=[],
        tool_choice="none",
        user="u",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
    )
    assert (request.limit, request.top, request.stops) == (5, 4, ["x"])
    assert parsed(logprobs=True).top == 0
    assert parsed(stop=["a", "b"]).stops == ["a", "b"]


def test_null_counts_as_absent():
    fields = ("max_tokens", "temperature", "top_p", "seed", "stop", "stream", "logprobs", "tools", "n")
    assert parsed(**dict.fromkeys(fields)) == parsed()


def test_messages_in_parts_and_of_developers():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = parsed(
        messages=[{"role": "developer", "content": "d"}, {"role": "user", "content": parts, "name": "n"}]
    )
    assert request.conversation == [
        {"role": "system", "content": "d"},
        {"role": "user", "content": "ab"},
    ]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"n": 2}, "n", "n must be 1, got 2"),
        ({"top_k": 5}, "top_k", "unknown field top_k"),
        ({"temperature": 3}, "temperature", "temperature must be at most 2, got 3"),
        ({"temperature": float("nan")}, "temperature", "temperature must be a finite number, got nan"),
        ({"temperature": "hot"}, "temperature", "temperature must be a number, got 'hot'"),
        ({"stream": 1}, "stream", "stream must be true or false, got 1"),
        ({"user": 3}, "user", "user must be a text, got 3"),
        ({"metadata": []}, "metadata", "metadata must be an object, got []"),
        ({"stream_options": 3}, "stream_options", "stream_options must be an object, got 3"),
        ({"messages": 3}, "messages", "messages must be a list, got 3"),
        ({"messages": ["a"]}, "messages[0]", "messages[0] must be an object, got 'a'"),
        ({"stop": 3}, "stop", "stop must be a text or a list, got 3"),
        ({"stop": ["a", 3]}, "stop[1]", "stop[1] must be a text, got 3"),
        ({"top_p": 0}, "top_p", "top_p must be greater than 0, got 0"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens must be at least 1, got 0"),
        ({"max_tokens": "5"}, "max_tokens", "max_tokens must be a whole number, got '5'"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"stop": ""}, "stop", "stop must be up to 4 texts that are not empty, got ''"),
        ({"stop": ["a"] * 5}, "stop", "up to 4 texts"),
        ({"top_logprobs": 5}, "top_logprobs", "needs logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs must be at most 20, got 21"),
        ({"stream_options": {}}, "stream_options", "needs stream: true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown field"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_completion_tokens", "exclude each other"),
        ({"presence_penalty": 0.5}, "presence_penalty", "presence_penalty must be at most 0, got 0.5"),
        ({"logit_bias": {"1": 2.0}}, "logit_bias", "logit_bias must be empty, got {'1': 2.0}"),
        (
            {"response_format": {"type": "json_object"}},
            "response_format.type",
            "response_format.type must be 'text', got 'json_object'",
        ),
        ({"tools": [{"type": "function"}]}, "tools", "tools must be empty, got [{"),
        ({"messages": []}, "messages", "messages must be a list that is not empty, got []"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages[0].role",
            "must be 'system', 'developer', 'user' or 'assistant', got 'tool'",
        ),
        ({"messages": [{"role": "user", "content": " \n"}]}, "messages", "not empty"),
        (
            {"messages": [{"role": "user", "content": "\ud800"}]},
            "messages[0].content",
            "messages[0].content must be a text of whole characters, without half of a surrogate pair, got "
            "'\\ud800'",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "a text or a list, got 3"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}]},
            "messages[0].content[0].text",
            "must be a text of whole characters, without half of a surrogate pair, got ",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]},
            "messages[0].content[0].type",
            "messages[0].content[0].type must be 'text', got 'image_url'",
        ),
        ({"model": None}, "model", "model must be a text, got null"),
        ({"a\n b": 1}, "a\\n b", "unknown field a\\n b"),
        ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs.x", "unknown field"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(fields, param, message):
    with pytest.raises(ChatError) as caught:
        parsed(**fields)
    error = caught.value.body()["error"]
    assert caught.value.status == 400
    assert error["param"].startswith(param)
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"\xff", b"[" * 100_000, b'"x"'])
def test_bodies_that_are_no_objects(body):
    with pytest.raises(ChatError, match=r"the body must be (JSON|an object)") as caught:
        parse_request(body)
    assert caught.value.status == 400
