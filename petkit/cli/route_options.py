"""Options that the commands of `petkit route` share: settings, and what the model runs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petkit.cli import common, output
from petkit.errors import ConfigError

if TYPE_CHECKING:
    from petkit.methods.edrm.recipe import Router
    from petkit.methods.edrm.rule import Rule
    from petkit.methods.edrm.served import ServedModel
    from petkit.methods.edrm.writers import LanguageModel
    from petkit.rollout.config import ServedConfig

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Language model as in a recipe, an adapter's folder, or http://HOST:PORT/v1#NAME, a served one.",
    ),
]
DataOption = Annotated[
    list[Path] | None,
    typer.Option("--data", metavar="FILE", help="JSONL of questions; may be repeated, a data set each."),
]
QuestionOption = Annotated[str | None, typer.Option("--question", metavar="TEXT", help="One question.")]
RouterOption = Annotated[
    Path | None,
    typer.Option("--router", metavar="FOLDER", help="A calibrated router. Default: the zero-shot rule."),
]
OutOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write as well.")
]
LengthOption = Annotated[
    int | None,
    typer.Option("--max-new-tokens", metavar="N", min=1, help="Tokens of an answer (default 512)."),
]
FilesOption = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", metavar="FILE", help="YAML of settings, such as prompts."),
]
BatchOption = Annotated[
    int, typer.Option("--batch-size", metavar="N", min=1, help="Questions decoded together.")
]
SkipOption = Annotated[bool, typer.Option("--skip-bad", help="Leave faulty lines out, naming each.")]


@dataclass(frozen=True)
class Settings:
    """What changes the defaults, or a router's own settings."""

    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set one key, such as thresholds.cumulative=20; may be repeated. All keys: "
            "`petkit config schema route`.",
        ),
    ] = None
    files: FilesOption = None
    probe_tokens: Annotated[
        int | None,
        typer.Option("--probe-tokens", metavar="N", min=3, help="Tokens that are looked at (default 64)."),
    ] = None

    def rule(self, router: Path | None = None, max_new_tokens: int | None = None) -> Rule:
        """The defaults or the router's own rule, changed by --set and flags."""
        from petkit.configuration import resolve
        from petkit.methods.edrm.config import RouterConfig
        from petkit.methods.edrm.rule import Rule
        from petkit.methods.edrm.stored import read_rule, settings_file

        files = [] if router is None else [settings_file(router)]
        files += self.files or ()
        flags = {"probe_tokens": self.probe_tokens, "max_new_tokens": max_new_tokens}
        flags |= self._drawn_along(files, flags)
        config = resolve(RouterConfig, files, self.settings or (), flags).config
        return Rule(config) if router is None else read_rule(router, config)

    def _drawn_along(self, files: Sequence[Path], flags: Mapping[str, int | None]) -> dict[str, int]:
        """What one length makes of the other where that is left to its default: answers hold probes."""
        from petkit.configuration import resolve
        from petkit.methods.edrm.config import RouterConfig

        if (flags["probe_tokens"] is None) == (flags["max_new_tokens"] is None):
            return {}
        other = "probe_tokens" if flags["probe_tokens"] is None else "max_new_tokens"
        given = int(flags["max_new_tokens"] or flags["probe_tokens"] or 0)
        try:
            found = resolve(RouterConfig, files, self.settings or ())
        except ConfigError:
            # Said by whoever resolves with the flags.
            return {}
        own = getattr(found.config, other)
        fits = own <= given if other == "probe_tokens" else own >= given
        if fits or found.origins[other] != "default":
            return {}
        output.log(f"{other} is {given}, not {own}: a probe is no longer than its answer")
        return {other: given}


@dataclass(frozen=True)
class Machine:
    """What the model runs on."""

    device: common.DeviceOption = "auto"
    threads: common.ThreadsOption = None

    def router(self, model: str, rule: Rule, batch_size: int = 1, folder: Path | None = None) -> Router:
        """Load the model, and check that a router in a folder was made for it."""
        from petkit.methods.edrm.recipe import Router
        from petkit.methods.edrm.stored import check_model

        writer = self.writer(model, rule.config.served)
        if folder is not None:
            check_model(folder, writer.name, writer.sha256)
        return Router(writer, rule, batch_size)

    def writer(self, model: str, served: ServedConfig) -> LanguageModel | ServedModel:
        """The model, loaded here or behind a server."""
        from petkit.rollout.endpoint import is_endpoint

        if is_endpoint(model):
            from petkit.methods.edrm.served import served_model

            if self.device != "auto" or self.threads is not None:
                raise ConfigError("--device and --threads have no effect on a model behind a server")
            return served_model(model, served)
        from petkit.methods.edrm.writers import load_language_model
        from petkit.training import device as devices

        devices.configure(self.threads, deterministic=False)
        return load_language_model(model, devices.resolve_device(self.device))
