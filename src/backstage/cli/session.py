"""What every command takes (`--url`, `--prefix`, `--keyspaces`, `--debug`), and how its errors become one line."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import click

from backstage.client import Client
from backstage.config import RedisConfig, RedisOptions
from backstage.errors import BackstageError, RedisRefused, RedisUnavailable

_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Session:
    """Which Redis a command speaks to, as its options say; what they don't say is in the environment."""

    def __init__(self, url: str | None, prefix: str | None, keyspaces: int | None) -> None:
        self.url, self.prefix, self.keyspaces = url, prefix, keyspaces
        self.address = ""
        """Which one it is, for people, once it's known."""

    @property
    def options(self) -> RedisOptions:
        given: RedisOptions = {}
        if self.url is not None:
            given["url"] = self.url
        if self.prefix is not None:
            given["prefix"] = self.prefix
        if self.keyspaces is not None:
            given["keyspaces"] = self.keyspaces
        return given

    def client(self) -> Client:
        config = RedisConfig.from_env(**self.options)
        self.address = config.address
        return Client(config)


def connected(fn: Callable[..., None]) -> Callable[..., None]:
    """A command that speaks to Redis: gets a Session first, and fails with one line unless `--debug` is given."""

    @click.option(
        "--url", metavar="URL", help="redis://…, rediss://…, unix://…, sentinel://…, cluster://… or embedded:///folder."
    )
    @click.option("--prefix", metavar="PREFIX", help="What all keys begin with (default: backstage).")
    @click.option("--keyspaces", type=int, metavar="N", help="How many there are under the prefix (default: 1).")
    @click.option("--debug", is_flag=True, help="Show tracebacks.")
    @functools.wraps(fn)
    def command(
        *args: Any, url: str | None, prefix: str | None, keyspaces: int | None, debug: bool, **options: Any
    ) -> None:
        session = Session(url, prefix, keyspaces)
        try:
            fn(session, *args, **options)
        except BackstageError as exc:
            if debug:
                raise
            raise click.ClickException(_explain(exc, session.address)) from exc
        except click.ClickException as exc:
            if debug and exc.__cause__ is not None:
                raise exc.__cause__ from None
            raise

    return command


def _explain(error: BackstageError, address: str) -> str:
    """Away is not refused; and who has no Redis is told how to get one."""
    text = str(error).rstrip(".")
    embedded = address.startswith("embedded:")
    if not address or embedded or isinstance(error, RedisRefused) or not isinstance(error, RedisUnavailable):
        return text
    if not text.startswith("no Redis at "):
        text = f"no Redis at {address} ({text})"
    return (
        f"{text}; give an address in REDIS_URL or with --url redis://host:6379, or --url embedded:///folder "
        "for a server of your own (pip install 'backstage-sdk[embedded]')"
    )


def duration(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """For an option: `1500` (milliseconds), `1500ms`, `1.5s`, `10m`, `2h`, `1d` → whole milliseconds."""
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,15})|([0-9]{1,12}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)", value, re.ASCII)
    if found is None:
        raise click.BadParameter(f"{value!r} is no duration: write 1500 (milliseconds), 1.5s, 10m, 2h or 1d")
    bare, number, unit = found.groups()
    return int(bare) if bare else round(float(number) * _UNITS[unit])
