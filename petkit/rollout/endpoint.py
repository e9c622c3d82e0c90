"""The address of a model behind an OpenAI-compatible server, and the key for it. Standard library only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from petkit.errors import ConfigError

KEY_VARIABLES = ("PETKIT_API_KEY", "OPENAI_API_KEY")
SCHEMES = ("http://", "https://")
# What a server of petkit's sends with an answer whose mode it chose.
MODE_HEADER = "x-petkit-mode"


@dataclass(frozen=True)
class Endpoint:
    """Where a served model is, and what the server calls it."""

    url: str
    model: str

    @property
    def sha256(self) -> str:
        """What a router is bound to: the name, since a server does not show its weights."""
        return hashlib.sha256(f"served:{self.model}".encode()).hexdigest()


def is_endpoint(model: str) -> bool:
    """Whether a model's name is the address of a served one."""
    return model.startswith(SCHEMES)


def parse_endpoint(text: str) -> Endpoint:
    """Read `http://HOST:PORT/v1#NAME`.

    Args:
        text: the address of the API and, after #, the model's name there.

    Returns:
        The endpoint.

    Raises:
        ConfigError: another form, or a password in it.
    """
    url, _, model = text.partition("#")
    try:
        parts = urlsplit(url)
        # A port out of range shows only when it is asked for.
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        has_host = False
    if not has_host or not model.strip() or parts.query:
        raise ConfigError(f"a served model must be http://HOST:PORT/v1#NAME, got {text!r:.200}")
    if "@" in parts.netloc:
        raise ConfigError("the address of a served model must hold no password: set PETKIT_API_KEY")
    return Endpoint(url.rstrip("/"), model)


def api_key(variables: Sequence[str] = KEY_VARIABLES) -> str | None:
    """The key for servers, from the first of the environment's variables that is set."""
    found = (os.environ.get(name, "").strip() for name in variables)
    return next((value for value in found if value), None)
