"""The group of all commands: each is imported when it is asked for, and every error is one line."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

from backstage.cli.table import printable


class Commands(click.Group):
    """A group whose commands live in modules of their own (name → `module:attribute`)."""

    def __init__(self, *args: Any, commands_in: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._commands_in = commands_in

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._commands_in)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._commands_in:
            return None
        module, attribute = self._commands_in[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run and exit: 0, 1 for an error, 2 for a wrong command line."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            status = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.UsageError as exc:
            hint = f" (see: {exc.ctx.command_path} --help)" if exc.ctx is not None else ""
            _fail(f"{exc.format_message().rstrip('.')}{hint}", exc.exit_code)
        except click.ClickException as exc:
            _fail(exc.format_message(), exc.exit_code)
        except click.Abort:
            _fail("interrupted", 130)
        sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"Error: {printable(' '.join(message.split()))}", err=True)
    sys.exit(status)


def _version(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    if not asked:
        return
    try:
        version = importlib.metadata.version("backstage-sdk")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        version = "unknown"
    click.echo(f"backstage, version {version}")
    ctx.exit()


@click.group(
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    commands_in={
        "worker": "backstage.cli.run:worker",
        "scheduler": "backstage.cli.run:scheduler",
        "enqueue": "backstage.cli.enqueue:enqueue",
        "info": "backstage.cli.info:info",
        "dead": "backstage.cli.dead:dead",
        "doctor": "backstage.cli.doctor:doctor",
        "demo": "backstage.cli.demo.command:demo",
    },
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def main() -> None:
    """Background jobs on Redis Streams.

    Redis is found by --url of each command, else by REDIS_URL, or by REDIS_HOST and its fellows.

    \b
    Examples:
      backstage worker app:worker
      backstage enqueue email.send '{"to": "ada@example.com"}'
      backstage info --watch
      backstage dead retry default
    """
