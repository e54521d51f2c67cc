"""Reading new entries, in strict priority, with as few round trips as that allows."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from backstage.job import Delivery
from backstage.lane import Command, Lane, Refusal, translate

MARGIN = 5.0
"""Seconds that a blocking read may answer late before its connection counts as dead."""


class Reader:
    """XREADGROUP over the streams of a worker, best queue first.

    Three ways to read, so that an empty queue of high priority costs no round trip a batch:
    from the top, one read a queue, until there is no room; while one queue fills every pass (it is `hot`), a small
    share of the queues above it and the rest of the room from it, in one write; and when all were empty, one blocking
    read on all. Anything found above the hot queue, or a shortfall in it, and the next pass starts from the top.
    """

    def __init__(self, lane: Lane, group: str, consumer: str) -> None:
        self._lane, self._group, self._consumer = lane, group, consumer
        self._queues: dict[bytes, str] = {}
        self._keys: list[str] = []
        self._hot: int | None = None
        self._idle = False

    def serve(self, streams: Mapping[str, str]) -> None:
        """Read these from now on: stream key → queue name, best first."""
        self._queues = {key.encode(): queue for key, queue in streams.items()}
        self._keys = list(streams)
        self._hot, self._idle = None, False

    async def take(self, room: int, block: int) -> list[Delivery]:
        """At most about `room` deliveries; where all queues are empty, waits up to `block` ms for the first ones.

        A blocking read counts per stream, so with less room than queues it may bring one of each.
        """
        if not self._keys:
            await asyncio.sleep(min(block, 1000) / 1000)
            return []
        if self._idle and block:
            return await self._wait(room, block)
        if self._hot is not None and room >= 2 * len(self._keys):
            return await self._steady(self._hot, room)
        found = await self._from_the_top(room)
        if not found and block:
            return await self._wait(room, block)
        return found

    async def _wait(self, room: int, block: int) -> list[Delivery]:
        each = max(1, room // len(self._keys))
        reply = await self._lane.call(*self._command(each, self._keys, block), timeout=block / 1000 + MARGIN)
        found = self._deliveries(reply)
        # A full answer may have left more behind: look again from the top. A small one has emptied the queues.
        self._idle = len(found) < each
        return found

    async def _steady(self, hot: int, room: int) -> list[Delivery]:
        above = self._keys[:hot]
        share = max(1, room // (4 * hot)) if hot else 0
        rest = room - share * hot
        commands = [self._command(rest, [self._keys[hot]])]
        if above:
            commands.insert(0, self._command(share, above))
        replies = await self._lane.many(commands)
        for reply in replies:
            if isinstance(reply, Refusal):
                raise translate(reply)
        found, mine = self._deliveries(replies[0]) if above else [], self._deliveries(replies[-1])
        if found or len(mine) < rest:
            self._hot = None
        return found + mine

    async def _from_the_top(self, room: int) -> list[Delivery]:
        found: list[Delivery] = []
        for place, key in enumerate(self._keys):
            found += self._deliveries(await self._lane.call(*self._command(room - len(found), [key])))
            if len(found) >= room:
                self._hot = place
                return found
        self._hot, self._idle = None, not found
        return found

    def _command(self, count: int, keys: list[str], block: int | None = None) -> Command:
        waits = () if block is None else ("BLOCK", block)
        after = [">"] * len(keys)
        return ("XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", count, *waits, "STREAMS", *keys, *after)

    def _deliveries(self, reply: Any) -> list[Delivery]:
        """Entries as deliveries, in the order of the queues: the server answers in the order in which it was asked."""
        server, found = self._lane.run_id, []
        for key, entries in reply or ():
            queue = self._queues[key]
            found += [Delivery(queue, entry_id, fields, 1, server) for entry_id, fields in entries]
        return found
