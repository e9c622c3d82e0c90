"""When a request must end: at its time limit, or when the server cuts what it is still answering."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from petkit.serving.chat.errors import ChatError

Result = TypeVar("Result")


class Clock:
    """The clock of one request, which starts when it is made; make it where a loop runs.

    Args:
        seconds: until the time limit.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._cut: ChatError | None = None
        self._stop: Callable[[], None] | None = None

    def cut(self, error: ChatError) -> None:
        """End the request now, with this error."""
        self._cut = error
        if self._stop is not None:
            self._stop()

    async def within(self, work: Awaitable[Result]) -> Result:
        """Await a result in time.

        `asyncio.wait_for` of Python before 3.12 swallows a cancellation that comes with a result: an answer
        would go on after its client has gone.

        Args:
            work: to wait for; cancelled when the time is over.

        Returns:
            The result.

        Raises:
            ChatError: 504 at the time limit, or the error of a cut.
        """
        task, passed = asyncio.current_task(), False
        assert task is not None

        def stop() -> None:
            nonlocal passed
            if not passed:
                passed = True
                task.cancel()

        loop = asyncio.get_running_loop()
        timer = loop.call_soon(stop) if self._cut else loop.call_at(self._deadline, stop)
        self._stop = stop
        try:
            return await work
        except asyncio.CancelledError:
            # Others may have cancelled it too.
            if not passed or (sys.version_info >= (3, 11) and task.uncancel()):
                raise
            raise self._cut or self._late() from None
        finally:
            self._stop = None
            timer.cancel()

    async def timed(self, parts: AsyncGenerator[Result, None]) -> AsyncGenerator[Result, None]:
        """What a generator gives in time; it is closed in the end.

        Raises:
            ChatError: as `within`.
        """
        async with aclosing(parts):
            while True:
                try:
                    part = await self.within(anext(parts))
                except StopAsyncIteration:
                    return
                yield part

    def _late(self) -> ChatError:
        text = f"no answer within {self.seconds:g} s: ask for fewer tokens, or try again later"
        return ChatError(504, text, None, "timeout")
