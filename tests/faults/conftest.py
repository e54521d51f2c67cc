"""Fixtures: a producer, and workers of one keyspace of the shared server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from scene import INTERVAL, LEASE, Keyspace, Settings

from backstage import Client


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
