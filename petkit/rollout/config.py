"""How a model is sampled, and how one behind an OpenAI-compatible server is asked. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from petkit.configuration import Config


def none_empty(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse texts that would end every answer at once.

    Raises:
        ValueError: one is empty.
    """
    if not all(texts):
        raise ValueError(f"must hold texts that are not empty, got {list(texts)}")
    return texts


class SamplingConfig(Config):
    """How completions are drawn."""

    temperature: float = Field(default=1.0, ge=1e-6, le=1e6)
    """Logits are divided by it; above 1 draws are wilder, towards 0 they go to the likeliest token."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the likeliest tokens whose probabilities first reach this sum; 1 keeps all."""

    top_k: int = Field(default=0, ge=0)
    """Draw from so many of the likeliest tokens; 0 keeps all."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Tokens of a completion at most, those that were given as its beginning included."""

    stop: tuple[str, ...] = ()
    """Texts that end a completion, besides the model's own end."""

    batch_size: int = Field(default=16, ge=1)
    """Completions written together by a local model."""

    @field_validator("stop")
    @classmethod
    def _has_text(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return none_empty(value)


class ConnectionConfig(Config):
    """Time limits and attempts of requests to a server."""

    attempts: int = Field(default=4, ge=1, le=20)
    """How often a request is sent when the server answers 429 or 5xx before its first token."""

    connect_timeout: float = Field(default=10.0, gt=0)
    """Seconds for connecting."""

    read_timeout: float = Field(default=120.0, gt=0)
    """Seconds between two pieces of an answer, and before its first."""

    timeout: float = Field(default=900.0, gt=0)
    """Seconds for a whole answer, all attempts at it included, whatever the server sends or does not."""


class ServedConfig(ConnectionConfig):
    """Of models that a server holds (http://HOST:PORT/v1#NAME) alone."""

    top_log_probs: int = Field(default=20, ge=1, le=1000)
    """Likeliest tokens to ask for at every token; most servers give 20 at most."""

    vocab: int = Field(default=262_144, ge=2)
    """Size of the model's vocabulary or more; the bound on an entropy's error grows with its logarithm."""

    thinking: bool = False
    """Send chat_template_kwargs.enable_thinking, as vLLM takes it: true for cot, else false."""


class TokenServerConfig(ConnectionConfig):
    """Of models that a server holds (http://HOST:PORT/v1#NAME) and that write or score token ids."""

    server: Literal["vllm", "sglang"] = "vllm"
    """Which program serves: vllm is asked by /v1/completions, sglang by its own /generate."""

    max_in_flight: int = Field(default=32, ge=1, le=4096)
    """Requests that wait for their answers at the same time, at most."""

    attempts: int = Field(default=4, ge=1, le=20)
    """How often a request is sent when the server answers 429 or 5xx, or the connection breaks."""
