"""Durability: enqueues that return only when the server says that the jobs are on its disk, or on a replica.

The server is asked on the connection that wrote, as WAITAOF and WAIT tell of that one's writes. They block it, so it is
a connection of its own, and what was asked for at the same time is confirmed together.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import redis.asyncio
import redis.exceptions

from backstage import blobs
from backstage.errors import BackstageError, ConfigError, RedisUnavailable, quoted
from backstage.job import Durability
from backstage.keys import Keys
from backstage.lane import Command, Lane, dialer, translate
from backstage.ready import Ready
from backstage.scripts import load

log = logging.getLogger("backstage")

TOGETHER = 10_000
"""Jobs that are confirmed together, at most: to wait for a disk takes as long for many as for one."""

STEP = 500
"""Jobs in one call of the script."""

_ASK: dict[str, Command] = {"fsync": ("WAITAOF", 1, 0), "replica": ("WAIT", 1)}
_MISSING = {
    "fsync": "the server has not confirmed yet that they are on disk",
    "replica": "no replica has confirmed them yet",
}


class Safe:
    """Sends jobs as a Stream does, and waits up to `wait` ms for the server's word that they are safe."""

    def __init__(
        self, redis: redis.asyncio.Redis, durability: Durability, *, prefix: str, connect_timeout: int, wait: int
    ) -> None:
        dial = dialer(redis, connect_timeout=connect_timeout / 1000)
        self._lane = Lane(dial, timeout=max(10.0, 2 * wait / 1000))
        self._keys, self._durability, self._wait = Keys(prefix), durability, max(1, wait)
        self._probed = 0

    async def send(self, jobs: Sequence[Ready], call: str, marker_ttl: int) -> list[str | BackstageError | None]:
        """As `Stream.send`. RedisUnavailable, too, where it can't be confirmed in time; repeated, it adds nothing.

        ConfigError, before anything is sent, where the server can't do what is asked.
        """
        connection = await self._connected()
        marker, verdicts = "", []
        for at in range(0, len(jobs), STEP):
            part = jobs[at : at + STEP]
            keys, blob = blobs.enqueue(self._keys, part, f"{call}-{at}", marker_ttl)
            verdicts += blobs.verdicts(part, await self._lane.script(load("enqueue"), keys, blob))
            marker = keys[0]
        # A repeated call may write nothing at all. This does, behind whatever an earlier try has written.
        touch, said = await self._lane.many((("PEXPIRE", marker, marker_ttl), (*_ASK[self._durability], self._wait)))
        for reply in (touch, said):
            if isinstance(reply, redis.exceptions.ResponseError):
                raise translate(reply)
        if self._lane.connects != connection:
            raise RedisUnavailable("the connection was lost between the jobs and the question")
        if (said[0] if isinstance(said, list) else said) < 1:
            raise RedisUnavailable(f"the server has the jobs, but {_MISSING[self._durability]}")
        return verdicts

    async def aclose(self) -> None:
        await self._lane.close()

    async def _connected(self) -> int:
        """Which connection it is; a new one is asked whether its server can tell at all."""
        await self._lane.greet()
        if self._probed != self._lane.connects and self._durability == "fsync":
            probe: Command = (*_ASK["fsync"], 1)
            said, info, setting = await self._lane.many((probe, ("INFO", "server"), ("CONFIG", "GET", "appendfsync")))
            if isinstance(said, redis.exceptions.ResponseError):
                raise _cannot(said)
            fsync = setting[1].decode() if isinstance(setting, list) and setting else ""
            _check_truth(info.decode() if isinstance(info, bytes) else "", fsync)
            self._probed = self._lane.connects
        return self._lane.connects


def _cannot(error: redis.exceptions.ResponseError) -> BackstageError:
    text = str(error)
    if "unknown command" in text:
        return ConfigError("durability='fsync' needs a server with WAITAOF: Redis 7.2, Valkey 7.2, or later")
    if "appendonly" in text:
        return ConfigError("durability='fsync': the server has no append-only file; set `appendonly yes` there")
    return translate(error)


def _check_truth(info: str, fsync: str) -> None:
    """Where the disk is not written before each answer, only Redis 8 tells the truth about it.

    Earlier ones, and Valkey up to 9.1 at least, answer WAITAOF up to a second before the fsync (redis/redis#13793).
    """
    found = re.search(r"^redis_version:(\d+)", info, re.MULTILINE)
    true = found is not None and int(found[1]) >= 8 and "valkey_version:" not in info
    if fsync == "always" or (true and fsync != "no"):
        return
    if fsync:
        raise ConfigError(
            f"durability='fsync': with `appendfsync {fsync}` this server does not tell when jobs are on its disk; set "
            "`appendfsync always` there"
        )
    log.warning(
        "durability='fsync' holds only where the server has `appendfsync always`: this user may not ask whether it does"
    )


def check_durability(value: object) -> Durability:
    """The value, "memory" for None; ConfigError for anything else."""
    match value:
        case None | "memory":
            return "memory"
        case "fsync":
            return "fsync"
        case "replica":
            return "replica"
    raise ConfigError(f"durability={quoted(value)}: must be 'memory', 'fsync' or 'replica'")
