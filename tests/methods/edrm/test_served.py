from __future__ import annotations

import logging
import math

import pytest

from petkit.data.questions import Question
from petkit.errors import ConfigError, InputError, PetkitError
from petkit.methods.edrm.config import RouterConfig
from petkit.methods.edrm.recipe import Router, record_of
from petkit.methods.edrm.rule import Rule
from petkit.methods.edrm.served import ServedModel, served_model
from petkit.rollout.config import ServedConfig
from petkit.rollout.endpoint import Endpoint
from tests.methods.edrm.support import thresholds_for
from tests.rollout.fault_server import chunk, ended, entry, refuse, serving, stream, words

QUESTIONS = [Question("q1", "why?", answer="w0"), Question("q2", "how?", answer="yes")]


@pytest.fixture
def server():
    with serving() as found:
        yield found


def router(server, mode="standard", served=ServedConfig(vocab=100), **settings):  # noqa: B008
    config = RouterConfig(
        probe_tokens=4, max_new_tokens=10, thresholds=thresholds_for(mode), served=served, **settings
    )
    return Router(ServedModel(Endpoint(server.url, "m"), served, "key"), Rule(config), batch_size=2)


def test_a_probe_closes_its_stream(server):
    server.play(stream(*words(9), *ended(0)))
    probes = router(server).probe(QUESTIONS)
    assert [len(probe.trajectory) for probe in probes] == [4, 4]
    assert [(probe.cost, probe.finished, probe.whole) for probe in probes] == [(4, False, None)] * 2
    expected = 0.75 * math.log(4 / 3) + 0.25 * math.log(8)
    assert probes[0].trajectory.entropy == pytest.approx([expected] * 4)
    # An eighth is unknown, and spread over 98 tokens at most.
    assert probes[0].trajectory.bias == pytest.approx([math.log(98) / 8] * 4)
    assert record_of(QUESTIONS[0], probes[0])["entropy_bias"]["largest"] == pytest.approx(math.log(98) / 8)
    body = server.requests[0]
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (10, True, 20)
    assert body["temperature"] == 0
    assert server.keys == ["Bearer key"] * 2


def test_a_standard_answer_is_one_stream(server):
    server.play(stream(*ended(7)))
    answers = router(server).run(QUESTIONS)
    assert len(server.requests) == 2
    assert [(one.mode, one.tokens) for one in answers] == [("standard", 7)] * 2
    assert answers[0].text == "w0 w1 w2 w3 w4 w5 w6"


def test_the_servers_count_is_taken_for_a_whole_answer(server):
    server.play(stream(*ended(7, {"completion_tokens": 8})))
    assert [one.tokens for one in router(server).run(QUESTIONS)] == [8, 8]


def test_another_mode_is_asked_for_anew(server):
    server.play(stream(*words(9)), stream(*words(9)), stream(*ended(2)))
    answers = router(server, "direct").run(QUESTIONS)
    assert len(server.requests) == 4
    assert [(one.mode, one.text, one.tokens) for one in answers] == [("direct", "w0 w1", 6)] * 2
    texts = {body["messages"][-1]["content"].partition("\n")[2] for body in server.requests[2:]}
    assert texts == {"Give the answer alone, without any explanation."}


def test_an_answer_that_ends_in_its_probe(server):
    server.play(stream(*ended(2)))
    (probe, _) = router(server).probe(QUESTIONS)
    assert (probe.finished, probe.cost, probe.whole) == (True, 2, ("w0 w1", 2))


def test_a_data_set_is_asked_again_behind_its_probes(server):
    server.play(*[stream(*words(9))] * 2, stream(*ended(5)))
    answers = router(server, level="dataset").run(QUESTIONS)
    assert [(one.mode, one.tokens) for one in answers] == [("standard", 4 + 5)] * 2


def test_measuring(server, caplog):
    server.play(stream(*ended(6)))
    with caplog.at_level(logging.INFO, "petkit"):
        records = router(server).measure(QUESTIONS)
    assert [record["modes"]["standard"]["tokens"] for record in records] == [6, 6]
    # A probe with its standard answer, a direct and a step-by-step answer for each.
    assert len(server.requests) == 6
    assert "the true ones are larger by 0.573 nats at most, 0.573 on average" in caplog.text


def test_thinking_belongs_to_step_by_step(server):
    server.play(stream(*ended(6)))
    router(server, served=ServedConfig(vocab=100, thinking=True)).measure(QUESTIONS[:1])
    sent = [body["chat_template_kwargs"]["enable_thinking"] for body in server.requests]
    assert sorted(sent) == [False, False, True]


def test_stops_are_asked_for(server):
    server.play(stream(*ended(6)))
    router(server, stop=("\nQ:",)).measure(QUESTIONS[:1])
    assert [body["stop"] for body in server.requests] == [["\nQ:"]] * 3
    server.requests.clear()
    router(server).measure(QUESTIONS[:1])
    assert not any("stop" in body for body in server.requests)


@pytest.mark.parametrize(
    ("step", "kind", "message"),
    [
        (stream(*words(2)), PetkitError, r"question q\d: .*the stream ended in the middle of an answer"),
        (stream(chunk("hello"), chunk(finish="stop")), InputError, "sends no log-probabilities"),
        (stream(*words(2), chunk("hello"), *ended(0)), InputError, "stopped sending .* after 2"),
        (stream(*words(6), chunk("hello"), *ended(0)), InputError, "stopped sending .* after 6"),
        (stream(chunk("a", [{"token": "a", "logprob": -1}])), InputError, "top_log_probs must hold"),
        (stream(chunk("a", [entry("a", [math.nan])])), InputError, "top_log_probs must hold"),
        (refuse(401), ConfigError, "set PETKIT_API_KEY"),
    ],
)
def test_faults_name_the_question(server, step, kind, message):
    server.play(step)
    with pytest.raises(kind, match=message) as caught:
        router(server).run(QUESTIONS)
    assert str(caught.value).startswith("question q")


def test_settings_that_do_not_fit(server):
    with pytest.raises(ConfigError, match="chat_template must be true"):
        router(server, chat_template=False)


def test_a_model_is_known_by_its_name(monkeypatch):
    monkeypatch.setenv("PETKIT_API_KEY", "a")
    found = served_model("http://h/v1#m", ServedConfig())
    assert (found.name, found.key) == ("m", "a")
    assert found.sha256 == Endpoint("http://elsewhere/v1", "m").sha256
    assert found.measured_by != ServedModel(found.endpoint, ServedConfig(top_log_probs=5)).measured_by
