"""Nodes: which server it is, where that changes: Sentinels or a cluster are asked anew at each connecting.

So nobody has to watch for a failover. Whoever is told that a server is the wrong one drops the connection, and the next
one goes to the right place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import redis.asyncio
import redis.backoff
import redis.connection
import redis.exceptions
import redis.retry
from redis.asyncio.connection import SSLConnection
from redis.crc import key_slot

from backstage.address import Node

_WRONG = (redis.exceptions.ReadOnlyError, redis.exceptions.MovedError, redis.exceptions.ClusterDownError)


class Answer(NamedTuple):
    """What one node says: where the server is, and who else may be asked the next time."""

    node: Node
    others: tuple[Node, ...] = ()


class Finder:
    """Asks `nodes`, one after the other, `question`; `read` tells what the answer means, None for "I don't know".

    `options` and `tls` are for connecting to them, `timeout` in seconds for each of them.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        question: Sequence[str],
        read: Callable[[Any, Node], Answer | None],
        *,
        options: dict[str, Any],
        tls: bool,
        timeout: float,
    ) -> None:
        self._given = tuple(nodes)
        self._order = self._given  # always replaced as a whole: a thread and the loop look at it
        self._question, self._read, self._timeout = question, read, timeout
        self._options = {**options, "socket_connect_timeout": timeout, "protocol": 2, "decode_responses": False}
        self._tls = tls

    async def find(self) -> Node:
        """Where the server is now. A ConnectionError of the driver's where no node knows."""
        last: Exception | None = None
        for node in self._order:
            kind = SSLConnection if self._tls else redis.asyncio.Connection
            connection = kind(host=node[0], port=node[1], **self._options)
            try:
                async with asyncio.timeout(self._timeout):
                    await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's
                    await connection.send_command(*self._question, check_health=False)
                    answer = self._read(await connection.read_response(), node)
            except (redis.exceptions.RedisError, OSError) as exc:
                last = exc
            else:
                if answer is not None:
                    return self._found(node, answer)
            finally:
                await connection.disconnect(nowait=True)
        raise self._nobody(last)

    def find_sync(self) -> Node:
        """The same for a thread."""
        last: Exception | None = None
        for node in self._order:
            kind = redis.connection.SSLConnection if self._tls else redis.connection.Connection
            connection: Any = kind(
                host=node[0], port=node[1], socket_timeout=self._timeout,
                retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0), **self._options,
            )  # fmt: skip
            try:
                connection.connect()
                connection.send_command(*self._question, check_health=False)
                answer = self._read(connection.read_response(), node)
            except (redis.exceptions.RedisError, OSError) as exc:
                last = exc
            else:
                if answer is not None:
                    return self._found(node, answer)
            finally:
                connection.disconnect()
        raise self._nobody(last)

    def doubt(self) -> None:
        """The server that was found is the wrong one, or isn't there: ask another node first the next time."""
        self._order = self._order[1:] + self._order[:1]

    def _found(self, asked: Node, answer: Answer) -> Node:
        rest = [node for node in (*self._given, *answer.others) if node != asked]
        self._order = tuple(dict.fromkeys((asked, *rest)))
        return answer.node

    def _nobody(self, last: Exception | None) -> redis.exceptions.ConnectionError:
        asked = ", ".join(f"{host}:{port}" for host, port in self._order)
        why = str(last) or type(last).__name__ if last is not None else "they don't know it"
        return redis.exceptions.ConnectionError(f"none of {asked} can tell where the server is: {why}")


def of_sentinels(nodes: Sequence[Node], master: str, *, options: dict[str, Any], tls: bool, timeout: float) -> Finder:
    """The master that Sentinels know by this name."""

    def read(reply: Any, asked: Node) -> Answer | None:
        return None if reply is None else Answer((reply[0].decode(), int(reply[1])))

    question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", master)
    return Finder(nodes, question, read, options=options, tls=tls, timeout=timeout)


def of_cluster(nodes: Sequence[Node], prefix: str, *, options: dict[str, Any], tls: bool, timeout: float) -> Finder:
    """The node of a cluster that owns the slot of this prefix's hash tag."""
    slot = key_slot(prefix.encode())

    def read(reply: Any, asked: Node) -> Answer | None:
        owner: Node | None = None
        others = []
        for first, last, *servers in reply:
            # A node that doesn't know its own name leaves it empty: it is the one that was asked.
            here = [((host or b"").decode() or asked[0], int(port)) for host, port, *_ in servers]
            others += here
            if first <= slot <= last and here:
                owner = here[0]
        return None if owner is None else Answer(owner, tuple(others))

    return Finder(nodes, ("CLUSTER", "SLOTS"), read, options=options, tls=tls, timeout=timeout)


class Finds(Protocol):
    """What a connection needs to know of its Finder."""

    async def find(self) -> Node: ...
    def find_sync(self) -> Node: ...
    def doubt(self) -> None: ...


class NodeConnection(redis.asyncio.Connection):
    """A connection to wherever `finder` says at the moment of connecting; it ends when that server is the wrong one."""

    def __init__(self, *, finder: Finds, **options: Any) -> None:
        super().__init__(**options)
        self._finder = finder

    async def connect(self) -> None:
        if self.is_connected:
            return
        self.host, self.port = await self._finder.find()
        try:
            await super().connect()  # type: ignore[no-untyped-call]  # redis-py's
        except (redis.exceptions.RedisError, OSError):
            self._finder.doubt()
            raise

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except redis.exceptions.ResponseError as exc:
            if isinstance(exc, _WRONG) or str(exc).startswith("NOREPLICAS"):
                self._finder.doubt()
                await self.disconnect(nowait=True)
            raise


class NodeSSLConnection(NodeConnection, SSLConnection):
    """The same with TLS."""


class SyncNodeConnection(redis.connection.Connection):
    """The same for a thread."""

    def __init__(self, *, finder: Finds, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]  # redis-py's
        self._finder = finder

    def connect(self) -> None:
        if self.is_connected:
            return
        self.host, self.port = self._finder.find_sync()
        try:
            super().connect()  # type: ignore[no-untyped-call]  # redis-py's
        except (redis.exceptions.RedisError, OSError):
            self._finder.doubt()
            raise


class SyncNodeSSLConnection(SyncNodeConnection, redis.connection.SSLConnection):
    """The same for a thread, with TLS."""
