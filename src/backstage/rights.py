"""Which commands each role sends, its scripts' among them, with keys as they could be. No I/O.

For the doctor, which asks ACL DRYRUN about them, and for docs/runbook.md, which tells access rules that grant them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

Command: TypeAlias = tuple[str, ...]

_LANE: tuple[Command, ...] = (("CLIENT", "ID"), ("SCRIPT", "LOAD", "return 1"), ("EVALSHA", "0", "1", "{p}:default"))
"""What every connection needs. INFO and CLIENT KILL are done without where they are refused."""

_ENQUEUES: tuple[Command, ...] = (
    ("TIME",),
    ("TYPE", "{p}:default"),
    ("SET", "{p}:calls:x", "1"),
    ("GET", "{p}:calls:x"),
    ("DEL", "{p}:dedupe:x"),
    ("XADD", "{p}:default", "*", "f", "v"),
    ("ZADD", "{p}:scheduled", "1", "m"),
    ("ZRANGE", "{p}:scheduled", "0", "0"),
    ("PUBLISH", "{p}:control", "due"),
)

_WORKS: tuple[Command, ...] = (
    ("XGROUP", "CREATE", "{p}:default", "g", "0", "MKSTREAM"),
    ("XGROUP", "DELCONSUMER", "{p}:default", "g", "c"),
    ("XREADGROUP", "GROUP", "g", "c", "STREAMS", "{p}:default", ">"),
    ("XPENDING", "{p}:default", "g"),
    ("XCLAIM", "{p}:default", "g", "c", "0", "1-1"),
    ("XACK", "{p}:default", "g", "1-1"),
    ("XDEL", "{p}:default", "1-1"),
    ("XRANGE", "{p}:default", "-", "+"),
    ("XTRIM", "{p}:default", "MINID", "1"),
    ("XINFO", "GROUPS", "{p}:default"),
    ("XINFO", "CONSUMERS", "{p}:default", "g"),
    ("XADD", "{p}:default:dead-letter", "*", "f", "v"),
    ("ZRANGEBYSCORE", "{p}:retries", "0", "1"),
    ("ZREM", "{p}:retries", "m"),
    ("ZSCORE", "{p}:workers", "m"),
    ("ZREMRANGEBYSCORE", "{p}:workers", "0", "1"),
    ("HSET", "{p}:workers:x", "f", "v"),
    ("HINCRBY", "{p}:stats:default:1", "f", "1"),
    ("EXPIRE", "{p}:stats:default:1", "1"),
    ("PEXPIRE", "{p}:workers", "1"),
    ("SUBSCRIBE", "{p}:control"),
    ("CLIENT", "UNBLOCK", "1"),
    ("PING",),
)

_SCHEDULES: tuple[Command, ...] = (
    ("TIME",),
    ("TYPE", "{p}:cron"),
    ("HGET", "{p}:cron", "f"),
    ("HMGET", "{p}:cron", "f"),
    ("HSET", "{p}:cron", "f", "v"),
    ("XADD", "{p}:default", "*", "f", "v"),
)

_LOOKS: tuple[Command, ...] = (
    ("TIME",),
    ("SCAN", "0"),
    ("TYPE", "{p}:default"),
    ("XLEN", "{p}:default"),
    ("XPENDING", "{p}:default", "g"),
    ("XRANGE", "{p}:default", "-", "+"),
    ("XREVRANGE", "{p}:default:dead-letter", "+", "-"),
    ("XINFO", "GROUPS", "{p}:default"),
    ("ZCARD", "{p}:scheduled"),
    ("ZRANGE", "{p}:scheduled", "0", "0"),
    ("ZRANDMEMBER", "{p}:scheduled", "1"),
    ("HGETALL", "{p}:workers:x"),
)

ROLES: Mapping[str, tuple[Command, ...]] = MappingProxyType(
    {
        "producer": (*_LANE, *_ENQUEUES),
        "worker": (*_LANE, *_ENQUEUES, *_WORKS),
        "scheduler": (*_LANE, *_SCHEDULES),
        "reader": (*_LANE, *_LOOKS),
    }
)


def commands(role: str, prefix: str) -> list[Command]:
    """Those of a role, on keys under this prefix."""
    return [tuple(word.replace("{p}", prefix) for word in command) for command in ROLES[role]]
