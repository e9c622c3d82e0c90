"""A model behind an OpenAI-compatible server as a writer: a probe is the beginning of a stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from petkit.errors import ConfigError, PetkitError
from petkit.methods.edrm.config import RouterConfig
from petkit.methods.edrm.writers import Keep, Progress, Prompt
from petkit.rollout.config import ServedConfig
from petkit.rollout.endpoint import Endpoint, api_key, parse_endpoint
from petkit.rollout.entropy import Trajectory
from petkit.rollout.remote import RemoteModel, TokenUncertainty, check_entries, uncertainty
from petkit.rollout.sse import Piece

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class ServedBegun:
    """The beginning of an answer, or all of it."""

    trajectory: Trajectory
    cost: int
    finished: bool
    whole: tuple[str, int] | None = None
    """Text and tokens of the answer where it was read to its end."""


@dataclass(frozen=True)
class ServedModel:
    """A writer over HTTP; it renders no template and loads no weights."""

    endpoint: Endpoint
    settings: ServedConfig
    key: str | None = None

    @property
    def name(self) -> str:
        """What the server calls the model."""
        return self.endpoint.model

    @property
    def sha256(self) -> str:
        """Of the name, since a server does not show its weights."""
        return self.endpoint.sha256

    @property
    def measured_by(self) -> str:
        """The name, and by how many alternatives its entropies are estimated."""
        return f"{self.sha256} top {self.settings.top_log_probs}"

    def check(self, config: RouterConfig) -> None:
        """As `Writer` says."""
        if not config.chat_template:
            raise ConfigError("chat_template must be true: a server puts messages by the model's template")

    def begin(
        self, prompts: Sequence[Prompt], config: RouterConfig, keep: Keep, batch_size: int, advance: Progress
    ) -> list[ServedBegun]:
        """As `Writer` says; what is wanted whole is read on from the same stream."""

        async def one(model: RemoteModel, prompt: Prompt) -> ServedBegun:
            return await _begin(model, prompt, config, keep)

        found = self._all(prompts, one, batch_size, advance)
        _tell_bias([one.trajectory for one in found])
        return found

    def finish(
        self,
        prompts: Sequence[Prompt],
        begun: Sequence[ServedBegun],
        config: RouterConfig,
        batch_size: int,
        advance: Progress,
    ) -> list[tuple[str, int]]:
        """As `Writer` says; an answer whose stream was closed is asked for anew, and costs its probe too."""
        rows = [row for row, one in enumerate(begun) if one.whole is None]
        advance(len(prompts) - len(rows))
        more = self.write([prompts[row] for row in rows], config, batch_size, advance)
        found = {row: one.whole for row, one in enumerate(begun) if one.whole is not None}
        for row, (text, tokens) in zip(rows, more, strict=True):
            found[row] = (text, tokens + begun[row].cost)
        return [found[row] for row in range(len(prompts))]

    def write(
        self, prompts: Sequence[Prompt], config: RouterConfig, batch_size: int, advance: Progress
    ) -> list[tuple[str, int]]:
        """As `Writer` says."""

        async def one(model: RemoteModel, prompt: Prompt) -> tuple[str, int]:
            return await _write(model, prompt, config)

        return self._all(prompts, one, batch_size, advance)

    def _all(
        self,
        prompts: Sequence[Prompt],
        one: Callable[[RemoteModel, Prompt], Awaitable[Result]],
        batch_size: int,
        advance: Progress,
    ) -> list[Result]:
        """Ask for all prompts, so many at a time; the first that fails ends the others."""

        async def work() -> list[Result]:
            places = asyncio.Semaphore(batch_size)

            async def named(model: RemoteModel, prompt: Prompt) -> Result:
                async with places:
                    try:
                        found = await one(model, prompt)
                    except PetkitError as error:
                        raise type(error)(f"{prompt.name}: {error}") from error
                advance(1)
                return found

            async with RemoteModel(self.endpoint, self.settings, self.key) as model:
                tasks = [asyncio.ensure_future(named(model, prompt)) for prompt in prompts]
                try:
                    return await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

        return asyncio.run(work()) if prompts else []


def served_model(text: str, settings: ServedConfig) -> ServedModel:
    """A writer for `http://HOST:PORT/v1#NAME`, with the key of the environment.

    Raises:
        ConfigError: the address has another form.
    """
    return ServedModel(parse_endpoint(text), settings, api_key())


def _fields(prompt: Prompt, config: RouterConfig, settings: ServedConfig, top: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"temperature": 0, "logprobs": True}
    if config.stop:
        fields["stop"] = list(config.stop)
    if top:
        fields["top_logprobs"] = top
    if settings.thinking:
        fields["chat_template_kwargs"] = {"enable_thinking": prompt.thinking}
    return fields


async def _begin(model: RemoteModel, prompt: Prompt, config: RouterConfig, keep: Keep) -> ServedBegun:
    settings, length = model.settings, config.probe_tokens
    fields = _fields(prompt, config, settings, settings.top_log_probs)
    found: list[TokenUncertainty] = []
    read = _Answer()
    async with model.stream(prompt.messages, config.max_new_tokens, True, **fields) as pieces:
        async for piece in pieces:
            check_entries(piece, read.entries, model.endpoint.url)
            found += [uncertainty(entry, settings.vocab) for entry in piece.entries]
            read.add(piece)
            if len(found) >= length:
                break
        trajectory = _trajectory(found[:length])
        cost, finished = read.entries, read.finish is not None and len(found) <= length
        if not keep(trajectory):
            return ServedBegun(trajectory, cost, finished, read.whole() if finished else None)
        async for piece in pieces:
            check_entries(piece, read.entries, model.endpoint.url)
            read.add(piece)
    return ServedBegun(trajectory, cost, finished, read.whole())


async def _write(model: RemoteModel, prompt: Prompt, config: RouterConfig) -> tuple[str, int]:
    read = _Answer()
    fields = _fields(prompt, config, model.settings, 0)
    async with model.stream(prompt.messages, config.max_new_tokens, **fields) as pieces:
        async for piece in pieces:
            check_entries(piece, read.entries, model.endpoint.url)
            read.add(piece)
    return read.whole()


class _Answer:
    """What came of an answer so far."""

    def __init__(self) -> None:
        self.text, self.entries = "", 0
        self.finish: str | None = None
        self.usage: int | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.entries += len(piece.entries)
        self.finish = piece.finish or self.finish
        if piece.usage:
            self.usage = piece.usage.get("completion_tokens")

    def whole(self) -> tuple[str, int]:
        return self.text.strip(), self.entries if self.usage is None else int(self.usage)


def _trajectory(found: Sequence[TokenUncertainty]) -> Trajectory:
    return Trajectory(
        tuple(one.entropy for one in found),
        tuple(one.varentropy for one in found),
        tuple(one.max_prob for one in found),
        tuple(one.bias for one in found),
    )


def _tell_bias(trajectories: Sequence[Trajectory]) -> None:
    biases = [value for one in trajectories for value in one.bias]
    if biases:
        log.info(
            "entropies are estimates: the true ones are larger by %.3g nats at most, %.3g on average "
            "over all tokens",
            max(biases),
            sum(biases) / len(biases),
        )
