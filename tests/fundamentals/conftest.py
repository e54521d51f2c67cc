"""What the fundamentals start from: a worker and a client of one keyspace that no other test uses."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from backstage import Client, Worker


@pytest.fixture
async def worker(url: str, prefix: str) -> AsyncIterator[Worker]:
    """A worker without tasks yet, and with no more settings than the address."""
    async with Worker(url=url, prefix=prefix) as made:
        yield made


@pytest.fixture
async def client(url: str, prefix: str) -> AsyncIterator[Client]:
    """A producer that knows no task: it stands for another process."""
    async with Client(url=url, prefix=prefix) as opened:
        yield opened
