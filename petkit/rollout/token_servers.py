"""How vLLM and SGLang are asked for token ids and log-probabilities of them, and what they answer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

from petkit.errors import InputError
from petkit.rollout.config import SamplingConfig
from petkit.rollout.connection import Garbled
from petkit.rollout.endpoint import Endpoint

Ids = Sequence[int]

# vLLM writes this for -inf, which JSON does not have.
IMPOSSIBLE = -9999.0
# Rounding may lift the log-probability of a sure token above 0.
LARGEST = 1e-4
SHOWN = 80
# A given token, its log-probability, and those of tokens by id, all as they came.
_Row: TypeAlias = tuple[int, Any, list[tuple[int, Any]]]
NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


@dataclass(frozen=True)
class Draw:
    """What to ask for: the ids to go on from, and how.

    Args:
        ids: of the prompt and of what the completion begins with.
        limit: tokens to draw at most.
        seed: of the draws.
        settings: temperature, filters and stops.
        ends: ids that end a text.
        greedy: take the likeliest token.
        log_probs: whether the answer must tell the log-probability of each token.
    """

    ids: Ids
    limit: int
    seed: int
    settings: SamplingConfig
    ends: Ids
    greedy: bool = False
    log_probs: bool = False

    @property
    def filters(self) -> dict[str, Any]:
        """Fields that both servers name alike; all are sent, since a server fills in its model's own."""
        own = self.settings
        temperature, top_p, top_k = (0.0, 1.0, 0) if self.greedy else (own.temperature, own.top_p, own.top_k)
        found = {"temperature": temperature, "top_p": top_p, "top_k": top_k or -1, **NEUTRAL}
        stops = {"stop": list(own.stop), "stop_token_ids": list(self.ends)}
        return found | {name: value for name, value in stops.items() if value}


@dataclass(frozen=True)
class Drawn:
    """Tokens that were drawn, with the one that ended the text, and what ended it."""

    tokens: tuple[int, ...]
    finished: bool
    stopped: bool
    log_probs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of given tokens (n) and of the likeliest ones there (n lists of top_k)."""

    log_probs: list[float]
    top_ids: list[list[int]]
    top_log_probs: list[list[float]]


class TokenServer(Protocol):
    """A program that serves a model: its addresses, requests and answers."""

    def url(self, endpoint: Endpoint) -> str:
        """Where requests go."""

    def draw_body(self, model: str, draw: Draw) -> dict[str, Any]:
        """A request for a completion."""

    def drawn(self, answer: Any, draw: Draw, vocab: int) -> Drawn:
        """Read its answer.

        Raises:
            InputError: an answer without token ids, or with others than can be.
            Garbled: an answer of another shape.
        """

    def score_body(self, model: str, prompt: Ids, response: Ids, top_k: int) -> dict[str, Any]:
        """A request for log-probabilities, at temperature 1."""

    def scored(self, answer: Any, prompt: Ids, response: Ids, top_k: int, vocab: int) -> Scored:
        """Read its answer.

        Raises:
            InputError: fewer log-probabilities than asked for, values that are none, or other tokens.
            Garbled: an answer of another shape.
        """


class VllmServer:
    """vLLM's `/v1/completions` with `return_token_ids` and `prompt_logprobs`."""

    def url(self, endpoint: Endpoint) -> str:
        """As `TokenServer` says."""
        return f"{endpoint.url}/completions"

    def draw_body(self, model: str, draw: Draw) -> dict[str, Any]:
        """As `TokenServer` says; older versions give ids only as the names of tokens."""
        return {
            "model": model,
            "prompt": list(draw.ids),
            "max_tokens": draw.limit,
            # What a signed integer of 64 bits holds.
            "seed": draw.seed & 0x7FFFFFFFFFFFFFFF,
            **draw.filters,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "logprobs": 0,
        }

    def drawn(self, answer: Any, draw: Draw, vocab: int) -> Drawn:
        """As `TokenServer` says."""
        choice = _choice(answer)
        _check_echo(choice.get("prompt_token_ids"), draw.ids)
        ids = choice.get("token_ids")
        if ids is None:
            ids = _named_ids(choice)
        if ids is None:
            raise InputError(
                "the server gives no ids of the tokens it drew, and tokenising its text anew can give "
                "others: serve the model with vLLM 0.10.2 or later, which knows return_token_ids"
            )
        found = _drawn(
            ids, choice.get("finish_reason"), isinstance(choice.get("stop_reason"), str), draw, vocab
        )
        told = choice.get("logprobs")
        return _told(found, told.get("token_logprobs") if isinstance(told, dict) else None, draw)

    def score_body(self, model: str, prompt: Ids, response: Ids, top_k: int) -> dict[str, Any]:
        """As `TokenServer` says."""
        return {
            "model": model,
            "prompt": [*prompt, *response],
            "max_tokens": 1,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": -1,
            **NEUTRAL,
            "prompt_logprobs": top_k,
            "return_token_ids": True,
        }

    def scored(self, answer: Any, prompt: Ids, response: Ids, top_k: int, vocab: int) -> Scored:
        """As `TokenServer` says."""
        choice, ids = _choice(answer), [*prompt, *response]
        _check_echo(choice.get("prompt_token_ids"), ids)
        listed = choice.get("prompt_logprobs")
        if listed is None:
            listed = answer.get("prompt_logprobs")
        if not isinstance(listed, list):
            raise InputError("the server gives no prompt_logprobs: serve the model with vLLM, or set sglang")
        if len(listed) != len(ids):
            raise InputError(
                f"expected log-probabilities at {len(ids)} positions, got {len(listed)} (an older vLLM "
                "leaves out what it has in its cache: start it with --no-enable-prefix-caching)"
            )
        hint = f"start vLLM with --max-logprobs {top_k} or more"
        rows = (
            self._row(one, token, place)
            for place, (one, token) in enumerate(zip(listed[len(prompt) :], response, strict=True))
        )
        return _scored(rows, top_k, vocab, hint)

    def _row(self, entries: Any, token: int, place: int) -> _Row:
        if not isinstance(entries, dict) or not all(isinstance(one, dict) for one in entries.values()):
            raise _shape(entries)
        try:
            found = {int(key): one["logprob"] for key, one in entries.items()}
        except (KeyError, ValueError):
            raise _shape(entries) from None
        if token not in found:
            raise InputError(
                f"expected the log-probability of the token {token} at place {place} of the response, got "
                f"those of {sorted(found)[:5]}"
            )
        return token, found[token], list(found.items())


class SglangServer:
    """SGLang's own `/generate`, which takes and gives token ids in every version."""

    def url(self, endpoint: Endpoint) -> str:
        """As `TokenServer` says; it lies beside the OpenAI-compatible API."""
        return f"{endpoint.url.removesuffix('/v1')}/generate"

    def draw_body(self, model: str, draw: Draw) -> dict[str, Any]:
        """As `TokenServer` says; the seed counts with --enable-deterministic-inference alone."""
        # Seeds of 31 bits fit whatever integer a version keeps them in.
        params = {"max_new_tokens": draw.limit, "sampling_seed": draw.seed & 0x7FFFFFFF, **draw.filters}
        return {"input_ids": list(draw.ids), "sampling_params": params, "return_logprob": True}

    def drawn(self, answer: Any, draw: Draw, vocab: int) -> Drawn:
        """As `TokenServer` says."""
        meta = _meta(answer)
        listed = meta.get("output_token_logprobs")
        if not isinstance(listed, list):
            raise InputError(
                "the server gives no ids of the tokens it drew (meta_info.output_token_logprobs): serve the "
                "model with SGLang, or set vllm"
            )
        reason = meta.get("finish_reason")
        if not isinstance(reason, dict):
            raise _shape(meta)
        values, ids = [_triple(one)[0] for one in listed], [_triple(one)[1] for one in listed]
        found = _drawn(ids, reason.get("type"), isinstance(reason.get("matched"), str), draw, vocab)
        return _told(found, values, draw)

    def score_body(self, model: str, prompt: Ids, response: Ids, top_k: int) -> dict[str, Any]:
        """As `TokenServer` says."""
        params = {"max_new_tokens": 0, "temperature": 1.0, "top_p": 1.0, "top_k": -1, **NEUTRAL}
        return {
            "input_ids": [*prompt, *response],
            "sampling_params": params,
            "return_logprob": True,
            # The first position has no log-probability, so that it is the prompt's last.
            "logprob_start_len": len(prompt) - 1,
            "top_logprobs_num": top_k,
        }

    def scored(self, answer: Any, prompt: Ids, response: Ids, top_k: int, vocab: int) -> Scored:
        """As `TokenServer` says."""
        meta = _meta(answer)
        listed = meta.get("input_token_logprobs")
        tops = meta.get("input_top_logprobs") if top_k else [[]] * (len(response) + 1)
        if not isinstance(listed, list):
            raise InputError(
                "the server gives no input_token_logprobs: serve the model with SGLang, or set vllm"
            )
        if not isinstance(tops, list):
            raise InputError(f"expected {top_k} log-probabilities at each position, got none")
        for found in (listed, tops):
            if len(found) != len(response) + 1:
                raise InputError(
                    f"expected log-probabilities at {len(response)} positions, got {len(found) - 1}"
                )
        hint = "ask for fewer, or serve the model with a version of SGLang that gives as many"
        rows = [
            self._row(own, tops[place + 1], response[place], place, vocab)
            for place, own in enumerate(listed[1:])
        ]
        return _scored(rows, top_k, vocab, hint)

    def _row(self, own: Any, top: Any, token: int, place: int, vocab: int) -> _Row:
        log_prob, found = _triple(own)
        # SGLang writes the last ids of a vocabulary as 0 here.
        if found != token and not (found == 0 and token >= vocab - 1):
            raise InputError(f"expected the token {token} at place {place} of the response, got {found}")
        if not isinstance(top, list):
            raise _shape(top)
        entries = [_triple(one) for one in top]
        ids = [one for _, one in entries]
        if len(set(ids)) != len(ids):
            raise InputError(f"expected different tokens at place {place} of the response, got {ids[:5]}")
        return token, log_prob, [(one, value) for value, one in entries]


SERVERS: Mapping[str, TokenServer] = {"vllm": VllmServer(), "sglang": SglangServer()}


def parse_answer(body: bytes) -> Any:
    """Read the JSON of an answer.

    Raises:
        Garbled: it is none.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Garbled(f"expected JSON, got {len(body)} bytes that end in {body[-SHOWN:]!r}") from None


def _drawn(ids: Any, reason: Any, stopped: bool, draw: Draw, vocab: int) -> Drawn:
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise _shape(ids)
    if reason not in ("stop", "length"):
        raise Garbled(f"expected a completion that ended by stop or length, got {reason!r:.{SHOWN}}")
    strange = next((token for token in ids if not 0 <= token < vocab), None)
    if strange is not None:
        raise InputError(f"expected ids from 0 to {vocab - 1}, got {strange}: the server has another model")
    if not 1 <= len(ids) <= draw.limit:
        raise InputError(f"expected 1 to {draw.limit} tokens, got {len(ids)}")
    early = next((place for place, token in enumerate(ids[:-1]) if token in draw.ends), None)
    if early is not None:
        raise InputError(
            f"expected nothing after the end token {ids[early]}, got {len(ids) - early - 1} tokens"
        )
    ended = ids[-1] in draw.ends
    if reason == "stop" and not stopped and draw.ends and not ended:
        raise InputError(
            f"expected a text that ended by itself to hold the end token ({list(draw.ends)[:5]}), got "
            f"{ids[-1]} as its last: the server ends texts at other tokens than the model here"
        )
    stopped = stopped and reason == "stop" and not ended
    return Drawn(tuple(ids), ended or reason == "stop", stopped)


def _told(found: Drawn, values: Any, draw: Draw) -> Drawn:
    """Add the log-probabilities of the tokens, where they were asked for."""
    if not draw.log_probs:
        return found
    count = len(values) if isinstance(values, list) else 0
    if count != len(found.tokens):
        raise InputError(
            f"expected log-probabilities of {len(found.tokens)} tokens that were drawn, got {count}"
        )
    own = tuple(_log_prob(value, f"at place {place}") for place, value in enumerate(values))
    if -math.inf in own:
        raise InputError(
            f"expected tokens that are possible, got one of -inf at place {own.index(-math.inf)}"
        )
    return replace(found, log_probs=own)


def _scored(rows: Iterable[_Row], top_k: int, vocab: int, hint: str) -> Scored:
    """Check log-probabilities: those of given tokens, and the entries beside them."""
    found = Scored([], [], [])
    for place, (token, own, entries) in enumerate(rows):
        where = f"at place {place} of the response"
        if len(entries) < top_k:
            raise InputError(f"expected {top_k} log-probabilities {where}, got {len(entries)}: {hint}")
        for one, _ in entries:
            if not 0 <= one < vocab:
                raise InputError(f"expected ids from 0 to {vocab - 1} {where}, got {one}")
        found.log_probs.append(_log_prob(own, where))
        # The likeliest first, and of equals the lower id; the given token may be there on top.
        entered = sorted((-_log_prob(value, where), one) for one, value in entries)
        top = entered[:top_k]
        if any(value == math.inf and ((value, one) in top or one != token) for value, one in entered):
            raise InputError(
                f"expected {top_k} tokens that are possible {where}, got some of -inf: ask for fewer, or "
                "serve the model without filters"
            )
        if math.fsum(math.exp(-value) for value, _ in top) > 1.001:
            raise InputError(f"expected probabilities that sum to at most 1 {where}, got more")
        found.top_ids.append([one for _, one in top])
        found.top_log_probs.append([-value for value, _ in top])
    return found


def _log_prob(value: Any, where: str) -> float:
    """A log-probability in nats; -inf is written in several ways, null among them."""
    if value is None or value in ("-Infinity", "-inf"):
        return -math.inf
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # Whatever is nan is not at most anything.
    if not number or not value <= LARGEST:
        raise InputError(f"expected log-probabilities of at most 0 {where}, got {value!r:.{SHOWN}}")
    return -math.inf if value <= IMPOSSIBLE else float(value)


def _choice(answer: Any) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise _shape(answer)
    return choices[0]


def _meta(answer: Any) -> dict[str, Any]:
    meta = answer.get("meta_info") if isinstance(answer, dict) else None
    if not isinstance(meta, dict):
        raise _shape(answer)
    return meta


def _triple(entry: Any) -> tuple[Any, int]:
    """A log-probability and its token, of which SGLang also gives the text."""
    if not isinstance(entry, list) or len(entry) < 2 or type(entry[1]) is not int:
        raise _shape(entry)
    return entry[0], entry[1]


def _named_ids(choice: Mapping[str, Any]) -> list[int] | None:
    """Ids from names such as token_id:17; None where names are texts."""
    names = (choice.get("logprobs") or {}).get("tokens")
    if not isinstance(names, list):
        return None
    found = [str(name).removeprefix("token_id:") for name in names if str(name).startswith("token_id:")]
    return (
        [int(one) for one in found] if len(found) == len(names) and all(map(str.isdecimal, found)) else None
    )


def _check_echo(echoed: Any, ids: Ids) -> None:
    if echoed is not None and echoed != list(ids):
        raise InputError(
            "expected the prompt's ids back as they were sent, got others: the server changes them"
        )


def _shape(found: Any) -> Garbled:
    return Garbled(
        f"expected an answer of the protocol's shape, got {json.dumps(found, default=str):.{SHOWN}}"
    )
