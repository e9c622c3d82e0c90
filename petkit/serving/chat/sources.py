"""Where answers come from: the part of one, what is asked for, and the model in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import jinja2
from torch import nn

from petkit.data.tokens import padding_token
from petkit.errors import ConfigError, PetkitError
from petkit.serving.chat.engine import Draw, Engine, Job
from petkit.serving.chat.errors import ChatError
from petkit.serving.chat.sampling import Sampling
from petkit.serving.chat.text import Detokenizer, TokenNames

Messages = Sequence[Mapping[str, str]]
# A template is a program that works on the conversation: it may fail as any program does.
TEMPLATE_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Ask:
    """A conversation to answer.

    Args:
        messages: the conversation.
        limit: tokens at most; None leaves it to the server's own limit.
        temperature, top_p, seed: as in a request; no temperature takes the likeliest token.
        top: alternatives to record at every token; None records no log-probabilities.
        tracked: whether the entropies are needed.
        thinking: whether the model may think first, for templates that know it; None leaves it to them.
    """

    messages: Messages
    limit: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    top: int | None = None
    tracked: bool = False
    thinking: bool | None = None


@dataclass(frozen=True)
class Part:
    """A part of an answer.

    Args:
        text: to append; empty while a character lacks bytes.
        tokens: how many were decoded for it.
        entropies: of these tokens, in nats; empty where nobody asked.
        biases: how much larger the true entropies may be; empty where they are exact.
        entries: records for `logprobs.content`.
        finish: `stop` or `length` when the answer ends here.
        prompt_tokens: of the conversation, where it is known by now.
        answer_tokens: the source's own count of all tokens, where it gives one.
    """

    text: str = ""
    tokens: int = 0
    entropies: tuple[float, ...] = ()
    biases: tuple[float, ...] = ()
    entries: tuple[Mapping[str, Any], ...] = ()
    finish: str | None = None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None


class Source(Protocol):
    """A language model that answers conversations."""

    @property
    def name(self) -> str:
        """What the model is called."""

    @property
    def max_new_tokens(self) -> int:
        """Tokens of one answer at most."""

    @property
    def thinks(self) -> bool:
        """Whether modes switch the model's thinking on and off."""

    def write(self, ask: Ask) -> AbstractAsyncContextManager[AsyncIterator[Part]]:
        """Answer; leaving the block before the end stops the model.

        Raises:
            ChatError: the conversation cannot be answered.
        """

    def close(self) -> None:
        """End every answer."""


class LocalSource:
    """The model in this process.

    Args:
        name: what it is called.
        model: a causal language model of transformers, in evaluation mode.
        tokenizer: with a chat template.
        max_new_tokens: of one answer at most.
        batch_size: conversations decoded together at most.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """

    thinks = True

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer: Any,
        max_new_tokens: int,
        batch_size: int = 16,
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(f"{name} has no chat template: a chat server needs one, use an instruct model")
        self.name, self.tokenizer, self.max_new_tokens = name, tokenizer, max_new_tokens
        self.engine = Engine(model, padding_token(tokenizer), batch_size)
        self._names = TokenNames(tokenizer)
        self._context = _context_of(model)

    def close(self) -> None:
        """End every answer, and the engine's thread."""
        self.engine.close()

    @asynccontextmanager
    async def write(self, ask: Ask) -> AsyncIterator[AsyncIterator[Part]]:
        """As `Source` says."""
        prompt = self._prompt(ask)
        events: asyncio.Queue[Draw | PetkitError] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: Draw | PetkitError) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        job = Job(
            prompt,
            self._limit(ask, len(prompt)),
            Sampling.of(ask.temperature, ask.top_p, ask.seed),
            ask.top or 0,
            tell,
        )
        try:
            self.engine.submit(job)
            yield self._parts(events, ask, len(prompt))
        finally:
            job.cancelled = True

    async def _parts(
        self, events: asyncio.Queue[Draw | PetkitError], ask: Ask, prompt_tokens: int
    ) -> AsyncIterator[Part]:
        detokenizer = Detokenizer(self.tokenizer)
        while True:
            event = await events.get()
            if isinstance(event, PetkitError):
                raise event
            text = detokenizer.add(event.token) + (detokenizer.rest() if event.finish else "")
            entropies = (event.entropy,) if ask.tracked else ()
            entries = () if ask.top is None else (self._entry(event),)
            yield Part(text, 1, entropies, (), entries, event.finish, prompt_tokens)
            if event.finish:
                return

    def _entry(self, event: Draw) -> dict[str, Any]:
        top = [self._named(token, value) for token, value in event.top]
        return {**self._named(event.token, event.log_prob), "top_logprobs": top}

    def _named(self, token: int, log_prob: float) -> dict[str, Any]:
        text, data = self._names.of(token)
        return {"token": text, "logprob": log_prob, "bytes": None if data is None else list(data)}

    def _prompt(self, ask: Ask) -> list[int]:
        options = {} if ask.thinking is None else {"enable_thinking": ask.thinking}
        try:
            rendered = self.tokenizer.apply_chat_template(
                list(ask.messages), tokenize=False, add_generation_prompt=True, **options
            )
        except TEMPLATE_FAILURES as error:
            told = " ".join(str(error).split())
            raise ChatError(
                400, f"the model's chat template refuses the messages: {told}", "messages"
            ) from None
        # What is too long is refused later, without transformers' own warning of it.
        ids = list(self.tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"])
        if not ids:
            raise ChatError(400, "the messages make no token", "messages")
        return ids

    def _limit(self, ask: Ask, prompt: int) -> int:
        room = self._context - prompt
        wanted = ask.limit or min(self.max_new_tokens, max(room, 1))
        if wanted > room:
            raise ChatError(
                400,
                f"the model takes {self._context} tokens, got {prompt} of messages and {wanted} to write",
                "messages",
                "context_length_exceeded",
            )
        return wanted


def _context_of(model: nn.Module) -> int:
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, "max_position_embeddings", None) or 2**31)
