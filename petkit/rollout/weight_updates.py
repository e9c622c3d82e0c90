"""New weights for a model behind a server: vLLM takes LoRA adapters, SGLang whole models, from a folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from petkit.errors import ConfigError, InputError
from petkit.rollout.config import TokenServerConfig
from petkit.rollout.connection import Connection, Garbled, Refused, ServerGone, Sleep, to_the_end
from petkit.rollout.endpoint import Endpoint
from petkit.rollout.token_servers import SHOWN, parse_answer

Weights = Literal["adapter", "full"]


class WeightServer(Protocol):
    """A program that loads weights while it serves."""

    @property
    def needed(self) -> str:
        """How it must have been started."""

    def url(self, endpoint: Endpoint) -> str:
        """Where the request goes."""

    def body(self, model: str, folder: Path) -> dict[str, Any]:
        """The request."""

    def check(self, answer: bytes) -> None:
        """Read an answer of status 200.

        Raises:
            Refused: it says that nothing was loaded.
            Garbled: it is none.
        """


class VllmAdapters:
    """vLLM's `/v1/load_lora_adapter` with `load_inplace`."""

    needed = "vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"

    def url(self, endpoint: Endpoint) -> str:
        """As `WeightServer` says."""
        return f"{endpoint.url}/load_lora_adapter"

    def body(self, model: str, folder: Path) -> dict[str, Any]:
        """As `WeightServer` says; what has this name already is replaced."""
        return {"lora_name": model, "lora_path": str(folder), "load_inplace": True}

    def check(self, answer: bytes) -> None:
        """Its answer is a sentence; the status says all."""


class SglangWeights:
    """SGLang's `/update_weights_from_disk`."""

    needed = "SGLang"

    def url(self, endpoint: Endpoint) -> str:
        """As `WeightServer` says; it lies beside the OpenAI-compatible API."""
        return f"{endpoint.url.removesuffix('/v1')}/update_weights_from_disk"

    def body(self, model: str, folder: Path) -> dict[str, Any]:
        """As `WeightServer` says; the server empties its cache of prompts by itself."""
        return {"model_path": str(folder)}

    def check(self, answer: bytes) -> None:
        """As `WeightServer` says."""
        found = parse_answer(answer)
        if not isinstance(found, dict) or not isinstance(found.get("success"), bool):
            raise Garbled(f"expected success: true or false, got {answer[:SHOWN]!r}")
        if not found["success"]:
            raise Refused(f"the weights were not loaded: {found.get('message')!r:.300}")


WEIGHT_SERVERS: Mapping[tuple[str, Weights], WeightServer] = {
    ("vllm", "adapter"): VllmAdapters(),
    ("sglang", "full"): SglangWeights(),
}
"""What is served by which program, to how it is replaced; other pairs cannot be while the server runs."""


class RemoteWeights:
    """The weights of a model behind a server.

    Args:
        endpoint: where it is; an adapter has the endpoint's model as its name.
        settings: which program serves it, time limits and attempts.
        weights: what is replaced; `WEIGHT_SERVERS` has the pairs that go.
        key: sent as a bearer token; never part of a message.
        section: of the recipe that the settings are from, for messages.
        sleep: waits between attempts.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: TokenServerConfig,
        weights: Weights,
        *,
        key: str | None = None,
        section: str = "served",
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.endpoint = endpoint
        self._server = WEIGHT_SERVERS[settings.server, weights]
        self._connection = Connection(endpoint, settings, key, sleep, section)

    def probe(self) -> None:
        """Ask for nothing, to learn whether the server can be asked at all; its weights stay.

        Raises:
            ConfigError: it has no such address, or wants another key.
            ServerGone: no whole answer.
        """
        # A server that knows what the request lacks refuses it.
        with suppress(Refused):
            self._post({}, lambda answer: None)

    def load(self, folder: Path) -> None:
        """Replace the weights by those of a folder, which the server must see under the same path.

        Args:
            folder: of a PEFT adapter or of a whole model.

        Raises:
            ConfigError: the server cannot be asked that, or wants another key.
            InputError: it did not load them.
            ServerGone: no whole answer, or garbled ones.
        """
        try:
            self._post(self._server.body(self.endpoint.model, folder.absolute()), self._server.check)
        except Refused as error:
            hint = f"it must see {folder.absolute()}"
            if "already been loaded" in str(error):
                hint = "it must be of a version that knows load_inplace"
            raise InputError(f"{error}: {hint}") from error

    def _post(self, body: Mapping[str, Any], read: Callable[[bytes], None]) -> None:
        url = self._server.url(self.endpoint)

        async def work() -> None:
            await self._connection.open()
            try:
                await self._connection.whole(url, body, read)
            finally:
                await self._connection.close()

        try:
            to_the_end(work())
        except (Refused, ConfigError, ServerGone):
            raise
        except InputError as error:
            raise ConfigError(f"{url} is not there: serve the student with {self._server.needed}") from error
