"""Tail: reads a stream from its end on, without a group, and notices when another stream stands in its place."""

from __future__ import annotations

import logging
from typing import NamedTuple, TypeAlias

import msgspec
from redis.exceptions import ResponseError

from backstage.lane import Lane, translate

log = logging.getLogger("backstage")

Entry: TypeAlias = tuple[bytes, list[bytes]]
"""An entry's id, and its fields and values, flat."""


class Id(NamedTuple):
    """An entry's id, which compares as the server orders them."""

    ms: int
    seq: int

    @classmethod
    def read(cls, text: bytes) -> Id:
        ms, _, seq = text.partition(b"-")
        return cls(int(ms), int(seq))

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"


ZERO = Id(0, 0)


class Facts(msgspec.Struct, frozen=True):
    """What XINFO STREAM tells; all zero where there is no stream. `added` counts all entries that there ever were."""

    last: Id = ZERO
    first: Id = ZERO
    length: int = 0
    added: int = 0


class Tail:
    """How far one listener has read: up to `_cursor`, when `_added` entries had ever been added to the stream."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._cursor: Id | None = None
        self._added = 0
        self._first = ZERO

    @property
    def marked(self) -> bool:
        """It is known where reading begins."""
        return self._cursor is not None

    async def look(self, lane: Lane, key: str) -> None:
        """Mark the end of the stream; or, marked before, find out whether it is the same one, and lost nothing."""
        facts = await _facts(lane, key)
        if self._cursor is None:
            self._cursor, self._added = facts.last, facts.added
        elif facts.last < self._cursor:
            if facts.length and facts.first == self._first:
                # The server came back without its last writes. What it still has was read before.
                log.warning("%s: the stream lost its end; going on from there", self._name)
                self._cursor, self._added = facts.last, facts.added
            else:
                log.info("%s: a new stream stands where the old one was; reading it from its beginning", self._name)
                self._cursor, self._added = ZERO, 0
        elif facts.first > self._cursor and (missed := facts.added - self._added - facts.length) > 0:
            log.warning("%s: %d messages were trimmed before they were read", self._name, missed)
            self._added += missed
        self._first = facts.first

    async def read(self, lane: Lane, key: str, *, count: int, block: int) -> list[Entry]:
        """What came since the last read, at most `count` entries; waits up to `block` ms where there is nothing."""
        assert self._cursor is not None, "look() first"
        reply = await lane.call("XREAD", "COUNT", count, "BLOCK", block, "STREAMS", key, str(self._cursor))
        entries: list[Entry] = reply[0][1] if reply else []
        if entries:
            self._cursor, self._added = Id.read(entries[-1][0]), self._added + len(entries)
        return entries


async def _facts(lane: Lane, key: str) -> Facts:
    (reply,) = await lane.many((("XINFO", "STREAM", key),))
    if isinstance(reply, ResponseError):
        if "no such key" in str(reply):
            return Facts()
        raise translate(reply) from None
    told = dict(zip(reply[::2], reply[1::2], strict=True))
    first = told[b"first-entry"]
    return Facts(
        last=Id.read(told[b"last-generated-id"]),
        first=Id.read(first[0]) if first else ZERO,
        length=told[b"length"],
        added=told[b"entries-added"],
    )
