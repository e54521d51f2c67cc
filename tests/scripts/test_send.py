"""send.lua: a message on the broadcast stream, once for each call."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from backstage.keys import Keys
from backstage.scripts import load, pack


async def send(redis: Redis, prefix: str, call: str, *, keep: int = 10_000) -> Any:
    keys = Keys(prefix)
    blob = pack((20_000, keep, "note", '{"n":1}'))
    return await redis.eval(load("send").text, 2, keys.call(call), keys.broadcast, blob)


async def test_entry(redis: Redis, prefix: str) -> None:
    """The entry has the three fields of the wire, in its order, with the server's time; its id is the answer."""
    before = (await redis.time())[0]
    id = await send(redis, prefix, "one")
    ((entry, fields),) = await redis.xrange(f"{prefix}:broadcast")
    assert entry == id
    assert list(fields) == ["taskName", "payload", "enqueuedAt"]
    assert (fields["taskName"], fields["payload"]) == ("note", '{"n":1}')
    assert before <= int(fields["enqueuedAt"]) // 1000 <= before + 5


async def test_repeated(redis: Redis, prefix: str) -> None:
    """The same call again answers the same and sends nothing; its marker lapses by itself."""
    assert await send(redis, prefix, "one") == await send(redis, prefix, "one")
    assert await send(redis, prefix, "two") != await send(redis, prefix, "one")
    assert await redis.xlen(f"{prefix}:broadcast") == 2
    assert 0 < await redis.pttl(Keys(prefix).call("one")) <= 20_000


async def test_trimmed(redis: Redis, prefix: str) -> None:
    """The stream keeps about as many entries as the sender says."""
    for n in range(400):
        await send(redis, prefix, str(n), keep=50)
    assert await redis.xlen(f"{prefix}:broadcast") <= 200


async def test_wrong_type(redis: Redis, prefix: str) -> None:
    """A key of another type refuses the message by name, before anything is written."""
    await redis.set(f"{prefix}:broadcast", "x")
    with pytest.raises(Exception, match=f"WRONGTYPE the key {prefix}:broadcast holds a string"):
        await send(redis, prefix, "one")
    assert not await redis.exists(Keys(prefix).call("one"))
