"""What a client is told when a request cannot be served, in OpenAI's shape."""

from __future__ import annotations

from typing import Any

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class ChatError(Exception):
    """A refusal of one request.

    Args:
        status: HTTP status.
        message: what was expected, what came, what to do; one line, without a trace.
        param: the field of the request that is at fault.
        code: a name for programs.
        retry_after: seconds after which asking again makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def closing() -> ChatError:
    """The refusal of a server that is being stopped."""
    return ChatError(503, "the server is shutting down: ask another one", code="shutting_down")
