"""A verb that is a command and has others beneath it: `petkit merge CONFIG`, `petkit merge tune`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class DefaultGroup(TyperGroup):
    """Runs `default` where the line begins with no command, and shows its options as its own."""

    default = "run"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command's name before a line that begins with no command's."""
        if not args or args[0] not in {*self.commands, *ctx.help_option_names}:
            self._refuse_misspelt(ctx, args)
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def _refuse_misspelt(self, ctx: Any, args: list[str]) -> None:
        from petkit.configuration.messages import nearest

        others = [name for name in self.commands if name != self.default]
        near = nearest(args[0], others) if args and not args[0].startswith("-") else None
        if near and not Path(args[0]).exists():
            ctx.fail(
                f"there is neither a file nor a command {args[0]}; did you mean `{ctx.command_path} {near}`?"
            )

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The default command's help, and the other commands' names."""
        default = self.commands[self.default]
        shown = copy.copy(self)
        shown.help, shown.params = default.help, [*default.params, *self.params]
        shown.commands = {name: one for name, one in self.commands.items() if name != self.default}
        shown.subcommand_metavar = ""
        super(DefaultGroup, shown).format_help(ctx, formatter)


def app_with_default(
    command: Callable[..., None],
    summary: str,
    kind: type[TyperCommand] | None = None,
    **others: Callable[..., None],
) -> typer.Typer:
    """A verb with a command of its own.

    Args:
        command: what the verb does by itself.
        summary: of the verb.
        kind: class of the verb's own command, where it parses in a way of its own.
        others: commands beneath it, by name.

    Returns:
        The verb's app.
    """
    app = typer.Typer(cls=DefaultGroup, help=summary, add_completion=False, no_args_is_help=False)
    app.command(DefaultGroup.default, cls=kind, hidden=True)(command)
    for name, other in others.items():
        app.command(name)(other)
    return app
