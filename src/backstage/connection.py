"""From a RedisConfig to a redis-py client; for `embedded://` also the server that it speaks to."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any, Protocol

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from backstage.address import Several, several
from backstage.config import RedisConfig
from backstage.errors import ConfigError, RedisUnavailable
from backstage.nodes import Finder, NodeConnection, NodeSSLConnection, of_cluster, of_sentinels

ASKED = 1.0
"""Seconds that one Sentinel, or node of a cluster, has to answer before the next one is asked."""


class Membership(Protocol):
    """A share in an embedded server."""

    @property
    def socket(self) -> str: ...
    def ensure(self) -> None: ...
    def leave(self) -> None: ...


class Connector:
    """Opens clients for one configuration; a member of the embedded server for as long as it is open."""

    def __init__(self, config: RedisConfig) -> None:
        self._config = config
        self._membership: Membership | None = None

    async def mend(self) -> None:
        """Before connecting, and again when Redis is away: an embedded server is started where none runs."""
        if self._embedded:
            await asyncio.to_thread(self._join)

    def client(self, prefix: str | None = None) -> redis.asyncio.Redis:
        """A new client; in a cluster, of the node that owns `prefix`, or the configured one.

        It waits `connect_timeout` for a connection and repeats no command.
        """
        config = self._config
        common: dict[str, Any] = {
            "socket_connect_timeout": config.connect_timeout / 1000,
            # Before 3.12 asyncio.wait_for, on which redis-py's timeout stands, can swallow a cancellation: a handler
            # that awaits this client could miss its soft limit. Dead connections are found by keepalive there.
            "socket_timeout": None if sys.version_info < (3, 12) else max(10.0, config.connect_timeout / 1000),
            "retry": Retry(NoBackoff(), 0),
            "credential_provider": config.credential_provider,
        }
        if self._embedded:
            return redis.asyncio.Redis(unix_socket_path=self._join(), **common)
        if config.url is not None:
            try:
                if (found := several(config.url)) is not None:
                    return self._follower(found, prefix or config.prefix, common)
                return redis.asyncio.Redis.from_url(config.url, **common)
            except (ValueError, TypeError) as exc:  # the driver's text may quote the URL with its password
                raise ConfigError(f"url {config.address}: redis-py can't use it ({type(exc).__name__})") from None
        return redis.asyncio.Redis(
            host=config.host,
            port=config.port,
            username=config.username,
            password=config.password,
            db=config.db,
            **common,
        )

    def _follower(self, found: Several, prefix: str, common: dict[str, Any]) -> redis.asyncio.Redis:
        """A client whose connections go to the master, or to the node of the keyspace, wherever that is by then."""
        client = redis.asyncio.Redis.from_url(found.plain, **common)
        pool = client.connection_pool
        pool.connection_class = NodeSSLConnection if found.tls else NodeConnection
        timeout = min(ASKED, self._config.connect_timeout / 2000)
        given = pool.connection_kwargs
        options = {k: v for k, v in given.items() if k.startswith("ssl_")}
        finder: Finder
        if found.kind == "sentinel":
            options |= found.login
            finder = of_sentinels(found.nodes, found.master, options=options, tls=found.tls, timeout=timeout)
        else:
            options |= {k: v for k, v in given.items() if k in ("username", "password", "credential_provider")}
            finder = of_cluster(found.nodes, prefix, options=options, tls=found.tls, timeout=timeout)
        pool.connection_kwargs["finder"] = finder
        return client

    def leave(self) -> None:
        """The embedded server is stopped by the last of its members to leave."""
        membership, self._membership = self._membership, None
        if membership is not None:
            membership.leave()

    @property
    def _embedded(self) -> bool:
        return self._config.url is not None and self._config.url.startswith("embedded:")

    def _join(self) -> str:
        from backstage.embedded import folder_of, join  # only where it is asked for: it needs POSIX

        if self._membership is None:
            self._membership = join(folder_of(self._config.url or ""))
        else:
            self._membership.ensure()
        return self._membership.socket


async def close(client: redis.asyncio.Redis) -> None:
    """Close a client whose server may be gone."""
    with contextlib.suppress(redis.exceptions.RedisError, OSError, RedisUnavailable):
        await client.aclose()
