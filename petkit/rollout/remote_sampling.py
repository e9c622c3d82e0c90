"""Completions from a model behind a server, and a teacher's log-probabilities of them, many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from petkit.errors import InputError, PetkitError
from petkit.rollout.config import SamplingConfig, TokenServerConfig
from petkit.rollout.connection import Connection, Refused, ServerGone, Sleep, to_the_end
from petkit.rollout.endpoint import Endpoint
from petkit.rollout.sampling import Completion, check_ids, check_rows, rooms_of
from petkit.rollout.token_servers import SERVERS, Draw, Scored, parse_answer

Ids = Sequence[int]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Scores:
    """What a model makes of a response's n tokens, in nats, float32 as it came.

    Args:
        log_probs: of the tokens, (n,); -inf where the model takes one for impossible.
        top_ids: the likeliest tokens in each one's place, int64 (n, top_k), the likeliest first.
        top_log_probs: theirs, (n, top_k), all finite. Rounding may lift one above 0, by 1e-4 at most.
    """

    log_probs: Tensor
    top_ids: Tensor
    top_log_probs: Tensor


class RemoteSampler:
    """A model behind vLLM or SGLang that completes prompts and scores responses, all in token ids.

    Args:
        endpoint: where it is.
        settings: which program serves it, time limits and attempts.
        vocab: how many ids the model has.
        ends: ids that end a text; the server is told.
        context: tokens that the model can hold; None leaves the limit to the server.
        key: sent as a bearer token; never part of a message.
        section: of the recipe that the settings are from, for messages.
        sleep: waits between attempts.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: TokenServerConfig,
        vocab: int,
        ends: Sequence[int] = (),
        context: int | None = None,
        *,
        key: str | None = None,
        section: str = "served",
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.endpoint, self.settings, self.vocab, self.ends = endpoint, settings, vocab, tuple(ends)
        self.context, self.section = context, section
        self._key, self._sleep = key, sleep
        self._server = SERVERS[settings.server]

    def sample(
        self,
        prompts: Sequence[Ids],
        seeds: Sequence[int],
        settings: SamplingConfig,
        prefixes: Sequence[Ids] | None = None,
        *,
        greedy: bool = False,
        log_probs: bool = False,
        advance: Callable[[int], None] = lambda count: None,
    ) -> list[Completion]:
        """Draw a completion of each prompt, as `petkit.rollout.sampling.sample` does.

        How far a seed decides is up to the server: SGLang heeds it with --enable-deterministic-inference
        alone. A stop is looked for in what is drawn, and not in what was given before it.

        Args:
            prompts: ids, at least one each.
            seeds: of the rows.
            settings: temperature, filters, stops and lengths; `batch_size` is for local models.
            prefixes: ids that each completion begins with, given and not drawn.
            greedy: take the likeliest token.
            log_probs: keep what the server says of each token that it drew; of temperature 1 where that is
                the settings'.
            advance: told how many more are done.

        Returns:
            The completions, in the order of the prompts.

        Raises:
            ConfigError: the server wants another key, or the address is none.
            InputError: a row that nothing can be drawn for, or a request that the server refuses or does not
                answer with the ids that it drew; the message names the row or the request.
            ServerGone: no whole answer to a request, or garbled ones; says how many are done and holds those.
        """
        given = list(prefixes) if prefixes is not None else [()] * len(prompts)
        check_rows(prompts, seeds, given, self.ends, self.vocab)
        rooms = rooms_of(prompts, given, settings.max_new_tokens, self.context)
        draws = [
            Draw((*prompt, *prefix), room, seed, settings, self.ends, greedy, log_probs)
            for prompt, prefix, room, seed in zip(prompts, given, rooms, seeds, strict=True)
        ]

        def read(number: int, answer: Any) -> Completion:
            found = self._server.drawn(answer, draws[number], self.vocab)
            tokens = (*given[number], *found.tokens)
            prompt = tuple(prompts[number])
            prefix = len(given[number])
            return Completion(prompt, tokens, prefix, found.finished, found.stopped, found.log_probs)

        bodies = [self._server.draw_body(self.endpoint.model, draw) for draw in draws]
        return self._all(bodies, read, advance)

    def score(
        self,
        prompts: Sequence[Ids],
        responses: Sequence[Ids],
        top_k: int = 0,
        *,
        advance: Callable[[int], None] = lambda count: None,
    ) -> list[Scores]:
        """Ask for the log-probabilities of given tokens, at temperature 1.

        Args:
            prompts: ids, at least one each.
            responses: ids after each prompt, at least one each.
            top_k: how many of the likeliest tokens to name in each place, 0 to the vocabulary's size.
            advance: told how many more are done.

        Returns:
            The scores, in the order of the prompts.

        Raises:
            ConfigError: the server wants another key, or the address is none.
            InputError: an empty prompt or response, ids or top_k out of range, a request that the server
                refuses, fewer log-probabilities than asked for, or values that are none; the message names
                the row or the request.
            ServerGone: no whole answer to a request, or garbled ones; says how many are done and holds those.
        """
        self._check_scored(prompts, responses, top_k)

        def read(number: int, answer: Any) -> Scores:
            row = prompts[number], responses[number]
            return _tensors(self._server.scored(answer, *row, top_k, self.vocab), top_k)

        rows = zip(prompts, responses, strict=True)
        bodies = [self._server.score_body(self.endpoint.model, *row, top_k) for row in rows]
        try:
            return self._all(bodies, read, advance)
        except Refused as error:
            # What vLLM says of more than 20: which is greater than max allowed.
            if "max allowed" not in str(error):
                raise
            raise InputError(f"{error}: start vLLM with --max-logprobs {top_k} or more") from error

    def _check_scored(self, prompts: Sequence[Ids], responses: Sequence[Ids], top_k: int) -> None:
        if not 0 <= top_k <= self.vocab:
            raise InputError(f"top_k must lie between 0 and {self.vocab}, got {top_k}")
        if len(prompts) != len(responses):
            raise InputError(
                f"expected one response for each of {len(prompts)} prompts, got {len(responses)}"
            )
        for name, rows in (("prompts", prompts), ("responses", responses)):
            for row, ids in enumerate(rows):
                if not len(ids):
                    raise InputError(f"{name}[{row}] must hold at least one token, got none")
                check_ids(f"{name}[{row}]", ids, self.vocab)

    def _all(
        self,
        bodies: Sequence[Mapping[str, Any]],
        read: Callable[[int, Any], Result],
        advance: Callable[[int], None],
    ) -> list[Result]:
        """Ask for all, so many at a time; the first that fails ends the others."""
        results: dict[int, Result] = {}
        waiting = iter(range(len(bodies)))
        connection = Connection(self.endpoint, self.settings, self._key, self._sleep, self.section)
        url = self._server.url(self.endpoint)

        def parsed(number: int, body: bytes) -> Result:
            return read(number, parse_answer(body))

        async def ask() -> None:
            for number in waiting:
                try:
                    results[number] = await connection.whole(url, bodies[number], partial(parsed, number))
                except PetkitError as error:
                    raise type(error)(f"request {number}: {error}") from error
                advance(1)

        async def work() -> None:
            await connection.open()
            tasks = [
                asyncio.ensure_future(ask()) for _ in range(min(self.settings.max_in_flight, len(bodies)))
            ]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await connection.close()

        try:
            to_the_end(work())
        except ServerGone as error:
            done = f"{len(results)} of {len(bodies)} requests are done"
            raise ServerGone(f"{error} ({done})", results) from error
        return [results[number] for number in range(len(bodies))]


def _tensors(scored: Scored, top_k: int) -> Scores:
    shape = len(scored.log_probs), top_k
    return Scores(
        torch.tensor(scored.log_probs, dtype=torch.float32),
        torch.tensor(scored.top_ids, dtype=torch.int64).reshape(shape),
        torch.tensor(scored.top_log_probs, dtype=torch.float32).reshape(shape),
    )
