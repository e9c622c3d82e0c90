"""vLLM's and SGLang's answers about token ids, from a real model, and the ways in which they go wrong."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from petkit.rollout.config import SamplingConfig, TokenServerConfig
from petkit.rollout.endpoint import Endpoint
from petkit.rollout.remote_sampling import RemoteSampler
from petkit.rollout.sampling import sample
from petkit.rollout.stops import Stops
from tests.rollout.fault_server import Handler, Step

END = 3
VOCAB = 15
Spoil = Callable[[Any], Any]
# One forward pass of the model at a time: requests come in threads.
TURN = threading.Lock()


def spoken(ids):
    """Ids as letters; the end and padding have no text."""
    return "".join(chr(ord("a") + token) for token in ids if token > END)


def answering(answer: Callable[[dict[str, Any], str], Any], spoil: Spoil = lambda found: found) -> Step:
    """Answer 200 with what a function makes of the request, perhaps spoilt: an object, or bytes."""

    def step(handler: Handler) -> None:
        with TURN:
            found = spoil(answer(handler.body, handler.path))
        body = found if isinstance(found, bytes) else json.dumps(found).encode()
        handler.begin(200, "application/json", {"Content_Length": str(len(body))})
        handler.send(body)

    return step


def after(seconds: float, step: Step) -> Step:
    """Think, and then do it."""

    def later(handler: Handler) -> None:
        time.sleep(seconds)
        step(handler)

    return later


def drop(handler: Handler) -> None:
    """Close the connection without a word."""
    handler.close_connection = True
    handler.connection.close()


def cut(step: Step) -> Step:
    """Close the connection within an answer."""

    def half(handler: Handler) -> None:
        send = handler.send

        def some(data: bytes) -> None:
            send(data[: len(data) // 2])
            handler.connection.shutdown(2)

        handler.send = some  # type: ignore[method-assign]
        step(handler)

    return half


def log_softmax(model, ids):
    """Of the logits after each id, float64."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


def top_of(row, count):
    """The likeliest ids, the lower of equals first."""
    return sorted(range(len(row)), key=lambda token: (-float(row[token]), token))[:count]


def vllm(model, spoil: Spoil = lambda found: found) -> Step:
    def answer(body, path):
        assert path == "/v1/completions"
        found = {"index": 0, "text": "not to be tokenised", "prompt_token_ids": body["prompt"]}
        if "prompt_logprobs" in body:
            found |= {"prompt_logprobs": _prompt_log_probs(model, body), "finish_reason": "length"}
        else:
            row = _drawn(model, body["prompt"], body, body["max_tokens"], body["seed"])
            reason = "stop" if row.finished else "length"
            found |= {"token_ids": list(row.tokens), "finish_reason": reason}
            found["stop_reason"] = body["stop"][0] if row.stopped else None
            found["logprobs"] = {
                "token_logprobs": _own_log_probs(model, row),
                "tokens": ["x"] * len(row.tokens),
            }
        return {"object": "text_completion", "choices": [found]}

    return answering(answer, spoil)


def sglang(model, spoil: Spoil = lambda found: found) -> Step:
    def answer(body, path):
        assert path == "/generate"
        params = body["sampling_params"]
        if params["max_new_tokens"] == 0:
            return {"text": "", "meta_info": _input_log_probs(model, body)}
        row = _drawn(model, body["input_ids"], params, params["max_new_tokens"], params["sampling_seed"])
        matched = params["stop"][0] if row.stopped else row.tokens[-1]
        stop, length = {"type": "stop", "matched": matched}, {"type": "length", "length": len(row.tokens)}
        meta = {"finish_reason": stop if row.finished else length}
        told = zip(_own_log_probs(model, row), row.tokens, strict=True)
        meta["output_token_logprobs"] = [[value, token, None] for value, token in told]
        return {"text": "not to be tokenised", "meta_info": meta}

    return answering(answer, spoil)


def _drawn(model, ids, params, limit, seed):
    greedy = params["temperature"] == 0
    stops = tuple(params.get("stop", ()))
    settings = SamplingConfig(
        temperature=params["temperature"] or 1,
        top_p=params["top_p"],
        top_k=max(params["top_k"], 0),
        max_new_tokens=limit,
        stop=stops,
    )
    given = Stops(stops, spoken) if stops else None
    assert params["stop_token_ids"] == [END]
    return sample(model, [ids], [seed], settings, 0, given, greedy=greedy)[0]


def _own_log_probs(model, row):
    """Of what was drawn, at temperature 1."""
    rows = log_softmax(model, [*row.prompt, *row.tokens])[len(row.prompt) - 1 :]
    return [float(rows[place, token]) for place, token in enumerate(row.tokens)]


def _prompt_log_probs(model, body):
    assert (body["max_tokens"], body["temperature"], body["top_p"], body["top_k"]) == (1, 1.0, 1.0, -1)
    ids, found = body["prompt"], [None]
    for token, row in zip(ids[1:], log_softmax(model, ids), strict=False):
        named = dict.fromkeys([token, *top_of(row, body["prompt_logprobs"])])
        found.append(
            {
                str(one): {
                    "logprob": max(float(row[one]), -9999.0),
                    "rank": int((row >= row[one]).sum()),
                    "decoded_token": "x",
                }
                for one in named
            }
        )
    return found


def _input_log_probs(model, body):
    assert body["return_logprob"]
    ids, start, count = body["input_ids"], body["logprob_start_len"], body["top_logprobs_num"]
    rows = log_softmax(model, ids)
    own, top = [[None, ids[start], None]], [None]
    for place in range(start + 1, len(ids)):
        row, token = rows[place - 1], ids[place]
        # As the program does: the last id is written as 0, and JSON has no -inf.
        shown = token if token < len(row) - 1 else 0
        own.append([float(row[token]) if row[token] > -math.inf else None, shown, None])
        top.append([[float(row[one]), one, None] for one in top_of(row, count)])
    found = {"input_token_logprobs": own, "prompt_tokens": len(ids)}
    return found | ({"input_top_logprobs": top} if count else {})


STUBS = {"vllm": vllm, "sglang": sglang}


def sampler(server, kind="vllm", waits=None, key=None, **settings):
    async def sleep(seconds):
        if waits is not None:
            waits.append(seconds)

    config = TokenServerConfig(server=kind, **settings)
    return RemoteSampler(
        Endpoint(server.url, "m"), config, VOCAB, [END], 2048, key=key, section="rollout", sleep=sleep
    )


def drawing(limit=6, **others):
    return SamplingConfig(max_new_tokens=limit, **others)
