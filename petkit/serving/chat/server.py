"""The process of a server: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from petkit.errors import ConfigError, InputError
from petkit.serving.chat.app import LOCAL_HOSTS, ChatService, build_app

GRACE = 10.0
# Seconds for the errors that requests are cut with to reach their clients.
LAST_WORDS = 2
BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """Take an address, before a model is loaded for it; nobody can connect yet.

    Args:
        host: name or number.
        port: 0 takes a free one.

    Returns:
        The socket.

    Raises:
        InputError: the address is in use, or is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        held = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"--host {host} is no address: {error.strerror or error}") from error
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(address)
    except OSError as error:
        held.close()
        raise InputError(
            f"--host {host} --port {port} cannot be had: {error.strerror or error}; --port 0 takes a free one"
        ) from error
    return held


def api_key() -> str | None:
    """The key that clients must send: PETKIT_API_KEY, where it is set."""
    return os.environ.get("PETKIT_API_KEY", "").strip() or None


def check_host(host: str, key: str | None) -> None:
    """Refuse to be seen by other machines without a key.

    Raises:
        ConfigError: the host is not this machine's own, and there is no key.
    """
    if host not in LOCAL_HOSTS and not key:
        raise ConfigError(
            f"--host {host} lets other machines in: set PETKIT_API_KEY to a key that they must send, or "
            "leave --host out"
        )


def url_of(held: socket.socket, host: str) -> str:
    """The address of the API, as clients take it."""
    port = held.getsockname()[1]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


class ChatServer(uvicorn.Server):
    """Serves until a signal comes; what is being answered then has ten seconds to end, or is told so.

    Args:
        service: what is served.
        ready: called when clients can connect.
        grace: the ten seconds.
    """

    def __init__(
        self, service: ChatService, ready: Callable[[], None] = lambda: None, grace: float = GRACE
    ) -> None:
        super().__init__(
            uvicorn.Config(
                build_app(service),
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                backlog=BACKLOG,
                timeout_graceful_shutdown=math.ceil(grace) + LAST_WORDS,
            )
        )
        self.service, self.ready, self.grace = service, ready, grace
        self.ended_by: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        if self.started:
            self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the last answers, but not longer than the grace allows."""
        timer = asyncio.get_running_loop().call_later(self.grace, self.service.cut)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()
        # What is left reads nothing any more, or a second signal has come.
        tasks = tuple(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take no further request once a signal has come."""
        self.service.closing, self.ended_by = True, sig
        super().handle_exit(sig, frame)


def serve(service: ChatService, held: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM, which takes effect again once the last answer is out.

    Args:
        service: what is served.
        held: a bound socket.
        ready: called when clients can connect.
    """
    server = ChatServer(service, ready)
    try:
        server.run(sockets=[held])
    finally:
        service.source.close()
    # uvicorn raises the signal again; where it is ignored, as SIGINT is in a shell's background, it is lost.
    if server.ended_by == signal.SIGINT:
        raise KeyboardInterrupt
    if server.ended_by is not None:
        raise SystemExit(128 + server.ended_by)
