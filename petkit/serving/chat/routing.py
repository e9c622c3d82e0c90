"""One request from its messages to the parts of its answer: probe, choose a mode, answer in it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from petkit.methods.edrm.algorithm import Descriptors, Mode
from petkit.methods.edrm.rule import Rule
from petkit.rollout.entropy import bias_summary
from petkit.serving.chat.errors import ChatError
from petkit.serving.chat.requests import ChatRequest
from petkit.serving.chat.sources import Ask, Part, Source
from petkit.serving.chat.text import StopFilter

PLAIN_REASON = "plain serving: no router"


@dataclass(frozen=True)
class Choice:
    """How a request is answered, and why."""

    mode: Mode
    reason: str
    regime: str | None = None
    descriptors: Mapping[str, float] | None = None


@dataclass
class Tally:
    """What a request has cost so far."""

    prompt_tokens: int = 0
    probe_tokens: int = 0
    """Tokens that were looked at to decide."""

    dropped_tokens: int = 0
    """Those of the probe that are no part of the answer."""

    answer_tokens: int = 0
    biases: list[float] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """All tokens that were decoded for the request."""
        return self.dropped_tokens + self.answer_tokens


class Cut:
    """Cuts an answer's parts before the first of some texts.

    A part whose text may begin such a text waits as a whole: its records go out with its text, so that who
    reads them never gets text without records.

    Args:
        stops: the texts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._filter, self._free, self._waiting = StopFilter(stops), "", list[Part]()

    @property
    def hit(self) -> bool:
        """Whether the answer ended before one of the texts."""
        return self._filter.hit

    def add(self, part: Part) -> list[Part]:
        """Take a part.

        Returns:
            The parts that are certain now; with a hit, the last one, which ends the answer.
        """
        self._waiting.append(part)
        self._free += self._filter.add(part.text) + (self._filter.rest() if part.finish else "")
        if self.hit:
            records = tuple(entry for one in self._waiting for entry in one.entries)
            return [replace(part, text=self._free, entries=records, finish="stop")]
        ready = []
        while self._waiting and len(self._waiting[0].text) <= len(self._free):
            ready.append(self._waiting.pop(0))
            self._free = self._free[len(ready[-1].text) :]
        return ready


class Exchange:
    """A request on its way; `decision` and `tally` are known once the parts have come.

    Args:
        source: that answers.
        request: to answer.
        rule: prompts, and what decides; None answers plainly.

    Raises:
        ChatError: the request asks for more than the source gives, or has no question to route.
    """

    def __init__(self, source: Source, request: ChatRequest, rule: Rule | None) -> None:
        self.source, self.request, self.rule = source, request, rule
        self.decision, self.tally = Choice("standard", PLAIN_REASON), Tally()
        limit = source.max_new_tokens
        if request.limit is not None and request.limit > limit:
            field = "max_tokens" if request.max_tokens else "max_completion_tokens"
            raise ChatError(400, f"{field} must be at most {limit}, got {request.limit}", field)
        if rule is not None and request.messages[-1].role != "user":
            raise ChatError(
                400, "the last message must be the user's: it is the one that is routed", "messages"
            )

    async def parts(self) -> AsyncGenerator[Part, None]:
        """The answer's parts, cut before the first stop; the last one has a `finish`."""
        cut = Cut(self._stops)
        async with aclosing(self._answer()) as parts:
            async for part in parts:
                self._count(part)
                for ready in cut.add(part):
                    yield ready
                if cut.hit:
                    return

    def _answer(self) -> AsyncGenerator[Part, None]:
        if self.rule is None:
            return self._written(self._ask(self.request.conversation, self._thinking))
        limit = self.request.limit or self.source.max_new_tokens
        probe = self.rule.config.probe_tokens
        if limit < probe:
            reason = f"{limit} tokens leave no room for a probe of {probe}"
            self.decision = Choice("standard", reason)
            return self._written(self._ask(self._messages("standard"), self._think("standard")))
        return self._routed(self.rule)

    async def _routed(self, rule: Rule) -> AsyncGenerator[Part, None]:
        own = self._ask(self._messages("standard"), self._think("standard"))
        probe = replace(own, temperature=None, top_p=None, seed=None, tracked=True)
        async with self.source.write(probe) as parts:
            held = await self._probed(parts, rule)
            # What was decoded greedily is the beginning of the answer only where that is to be greedy too.
            if self.decision.mode == "standard" and not own.temperature:
                for part in held:
                    yield part
                if not held[-1].finish:
                    async for part in parts:
                        yield part
                return
        self.tally.dropped_tokens = sum(part.tokens for part in held)
        mode = self.decision.mode
        async with aclosing(self._written(self._ask(self._messages(mode), self._think(mode)))) as answer:
            async for part in answer:
                yield part

    async def _probed(self, parts: AsyncIterator[Part], rule: Rule) -> list[Part]:
        held: list[Part] = []
        entropies: list[float] = []
        stops = StopFilter(self._stops)
        async for part in parts:
            held.append(part)
            entropies += part.entropies
            self.tally.biases += part.biases
            stops.add(part.text)
            if len(entropies) >= rule.config.probe_tokens or part.finish or stops.hit:
                break
        looked_at = entropies[: rule.config.probe_tokens]
        self.decision, self.tally.probe_tokens = decide(looked_at, rule), len(looked_at)
        return held

    async def _written(self, ask: Ask) -> AsyncGenerator[Part, None]:
        async with self.source.write(ask) as parts:
            async for part in parts:
                yield part

    def _count(self, part: Part) -> None:
        self.tally.answer_tokens = (
            self.tally.answer_tokens + part.tokens if part.answer_tokens is None else part.answer_tokens
        )
        if part.prompt_tokens is not None:
            self.tally.prompt_tokens = part.prompt_tokens

    def _ask(self, messages: Sequence[Mapping[str, str]], thinking: bool | None) -> Ask:
        own = self.request
        return Ask(
            messages,
            own.limit,
            own.temperature,
            own.top_p,
            own.seed,
            own.top,
            thinking=thinking,
        )

    @property
    def _stops(self) -> list[str]:
        """What ends the answer: the request's texts, and those that the router was calibrated with."""
        return [*self.request.stops, *(() if self.rule is None else self.rule.config.stop)]

    @property
    def _thinking(self) -> bool | None:
        options = self.request.chat_template_kwargs
        return None if options is None else options.enable_thinking

    def _think(self, mode: Mode) -> bool | None:
        """What the request says, or as the router was calibrated: thinking belongs to step by step."""
        own = (mode == "cot") if self.source.thinks else None
        return own if self._thinking is None else self._thinking

    def _messages(self, mode: Mode) -> list[dict[str, str]]:
        """The conversation with its last message put as the mode has it."""
        assert self.rule is not None
        prompts, conversation = self.rule.config.prompts, self.request.conversation
        last = conversation[-1]
        text = getattr(prompts, mode).replace("{question}", last["content"])
        messages = [*conversation[:-1], {**last, "content": text}]
        if prompts.system and all(one["role"] != "system" for one in messages):
            messages.insert(0, {"role": "system", "content": prompts.system})
        return messages


def decide(entropies: Sequence[float], rule: Rule) -> Choice:
    """Choose a mode by the entropies of a probe.

    Args:
        entropies: in nats.
        rule: that decides.

    Returns:
        The mode, its reason and where the trajectory lies.
    """
    (found,) = rule.explained([{"id": "", "entropies": list(entropies)}])
    point = {name: found[name] for name in Descriptors._fields}
    return Choice(found["decision"], found["reason"], found["regime"], point)


def told(exchange: Exchange) -> dict[str, Any]:
    """The `petkit` object of a response.

    Args:
        exchange: whose parts have come.

    Returns:
        `mode`, `reason`, `regime`, `descriptors`, `probe_tokens` and `tokens`; with a server behind this one
        also `entropy_bias`, the bounds on the entropies' error.
    """
    decision, tally = exchange.decision, exchange.tally
    found: dict[str, Any] = {
        "mode": decision.mode,
        "reason": decision.reason,
        "regime": decision.regime,
        "descriptors": None if decision.descriptors is None else dict(decision.descriptors),
        "probe_tokens": tally.probe_tokens,
        "tokens": tally.tokens,
    }
    if tally.biases:
        found["entropy_bias"] = bias_summary(tally.biases)
    return found
