"""`petkit serve`: one language model over OpenAI's chat API, with a router before it or not."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petkit.cli import common, output
from petkit.cli.grouped import grouped
from petkit.cli.route import Machine, Settings
from petkit.errors import ConfigError

if TYPE_CHECKING:
    from petkit.methods.edrm.rule import Rule
    from petkit.methods.edrm.served import ServedModel
    from petkit.methods.edrm.writers import LanguageModel
    from petkit.rollout.config import ServedConfig
    from petkit.serving.chat.app import ChatService, Limits
    from petkit.serving.chat.sources import Source

ZERO_SHOT = "zero-shot"
NEEDS_ROUTE = "--set, --config and --probe-tokens change a router: they need --route"
# What counts for a server behind although nothing is probed.
PLAIN_KEYS = ("served.attempts", "served.connect_timeout", "served.read_timeout", "served.timeout")
LIMITS_PANEL = "Limits"
RouteOption = Annotated[
    str | None,
    typer.Option(
        "--route",
        metavar="ROUTER",
        help=f"Folder of a calibrated router, or {ZERO_SHOT}. Default: answer plainly.",
    ),
]


def _limit(flag: str, unit: str, text: str, least: float = 1) -> Any:
    """An option of the panel of limits."""
    return typer.Option(flag, metavar=unit, min=least, help=text, rich_help_panel=LIMITS_PANEL)


@dataclass(frozen=True)
class Address:
    """Where clients find the model, and by what name."""

    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="What clients call the model. Default: MODEL's last part."
        ),
    ] = None
    host: Annotated[
        str,
        typer.Option("--host", metavar="HOST", help="Another than this machine's own needs PETKIT_API_KEY."),
    ] = "127.0.0.1"
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes a free one.")
    ] = 8000


@dataclass(frozen=True)
class Capacity:
    """What the server takes at most."""

    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="Requests worked on together.")
    ] = 16
    max_new_tokens: Annotated[int, _limit("--max-new-tokens", "N", "Tokens of one answer.")] = 2048
    max_body: Annotated[int, _limit("--max-body", "BYTES", "Of one request.")] = 1 << 20
    max_queue: Annotated[int, _limit("--max-queue", "N", "Requests that wait or are being answered.")] = 256
    timeout: Annotated[float, _limit("--timeout", "SECONDS", "Of one request.", 0.001)] = 300.0

    @property
    def limits(self) -> Limits:
        """Those of the HTTP side."""
        from petkit.serving.chat.app import Limits

        return Limits(self.max_body, self.max_queue, self.timeout)


@grouped
def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Language model as in a recipe, an adapter's folder, or http://HOST:PORT/v1#NAME: another "
            "server to stand before.",
        ),
    ],
    route: RouteOption = None,
    *,
    given: Settings,
    address: Address,
    capacity: Capacity,
    machine: Machine,
    as_json: common.JsonFlag = False,
) -> None:
    """Serve a language model over OpenAI's chat API.

    Prints the address once clients can connect; Ctrl-C ends it. Where PETKIT_API_KEY is set, every request
    must send it.
    """
    from petkit.serving.chat.app import ChatService
    from petkit.serving.chat.server import api_key, bind, check_host, serve, url_of

    key = api_key()
    check_host(address.host, key)
    rule = None if route is None else _rule(route, given, capacity.max_new_tokens)
    served = _served(model, given) if rule is None else rule.config.served
    # The address is taken before the model is loaded, so that one in use is told at once.
    with bind(address.host, address.port) as held:
        source = _source(route, rule, machine.writer(model, served), capacity)
        name = address.name or _last_part(source.name)
        service = ChatService(source, name, rule, capacity.limits, key)
        serve(service, held, lambda: _ready(url_of(held, address.host), service, route, as_json))


def _served(model: str, settings: Settings) -> ServedConfig:
    """How a server behind is asked without a router; no other setting has an effect then."""
    from petkit.configuration.resolution import DEFAULT, ENVIRONMENT_PREFIX, resolve
    from petkit.methods.edrm.config import RouterConfig
    from petkit.rollout.config import ServedConfig
    from petkit.rollout.endpoint import is_endpoint

    if not is_endpoint(model):
        if any(vars(settings).values()):
            raise ConfigError(NEEDS_ROUTE)
        return ServedConfig()
    flags = {"probe_tokens": settings.probe_tokens}
    found = resolve(RouterConfig, settings.files or (), settings.settings or (), flags)
    for key, origin in found.origins.items():
        # The environment's settings are for other commands too.
        if origin != DEFAULT and not origin.startswith(ENVIRONMENT_PREFIX) and key not in PLAIN_KEYS:
            raise ConfigError(
                f"{NEEDS_ROUTE}, but for {', '.join(PLAIN_KEYS)} of a server behind, got {key} ({origin})"
            )
    return found.config.served


def _rule(route: str, settings: Settings, max_new_tokens: int) -> Rule:
    """The router's rule, changed by --set and the server's own limit."""
    rule = settings.rule(None if route == ZERO_SHOT else Path(route), max_new_tokens)
    if not rule.config.chat_template:
        raise ConfigError("chat_template must be true: a chat server puts messages by the model's template")
    if rule.config.level != "question":
        raise ConfigError("level must be question: a server sees one question at a time, not a data set")
    return rule


def _source(
    route: str | None, rule: Rule | None, writer: LanguageModel | ServedModel, capacity: Capacity
) -> Source:
    from petkit.methods.edrm.stored import check_model
    from petkit.methods.edrm.writers import LanguageModel
    from petkit.serving.chat.sources import LocalSource

    if route not in (None, ZERO_SHOT):
        check_model(Path(str(route)), writer.name, writer.sha256)
    if rule is not None:
        writer.check(rule.config)
    sizes = capacity.max_new_tokens, capacity.batch_size
    if isinstance(writer, LanguageModel):
        return LocalSource(writer.name, writer.model, writer.tokenizer, *sizes)
    from petkit.serving.chat.proxy import RemoteSource, upstream_key

    return RemoteSource(writer.endpoint, writer.settings, upstream_key(), *sizes)


def _last_part(model: str) -> str:
    """A name without the folders of this machine."""
    return Path(model).resolve().name if Path(model).exists() else model.removeprefix("hf/")


def _ready(url: str, service: ChatService, route: str | None, as_json: bool) -> None:
    """Say where the server is: on stdout with --json, else on stderr."""
    mode = "plainly" if route is None else f"routed by {route}"
    if as_json:
        content = {"url": url, "model": service.name, "route": route, "key": service.key is not None}
        print(json.dumps({"schema_version": output.SCHEMA_VERSION, **content}))
        sys.stdout.flush()
    output.log(f"{service.name} answers at {url}, {mode}; Ctrl-C ends it")
