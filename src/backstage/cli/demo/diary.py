"""The demo's diary: what happened when, and who did it. A list in Redis, next to the keyspace of the jobs."""

from __future__ import annotations

import time
from typing import Literal, TypeAlias

import msgspec

from backstage import Client

What: TypeAlias = Literal["started", "done", "failed", "heard", "killed"]


class Event(msgspec.Struct, frozen=True):
    """`at` is in seconds, by the clock of the machine that all processes of the demo run on."""

    at: float
    what: What
    worker: str
    task: str = ""
    order: int = 0
    attempt: int = 0


def key(client: Client) -> str:
    return f"{client.config.prefix}-diary"


async def write(
    client: Client,
    what: What,
    worker: str,
    *,
    task: str = "",
    order: int = 0,
    attempt: int = 0,
    at: float | None = None,
) -> None:
    """Note an event of now, or of `at`."""
    event = Event(time.time() if at is None else at, what, worker, task, order, attempt)
    await client.redis.rpush(key(client), msgspec.json.encode(event))


async def read(client: Client) -> list[Event]:
    """All events, in the order of their times."""
    lines = await client.redis.lrange(key(client), 0, -1)
    return sorted((msgspec.json.decode(line, type=Event) for line in lines), key=lambda event: event.at)
