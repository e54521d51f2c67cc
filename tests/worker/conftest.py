"""Streams for the tests of the worker's parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from backstage.stream import Stream
from support.server import Server

Streams = Callable[..., Stream]


@pytest.fixture
async def streams(server: Server, prefix: str) -> AsyncIterator[Streams]:
    """Makes streams of this test's keyspace, on the shared server or another one, and closes them after it."""
    made: list[tuple[Stream, Redis]] = []

    def build(on: Server = server, **options: Any) -> Stream:
        client = Redis.from_url(on.url)
        made.append((Stream(client, prefix=prefix, **options), client))
        return made[-1][0]

    yield build
    for stream, client in made:
        await stream.aclose()
        await client.aclose()
