"""The demo's diary: what happened when, and who did it. A list in Redis, next to the keyspace of the jobs.

What the demo asks of Redis beside that, and no public name offers, is here too.
"""

from __future__ import annotations

import re
import time
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import msgspec

from backstage import Client
from backstage.keys import Keys
from backstage.lane import Lane, dialer

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
    await _ask(client, "RPUSH", key(client), msgspec.json.encode(event))


async def read(client: Client) -> list[Event]:
    """All events, in the order of their times."""
    lines: list[bytes] = await _ask(client, "LRANGE", key(client), "0", "-1")
    return sorted((msgspec.json.decode(line, type=Event) for line in lines), key=lambda event: event.at)


async def set_back(client: Client, schedule: str, time_ago: timedelta) -> None:
    """What would be on record for a schedule if no scheduler had run for so long."""
    last_slot = round((time.time() - time_ago.total_seconds()) * 1000)
    await _ask(client, "HSET", Keys(client.config.prefix).cron, schedule, str(last_slot))


async def sweep(client: Client) -> None:
    """Delete all keys that begin with the client's prefix, the diary among them."""
    pattern = re.sub(r"([\\*?\[\]])", r"\\\1", client.config.prefix) + "*"
    cursor = b"0"
    while True:
        cursor, found = await _ask(client, "SCAN", cursor, "MATCH", pattern, "COUNT", "1000")
        if found:
            await _ask(client, "UNLINK", *found)
        if cursor == b"0":
            return


async def _ask(client: Client, *command: str | bytes) -> Any:
    """One command, on a connection of its own. Raises RedisUnavailable, RedisRefused."""
    lane = Lane(dialer(client.redis, connect_timeout=client.config.connect_timeout / 1000), timeout=5.0)
    try:
        return await lane.call(*command)
    finally:
        await lane.close()
