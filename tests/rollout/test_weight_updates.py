"""Servers are asked for other weights as they want to be, and those that cannot be are told of beforehand."""

from __future__ import annotations

import json

import pytest

from petkit.errors import ConfigError, InputError
from petkit.rollout.config import TokenServerConfig
from petkit.rollout.connection import ServerGone
from petkit.rollout.endpoint import Endpoint
from petkit.rollout.weight_updates import WEIGHT_SERVERS, RemoteWeights
from tests.rollout.fault_server import refuse, serving, stream
from tests.rollout.token_stub import cut, drop

PAIRS = sorted(WEIGHT_SERVERS)
DONE = {
    "vllm": b"Success: LoRA adapter 'm' added successfully.",
    "sglang": b'{"success": true, "message": ""}',
}
PATHS = {"vllm": "/v1/load_lora_adapter", "sglang": "/update_weights_from_disk"}


@pytest.fixture
def server():
    with serving() as found:
        yield found


def weights(server, pair, **settings):
    async def sleep(_):
        pass

    config = TokenServerConfig(server=pair[0], **settings)
    return RemoteWeights(Endpoint(server.url, "m"), config, pair[1], key="secret", section="r", sleep=sleep)


@pytest.mark.parametrize("pair", PAIRS)
def test_weights_are_named_by_their_folder(server, pair, tmp_path):
    server.play(stream(DONE[pair[0]]))
    weights(server, pair).load(tmp_path)
    expected = {"lora_name": "m", "lora_path": str(tmp_path), "load_inplace": True}
    assert server.requests == [expected if pair[0] == "vllm" else {"model_path": str(tmp_path)}]
    assert (server.paths, server.keys) == ([PATHS[pair[0]]], ["Bearer secret"])


@pytest.mark.parametrize("pair", PAIRS)
def test_a_busy_or_broken_server_is_asked_again(server, pair, tmp_path):
    good = stream(DONE[pair[0]])
    server.play(refuse(503, "busy"), drop, good)
    weights(server, pair).load(tmp_path)
    assert len(server.requests) == 3


@pytest.mark.parametrize("pair", PAIRS)
def test_a_server_that_is_gone_may_come_back(server, pair, tmp_path):
    server.play(drop)
    with pytest.raises(ServerGone, match="also when asked 2 times"):
        weights(server, pair, attempts=2).load(tmp_path)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_server_is_asked_beforehand_whether_it_can(server, pair):
    server.play(refuse(422, "field required"), refuse(404, "Not Found"), refuse(401, "no"))
    weights(server, pair).probe()
    assert server.requests == [{}]
    with pytest.raises(ConfigError, match=f"{PATHS[pair[0]]} is not there: serve the student with"):
        weights(server, pair).probe()
    with pytest.raises(ConfigError, match="set PETKIT_API_KEY"):
        weights(server, pair).probe()


def test_vllm_says_what_it_refuses(server, tmp_path):
    one = weights(server, ("vllm", "adapter"))
    server.play(refuse(400, "The lora adapter 'm' has already been loaded."), refuse(400, "no such folder"))
    with pytest.raises(InputError, match="must be of a version that knows load_inplace"):
        one.load(tmp_path)
    with pytest.raises(InputError, match=f"no such folder: it must see {tmp_path}"):
        one.load(tmp_path)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (b'{"success": false, "message": "other shapes"}', InputError, "'other shapes': it must see"),
        (b"<html>", ServerGone, "expected JSON"),
        (b"[]", ServerGone, "expected success: true or false"),
        (json.dumps({"success": 1}).encode(), ServerGone, "expected success: true or false"),
    ],
)
def test_sglang_must_say_that_it_loaded(server, tmp_path, answer, kind, message):
    server.play(stream(answer))
    with pytest.raises(kind, match=message):
        weights(server, ("sglang", "full")).load(tmp_path)


def test_an_answer_that_broke_off_counts_for_nothing(server, tmp_path):
    def answer(handler):
        handler.begin(200, "application/json", {"Content_Length": str(len(DONE["sglang"]))})
        handler.send(DONE["sglang"])

    server.play(cut(answer), answer)
    weights(server, ("sglang", "full")).load(tmp_path)
    assert len(server.requests) == 2
