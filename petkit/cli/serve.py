"""`petkit serve`: one language model over OpenAI's chat API, with a router before it or not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petkit.cli import common, output
from petkit.cli.route import FilesOption, Machine, Settings
from petkit.errors import ConfigError

if TYPE_CHECKING:
    from petkit.methods.edrm.rule import Rule
    from petkit.serving.chat.app import ChatService
    from petkit.serving.chat.sources import Source

ZERO_SHOT = "zero-shot"
LIMITS_PANEL = "Limits"


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Language model as in a recipe, an adapter's folder, or http://HOST:PORT/v1#NAME: another "
            "server to stand before.",
        ),
    ],
    route: Annotated[
        str | None,
        typer.Option(
            "--route",
            metavar="ROUTER",
            help=f"Folder of a calibrated router, or {ZERO_SHOT}. Default: answer plainly.",
        ),
    ] = None,
    settings: common.SetOption = None,
    files: FilesOption = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="What clients call the model. Default: MODEL's last part."
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option("--host", metavar="HOST", help="Another than this machine's own needs PETKIT_API_KEY."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes a free one.")
    ] = 8000,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", metavar="N", min=1, help="Requests worked on together."),
    ] = 16,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", metavar="N", min=1, help="Tokens of one answer.", rich_help_panel=LIMITS_PANEL
        ),
    ] = 2048,
    max_body: Annotated[
        int,
        typer.Option(
            "--max-body", metavar="BYTES", min=1, help="Of one request.", rich_help_panel=LIMITS_PANEL
        ),
    ] = 1 << 20,
    max_queue: Annotated[
        int,
        typer.Option(
            "--max-queue",
            metavar="N",
            min=1,
            help="Requests that wait or are being answered.",
            rich_help_panel=LIMITS_PANEL,
        ),
    ] = 256,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", metavar="SECONDS", min=0.001, help="Of one request.", rich_help_panel=LIMITS_PANEL
        ),
    ] = 300.0,
    device: common.DeviceOption = "auto",
    threads: common.ThreadsOption = None,
    as_json: common.JsonFlag = False,
) -> None:
    """Serve a language model over OpenAI's chat API.

    Prints the address once clients can connect; Ctrl-C ends it. Where PETKIT_API_KEY is set, every request
    must send it.
    """
    from petkit.serving.chat.app import ChatService, Limits
    from petkit.serving.chat.server import api_key, bind, check_host, serve, url_of

    key = api_key()
    check_host(host, key)
    rule = _rule(route, Settings(settings, files))
    # The address is taken before the model is loaded, so that one in use is told at once.
    with bind(host, port) as held:
        source = _source(model, route, rule, Machine(device, threads), max_new_tokens, batch_size)
        known = name or _last_part(source.name)
        service = ChatService(source, known, rule, Limits(max_body, max_queue, timeout), key)
        serve(service, held, lambda: _ready(url_of(held, host), service, route, as_json))


def _rule(route: str | None, settings: Settings) -> Rule | None:
    """The router's rule, changed by --set; None without a router."""
    if route is None:
        if settings.settings or settings.files:
            raise ConfigError("--set and --config change a router's settings: they need --route")
        return None
    rule = settings.rule(None if route == ZERO_SHOT else Path(route))
    if not rule.config.chat_template:
        raise ConfigError("chat_template must be true: a chat server puts messages by the model's template")
    if rule.config.level != "question":
        raise ConfigError("level must be question: a server sees one question at a time, not a data set")
    return rule


def _source(
    model: str, route: str | None, rule: Rule | None, machine: Machine, max_new_tokens: int, batch_size: int
) -> Source:
    from petkit.methods.edrm.stored import check_model
    from petkit.methods.edrm.writers import LanguageModel
    from petkit.rollout.config import ServedConfig
    from petkit.serving.chat.sources import LocalSource

    writer = machine.writer(model, ServedConfig() if rule is None else rule.config.served)
    if route not in (None, ZERO_SHOT):
        check_model(Path(str(route)), writer.name, writer.sha256)
    if rule is not None:
        writer.check(rule.config)
    if isinstance(writer, LanguageModel):
        return LocalSource(writer.name, writer.model, writer.tokenizer, max_new_tokens, batch_size)
    from petkit.serving.chat.proxy import RemoteSource, upstream_key

    return RemoteSource(writer.endpoint, writer.settings, upstream_key(), max_new_tokens, batch_size)


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
