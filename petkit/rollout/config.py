"""How a model behind an OpenAI-compatible server is asked. Torch-free."""

from __future__ import annotations

from pydantic import Field

from petkit.configuration import Config


class ServedConfig(Config):
    """Of models that a server holds (http://HOST:PORT/v1#NAME) alone."""

    top_log_probs: int = Field(default=20, ge=1, le=1000)
    """Likeliest tokens to ask for at every token; most servers give 20 at most."""

    vocab: int = Field(default=262_144, ge=2)
    """Size of the model's vocabulary or more; the bound on an entropy's error grows with its logarithm."""

    thinking: bool = False
    """Send chat_template_kwargs.enable_thinking, as vLLM takes it: true for cot, else false."""

    attempts: int = Field(default=4, ge=1, le=20)
    """How often a request is sent when the server answers 429 or 5xx before its first token."""

    connect_timeout: float = Field(default=10.0, gt=0)
    """Seconds for connecting."""

    read_timeout: float = Field(default=120.0, gt=0)
    """Seconds between two pieces of an answer, and before its first."""

    timeout: float = Field(default=900.0, gt=0)
    """Seconds for a whole answer, all attempts at it included, whatever the server sends or does not."""
