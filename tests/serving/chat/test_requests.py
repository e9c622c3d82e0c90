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
        ({"n": 2}, "n", "n: input should be 1, got 2"),
        ({"top_k": 5}, "top_k", "unknown field top_k"),
        ({"temperature": 3}, "temperature", "temperature: input should be less than or equal to 2, got 3"),
        ({"temperature": float("nan")}, "temperature", "got nan"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": "5"}, "max_tokens", "valid integer, got '5'"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"stop": ""}, "stop", "up to 4 texts that are not empty, got ''"),
        ({"stop": ["a"] * 5}, "stop", "up to 4 texts"),
        ({"top_logprobs": 5}, "top_logprobs", "needs logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"stream_options": {}}, "stream_options", "needs stream: true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown field"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_completion_tokens", "exclude each other"),
        ({"presence_penalty": 0.5}, "presence_penalty", "less than or equal to 0"),
        ({"logit_bias": {"1": 2.0}}, "logit_bias", "at most 0 items"),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "should be 'text'"),
        ({"tools": [{"type": "function"}]}, "tools", "at most 0 items"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'system'"),
        ({"messages": [{"role": "user", "content": " \n"}]}, "messages", "not empty"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "surrogate"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]},
            "messages[0].content",
            "",
        ),
        ({"model": None}, "model", "valid string"),
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
    with pytest.raises(ChatError, match=r"the body(: | must be JSON)") as caught:
        parse_request(body)
    assert caught.value.status == 400
