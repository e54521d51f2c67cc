"""Fixtures: a producer, and workers of one keyspace of the shared server; or a whole server with its worker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from scene import INTERVAL, LEASE, Keyspace, Settings
from stage import Site

from backstage import Client
from support.server import Server


@pytest.fixture
def settings(url: str, prefix: str) -> Settings:
    """For workers of one keyspace of the shared server."""
    return {"url": url, "prefix": prefix, "idle_timeout": LEASE, "reclaimer_interval": INTERVAL, "concurrency": 10}


@pytest.fixture
async def client(url: str, prefix: str) -> AsyncIterator[Client]:
    async with Client(url=url, prefix=prefix) as producer:
        yield producer


@pytest.fixture
def keyspace(redis: Redis, prefix: str) -> Keyspace:
    return Keyspace(redis, prefix)


@pytest.fixture
async def site(own_server: Server) -> AsyncIterator[Site]:
    """A server of its own, for faults that hit all of it, with a worker that isn't started yet."""
    site = Site(own_server)
    async with site.client:
        yield site
