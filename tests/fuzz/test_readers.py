"""Those who look at what stands in Redis: the Inspector and the command line. Nothing there makes them fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import click.testing
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from backstage import Client, Inspector
from backstage.cli import main
from backstage.errors import BackstageError
from fuzz.evil import PAYLOADS, TEXTS, raws, texts
from support import profiles
from support.server import Server

FIELDS = [b"taskName", b"payload", b"raw", b"jobId", b"originalId", b"deliveryCount", b"deadLetteredAt", b"queue",
          b"reason", b"error", b"traceback", b"attempt", b"enqueuedAt", b"backoff", b""]  # fmt: skip
pairs = st.tuples(st.one_of(st.sampled_from(FIELDS), raws), raws)
SMALL = [payload for payload in PAYLOADS if len(payload) < 100]
small = st.one_of(st.sampled_from(SMALL), st.binary(max_size=20), texts.map(lambda t: t.encode(errors="surrogatepass")))


@pytest.fixture
def raw(server: Server) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=server.socket) as client:
        yield client


def bury(raw: redis.Redis, prefix: str, fields: list[tuple[bytes, bytes]]) -> None:
    """A dead-letter entry of these fields."""
    flat = [part for pair in fields for part in pair]
    raw.execute_command("XADD", f"{prefix}:default:dead-letter", "*", *flat)


def cli(*args: str, input: str | bytes = "", status: tuple[int, ...] = (0, 1, 2)) -> click.testing.Result:
    """A command. It ends by itself, shows no traceback, and nothing that would move a terminal's cursor."""
    result = click.testing.CliRunner().invoke(main, args, input=input, prog_name="backstage")
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in status, result.output
    assert "Traceback" not in result.stderr
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\x1b]", result.output), result.output
    if result.exit_code and not result.stdout:  # `doctor` has found something
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    return result


def test_dead_letters(raw: redis.Redis, url: str, prefix: str) -> None:
    """Whatever stands in one is shown, and put back or left; all of it can be deleted."""

    async def look() -> None:
        async with Client(url=url, prefix=prefix) as client:
            inspector = Inspector(client)
            found = await inspector.dead("default")
            repr(found)
            assert (await inspector.queues())["default"].dead == len(found)
            left = len(found) - await inspector.retry("default")
            assert await inspector.purge("default") == left

    @profiles.examples(60)
    @given(st.lists(st.lists(pairs, min_size=1, max_size=6), min_size=1, max_size=5))
    def throw(thrown: list[list[tuple[bytes, bytes]]]) -> None:
        for fields in thrown:
            bury(raw, prefix, fields)
        asyncio.run(look())

    throw()


def test_dead_letters_on_the_command_line(raw: redis.Redis, url: str, prefix: str) -> None:
    """In a table, in full and as JSON."""
    where = ("--url", url, "--prefix", prefix)
    for payload in PAYLOADS:
        bury(raw, prefix, [(name, payload) for name in FIELDS])
    for text in TEXTS:
        bury(raw, prefix, [(name, text.encode(errors="surrogatepass")) for name in FIELDS])
    n = len(PAYLOADS) + len(TEXTS)
    cli("dead", "list", *where, status=(0,))
    cli("dead", "list", "default", "--limit", "1000", "--full", *where, status=(0,))
    lines = cli("dead", "list", "default", "--limit", "1000", "--json", *where, status=(0,)).stdout.strip().split("\n")
    assert len([json.loads(line) for line in lines]) == n
    cli("info", *where, status=(0,))
    cli("dead", "retry", "default", *where, status=(0,))
    cli("dead", "purge", "default", "--yes", *where, status=(0,))


def test_keys_of_others(raw: redis.Redis, url: str, prefix: str) -> None:
    """Queues, workers and members with odd names, scores and types are listed or passed over."""
    where = ("--url", url, "--prefix", prefix)
    for text in set(TEXTS) - {"workers", "retries", "scheduled"}:  # these are keys of ours
        name = text.encode(errors="surrogatepass")
        raw.xadd(prefix.encode() + b":" + name, {b"a": b"b"})
        raw.zadd(f"{prefix}:workers", {name + b"~1": 1e300, name: float("inf"), name + b"~2": -1.5})
        raw.hset(f"{prefix}:workers:".encode() + name, mapping={name or b"x": name, b"seen": name, b"queues": name})
        raw.zadd(f"{prefix}:retries", {name: float("-inf")})
    raw.set(f"{prefix}:low", "no stream")
    raw.rpush(f"{prefix}:scheduled", "no set")

    async def look() -> None:
        async with Client(url=url, prefix=prefix) as client:
            inspector = Inspector(client)
            repr(await inspector.queues())
            repr(await inspector.workers())

    with contextlib.suppress(BackstageError):
        asyncio.run(look())
    raw.delete(f"{prefix}:scheduled")
    asyncio.run(look())
    cli("info", *where, status=(0,))
    cli("info", "--json", *where)
    cli("doctor", *where)
    cli("doctor", "--json", *where)


COMMANDS = [
    ["enqueue", None, "1"], ["enqueue", "t", None], ["enqueue", "t", "1", "--queue", None],
    ["enqueue", "t", "--delay", None], ["enqueue", "t", "1", "--dedupe", None], ["enqueue", "t", "--priority", None],
    ["enqueue", "t", "--attempts", None], ["enqueue", "t", "--timeout", None], ["dead", "list", None],
    ["dead", "list", "--limit", None], ["dead", "retry", None], ["dead", "retry", "default", None], ["dead", None],
    ["dead", "purge", None, "--yes"], ["dead", "purge", "default", None], ["info", None], ["info", "--prefix", None],
    ["info", "--url", None], ["worker", None], ["worker", "json", "--queues", None], ["scheduler", None],
    ["doctor", None], [None],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(part or "…" for part in command))
def test_the_command_line(command: list[Any], url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every argument, by hand and by chance: done, or one line that says what is wrong."""
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.setenv("BACKSTAGE_PREFIX", prefix)

    def run(text: str) -> None:
        if "\0" not in text and "embedded:" not in text:  # the one no program can be given, the other is a server
            cli(*(text if part is None else part for part in command))

    @profiles.examples(10)
    @given(texts)
    def chance(text: str) -> None:
        run(text)

    for text in TEXTS:
        run(text)
    chance()


def test_standard_input(url: str, prefix: str) -> None:
    """Bytes that are no JSON are refused in one line."""
    where = ("--url", url, "--prefix", prefix)
    for payload in PAYLOADS:
        cli("enqueue", "t", "-", *where, input=payload)

    async def look() -> None:
        async with Client(url=url, prefix=prefix) as client:
            assert (await Inspector(client).queues()).oldest is not None

    asyncio.run(look())
