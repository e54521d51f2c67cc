"""Lanes: connections of our own, one for each kind of traffic, instead of a pool.

A pool costs a checkout for every command, and hides retries: a command that must not be repeated (a read that takes
jobs) would be. A lane sends at once, keeps several calls in flight, answers them in order, and repeats nothing: what
fails is raised as RedisUnavailable, and whoever called knows whether it may be tried again.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import hiredis
import redis.asyncio
import redis.backoff
import redis.connection
import redis.exceptions
import redis.retry
from redis.asyncio.connection import AbstractConnection
from redis.connection import AbstractConnection as _SyncConnection

from backstage.errors import BackstageError, RedisRefused, RedisUnavailable
from backstage.nodes import SyncNodeConnection, SyncNodeSSLConnection
from backstage.scripts import Script

Argument: TypeAlias = str | bytes | int
Command: TypeAlias = tuple[Argument, ...]
SyncConnection: TypeAlias = _SyncConnection
Refusal: TypeAlias = redis.exceptions.ResponseError
"""A server's refusal of one command, as it stands in a list of replies."""

Dial: TypeAlias = Callable[[], AbstractConnection]

AWAY = frozenset(
    {"LOADING", "READONLY", "MASTERDOWN", "BUSY", "TRYAGAIN", "ASK", "MOVED", "CLUSTERDOWN", "UNBLOCKED", "NOREPLICAS"}
)
"""First words of errors that pass by themselves: the same as Redis being away."""

ELSEWHERE = frozenset({"READONLY", "NOREPLICAS", "MASTERDOWN", "UNBLOCKED", "MOVED", "ASK", "CLUSTERDOWN"})
"""Those of a server that is not, or no longer, the right one: the next call looks for it anew."""

_pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]  # it says tuples of one

_lanes: weakref.WeakSet[Lane] = weakref.WeakSet()
"""Those of this process, for a fork is of the whole process. Nothing else may ask for them."""

_ADDRESS = frozenset(
    {"host", "port", "path", "db", "username", "password", "credential_provider", "client_name",
     "socket_keepalive", "socket_keepalive_options", "connection_pool", "finder"}
)  # fmt: skip


_SYNC: dict[str, Callable[..., SyncConnection]] = {
    "Connection": redis.connection.Connection,
    "SSLConnection": redis.connection.SSLConnection,
    "UnixDomainSocketConnection": redis.connection.UnixDomainSocketConnection,
    "NodeConnection": SyncNodeConnection,
    "NodeSSLConnection": SyncNodeSSLConnection,
}


class NoGroup(BackstageError):
    """The stream or its consumer group is gone (a flush, a failover): to be created again."""


def translate(error: BaseException) -> BackstageError:
    """A driver's error as ours: away for now, refused, or no group. The driver's texts carry no secrets."""
    if isinstance(error, redis.exceptions.ResponseError):
        text, word = _said(error)
        if word == "NOGROUP" or "NOGROUP" in text[:200]:
            return NoGroup(text)
        if word in AWAY:
            return RedisUnavailable(f"Redis can't serve this now: {text}")
        return RedisRefused(f"Redis refused: {text}")
    if isinstance(error, (redis.exceptions.AuthenticationError, redis.exceptions.AuthorizationError)):
        return RedisRefused(f"Redis refused the login: {error}")
    if isinstance(error, redis.exceptions.BusyLoadingError):
        return RedisUnavailable(f"Redis is loading its data: {error}")
    return RedisUnavailable(f"no answer from Redis: {str(error) or type(error).__name__}")


def _said(error: Refusal) -> tuple[str, str]:
    """What the server said, and the first word of it."""
    text = f"{error.status_code or ''} {error}".lstrip()  # the driver cuts off the first words that it knows
    return text, text.split(" ", 1)[0]


def dialer(client: redis.asyncio.Redis, *, connect_timeout: float) -> Dial:
    """How to open more connections to where `client` points, with none of its retries and timeouts (seconds)."""
    pool = client.connection_pool
    given = _address(client)

    def dial() -> AbstractConnection:
        connection: AbstractConnection = pool.connection_class(
            **given,
            protocol=2,
            decode_responses=False,
            socket_timeout=None,
            socket_connect_timeout=connect_timeout,
            socket_read_size=65_536,
        )
        return connection

    return dial


def sync_dialer(client: redis.asyncio.Redis, *, timeout: float) -> Callable[[], SyncConnection]:
    """The same for a thread: blocking connections, which give up after `timeout` seconds."""
    plain, given = _SYNC[client.connection_pool.connection_class.__name__], _address(client)

    def dial() -> SyncConnection:
        return plain(
            **given, protocol=2, decode_responses=False, socket_timeout=timeout, socket_connect_timeout=timeout,
            retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        )  # fmt: skip

    return dial


async def run_script(client: redis.asyncio.Redis, script: Script, keys: Sequence[str], blob: bytes) -> Any:
    """By a client's pool what `Lane.script` does: it needs no right to EVAL. Raises the driver's errors."""
    try:
        return await client.evalsha(script.sha, len(keys), *keys, blob)
    except redis.exceptions.NoScriptError:
        await client.script_load(script.text)
        return await client.evalsha(script.sha, len(keys), *keys, blob)


def _address(client: redis.asyncio.Redis) -> dict[str, Any]:
    kwargs = client.connection_pool.connection_kwargs
    given = {k: v for k, v in kwargs.items() if k in _ADDRESS or k.startswith("ssl_")}
    if "path" in given:
        return {k: v for k, v in given.items() if not k.startswith("socket_keepalive")}
    given.setdefault("socket_keepalive", True)
    return given


def _usable(conn: AbstractConnection) -> bool:
    """Whether it is connected, as far as we know.

    A transport that failed must not be written to again: CPython 3.12 and early 3.13 would go on watching its file
    descriptor then, and the next connection that gets this number hangs.
    """
    return conn.is_connected and conn._writer is not None and not conn._writer.is_closing()


class Lane:
    """One connection: calls leave at once, several may be in flight, each is answered in its turn.

    `run_id` names the server process that the lane last spoke to, `connects` counts its connections. After any failure
    the connection is dropped, and the next call opens a new one.
    """

    def __init__(self, dial: Dial, *, timeout: float) -> None:
        self._dial, self._timeout = dial, timeout
        self._conn: AbstractConnection | None = None
        self._opening = asyncio.Lock()
        self._turn: asyncio.Future[None] | None = None
        self._loaded: set[str] = set()
        self.client_id = 0
        self.run_id = ""
        self.connects = 0
        _lanes.add(self)

    async def call(self, *args: Argument, timeout: float | None = None) -> Any:
        """One command's reply. Raises RedisUnavailable (the command may have run), RedisRefused or NoGroup."""
        (reply,) = await self.many((args,), timeout=timeout)
        if isinstance(reply, redis.exceptions.ResponseError):
            raise translate(reply) from None
        return reply

    async def many(
        self, commands: Sequence[Command], *, timeout: float | None = None, server: str | None = None
    ) -> list[Any]:
        """Several commands in one write; a refusal stands in the list as its ResponseError.

        With `server`, a run id, nothing is sent to any other server process.
        """
        try:
            async with asyncio.timeout(timeout or self._timeout):
                conn = await self._connected()
                if server is not None and server != self.run_id:
                    raise RedisUnavailable("another server process answers now")
                return await self._exchange(conn, commands)
        except (redis.exceptions.RedisError, OSError) as exc:  # a TimeoutError is an OSError
            if isinstance(exc, RedisUnavailable):
                raise
            raise translate(exc) from exc

    async def script(
        self, script: Script, keys: Sequence[str | bytes], blob: bytes, *, server: str | None = None
    ) -> Any:
        """Run a script on its keys and its one MessagePack blob; loads it where the server doesn't have it."""
        if script.sha not in self._loaded:
            await self.call("SCRIPT", "LOAD", script.text)
            self._loaded.add(script.sha)
        (reply,) = await self.many((("EVALSHA", script.sha, len(keys), *keys, blob),), server=server)
        if isinstance(reply, redis.exceptions.NoScriptError):  # flushed, or another server: it has not run
            self._loaded.clear()
            return await self.script(script, keys, blob, server=server)
        if isinstance(reply, redis.exceptions.ResponseError):
            raise translate(reply) from None
        return reply

    async def greet(self) -> str:
        """The run id of the server that answers here now."""
        if self._conn is None or not _usable(self._conn):
            await self.many(())
        return self.run_id

    async def close(self) -> None:
        """Drop the connection; calls in flight fail. The next call opens a new one."""
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.disconnect(nowait=True)

    async def _exchange(self, conn: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
        if not commands:
            return []
        packed = b"".join(map(_pack, commands))
        before, mine = self._turn, asyncio.get_running_loop().create_future()
        self._turn = mine
        try:
            await conn.send_packed_command(packed, check_health=False)
            if before is not None and not before.done():
                await asyncio.shield(before)
            replies: list[Any] = []
            wrong = False
            for _ in commands:
                try:
                    replies.append(await conn.read_response())
                except redis.exceptions.ResponseError as refusal:
                    replies.append(refusal)
                    wrong = wrong or _said(refusal)[1] in ELSEWHERE
            if wrong:
                await self._drop(conn)
        except BaseException:
            await self._drop(conn)
            raise
        finally:
            mine.set_result(None)
        return replies

    async def _drop(self, conn: AbstractConnection) -> None:
        if self._conn is conn:
            self._conn = None
        await conn.disconnect(nowait=True)

    async def _connected(self) -> AbstractConnection:
        if self._conn is not None and _usable(self._conn):
            return self._conn
        async with self._opening:
            if self._conn is not None and _usable(self._conn):
                return self._conn
            conn = self._dial()
            try:
                await conn.connect()  # type: ignore[no-untyped-call]  # redis-py's
                self._turn = None
                await self._greet(conn)
            except BaseException:
                await conn.disconnect(nowait=True)
                raise
            self._conn = conn
            self._loaded.clear()
            self.connects += 1
            return conn

    async def _greet(self, conn: AbstractConnection) -> None:
        """Who answers? And if it's the server of before, the connection that was lost there must not take more jobs."""
        number, info = await self._exchange(conn, (("CLIENT", "ID"), ("INFO", "server")))
        for reply in (number, info):
            if isinstance(reply, redis.exceptions.ResponseError) and translate(reply).__class__ is RedisUnavailable:
                raise reply
        text = info.decode("utf-8", "replace") if isinstance(info, bytes) else ""
        found = re.search(r"^run_id:(\S+)", text, re.MULTILINE)
        # A server that doesn't tell (no permission) counts as a new one each time: entries are checked more, not less.
        run_id = found[1] if found else f"unknown-{self.connects + 1}"
        if self.client_id and run_id == self.run_id:
            await self._exchange(conn, (("CLIENT", "KILL", "ID", self.client_id),))
        # Only now: should the answer to the KILL be lost, the next greeting knows whom to kill.
        self.client_id = number if isinstance(number, int) else 0
        self.run_id = run_id

    def disown(self) -> None:
        """In a forked child: what it inherited is the parent's connection, and here it leads nowhere any more.

        The parent's loop may run on in the child for a moment, and would read answers that the parent waits for. And
        for as long as a child has a socket open, the server takes a killed parent for alive and hands jobs to it.
        """
        writer = self._conn._writer if self._conn is not None else None
        inherited = writer.get_extra_info("socket") if writer is not None else None
        if inherited is not None and (number := inherited.fileno()) >= 0:
            with socket.socket() as nowhere:  # which a loop can watch as before
                os.dup2(nowhere.fileno(), number, inheritable=False)


def _disown_all() -> None:
    for lane in _lanes:
        lane.disown()


if hasattr(os, "register_at_fork"):  # POSIX
    os.register_at_fork(after_in_child=_disown_all)
