"""The request of a chat completion: every field that is taken, and a refusal of every other."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from petkit.configuration.messages import shown
from petkit.data.jsonl import HALF_PAIR
from petkit.serving.chat.errors import ChatError

MAX_STOPS = 4
MAX_TOP = 20
SHOWN = 60
# Names that pydantic gives to the arms of a union, in the place of a fault.
ARMS = re.compile(r"str|list\[.*|function-after\[.*")
EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    # No list is bounded but those that must have an entry, and those that may not.
    "too_short": "a list that is not empty",
    "too_long": "empty",
}
BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _check_text(text: str) -> str:
    """JSON can hold halves of a surrogate pair, which no tokenizer takes."""
    if HALF_PAIR.search(text):
        raise ValueError("must be a text of whole characters, without half of a surrogate pair")
    return text


Text = Annotated[str, AfterValidator(_check_text)]


class TextPart(_Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(_Strict):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)

    def plain(self) -> dict[str, str]:
        """As chat templates know it; they call what developers say the system's."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.text}


class StreamOptions(_Strict):
    """How a stream is written."""

    include_usage: bool = False


class TemplateOptions(_Strict):
    """Passed on to the chat template; vLLM's name for it."""

    enable_thinking: bool | None = None


class ResponseFormat(_Strict):
    """The form of the answer."""

    type: Literal["text"]


class ChatRequest(_Strict):
    """A request; a field that is null counts as absent.

    Fields whose other values petkit cannot serve take the one that changes nothing, so that clients which
    always send it are served; any other value is refused by name. `user`, `metadata`, `store` and
    `service_tier` say nothing about the answer and are passed over.
    """

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP)
    chat_template_kwargs: TemplateOptions | None = None

    n: Literal[1] | None = None
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    logit_bias: dict[str, float] | None = Field(default=None, max_length=0)
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = Field(default=None, max_length=0)
    tool_choice: Literal["none"] | None = None

    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > MAX_STOPS or not all(stops):
            raise ValueError(f"must be up to {MAX_STOPS} texts that are not empty")
        return value

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def limit(self) -> int | None:
        """Tokens of the answer at most, where the request says it."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        """Alternatives to name at every token; None leaves log-probabilities out."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def conversation(self) -> list[dict[str, str]]:
        """The messages as chat templates know them."""
        return [message.plain() for message in self.messages]


def parse_request(body: bytes) -> ChatRequest:
    """Read the body of a request.

    Args:
        body: JSON.

    Returns:
        The request.

    Raises:
        ChatError: 400, which names the field at fault.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise ChatError(400, "the body must be JSON in UTF-8", code="invalid_json") from None
    try:
        request = ChatRequest.model_validate(content)
    except ValidationError as error:
        raise _refusal(error) from None
    _check_together(request)
    return request


def _check_together(request: ChatRequest) -> None:
    if request.max_tokens and request.max_completion_tokens:
        raise ChatError(
            400, "max_tokens and max_completion_tokens exclude each other", "max_completion_tokens"
        )
    if request.top_logprobs is not None and not request.logprobs:
        raise ChatError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    if request.stream_options and not request.stream:
        raise ChatError(400, "stream_options needs stream: true", "stream_options")
    last = next((one for one in reversed(request.messages) if one.role == "user"), None)
    if last is not None and not last.text.strip():
        raise ChatError(400, "the last user message must hold a text that is not empty", "messages")


def _refusal(error: ValidationError) -> ChatError:
    """The first fault; of a field with several forms, that in the form that came, else all that are taken."""
    faults = error.errors(include_url=False)
    field = _field(faults[0]["loc"])
    inside = [fault for fault in faults if _field(fault["loc"]).startswith((f"{field}[", f"{field}."))]
    if field and inside:
        field = _field(inside[0]["loc"])
    own = [fault for fault in faults if _field(fault["loc"]) == field]
    # A value that came in a form that is taken, and is at fault for what it holds, needs no other form.
    own = [fault for fault in own if fault["type"] == "value_error"] or own
    kind = own[0]["type"]
    if kind == "extra_forbidden":
        message = f"unknown field {field}: petkit does not know what it asks for, leave it out"
        return ChatError(400, message, field, "unknown_field")
    if kind == "missing":
        return ChatError(400, f"the field {field} is missing", field, "missing_field")
    expected = " or ".join(dict.fromkeys(map(_expected, own)))
    got = shown(own[0]["input"]).encode("ascii", "backslashreplace").decode()
    return ChatError(400, f"{field or 'the body'} must be {expected}, got {got}", field or None)


def _expected(fault: ErrorDetails) -> str:
    context, kind = fault.get("ctx", {}), fault["type"]
    if kind == "value_error":
        return str(context["error"]).removeprefix("must be ")
    if kind == "literal_error":
        return str(context["expected"])
    if kind in BOUNDS:
        name, words = BOUNDS[kind]
        return f"{words} {context[name]:g}"
    return EXPECTED.get(kind, f"valid ({fault['msg'][:1].lower()}{fault['msg'][1:]})")


def _field(place: tuple[int | str, ...]) -> str:
    """`messages[0].content` of a fault's place; a name that the client made up is cut and escaped."""
    text = ""
    for step in place:
        if isinstance(step, int):
            text += f"[{step}]"
        elif not ARMS.fullmatch(step):
            name = ascii(step[:SHOWN])[1:-1]
            text += f".{name}" if text else name
    return text
