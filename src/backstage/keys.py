"""Every Redis key, and nothing about them anywhere else. What each holds: docs/protocol.md."""

from __future__ import annotations

import re
from zlib import crc32

from backstage.errors import ConfigError, quoted


def check_prefix(prefix: str, name: str = "prefix") -> str:
    """The prefix itself, or ConfigError, which calls it by `name`: an option or a variable of the environment."""
    if not isinstance(prefix, str) or not 1 <= len(prefix) <= 256 or not prefix.isprintable():
        raise ConfigError(f"{name}={quoted(prefix)}: must be 1 to 256 printable characters")
    return prefix


def numbered(prefix: str, n: int) -> str:
    """The prefix of keyspace n of several: `{backstage}` → `{backstage:2}`. It must have a hash tag."""
    return re.sub(r"\{([^}]+)\}", lambda tag: f"{{{tag[1]}:{n}}}", prefix, count=1)


def keyspace_of(key: str, count: int) -> int:
    """Which of `count` keyspaces a job goes to. `key` is its dedupe key, else its id. The same in every SDK."""
    return crc32(key.encode()) % count


class Keys:
    """The keys of one keyspace. With a hash-tagged prefix (`{backstage}`) all of them live in one slot of a cluster."""

    __slots__ = ("broadcast", "control", "cron", "prefix", "retries", "scheduled", "workers")

    def __init__(self, prefix: str) -> None:
        self.prefix = check_prefix(prefix)
        self.scheduled = f"{prefix}:scheduled"
        self.retries = f"{prefix}:retries"
        self.broadcast = f"{prefix}:broadcast"
        self.control = f"{prefix}:control"
        """A channel, not a key: a word to those who wait for something (docs/protocol.md)."""
        self.cron = f"{prefix}:cron"
        self.workers = f"{prefix}:workers"

    def stream(self, queue: str) -> str:
        return f"{self.prefix}:{queue}"

    def dead_letter(self, queue: str) -> str:
        return f"{self.prefix}:{queue}:dead-letter"

    def dedupe(self, key: str) -> str:
        return f"{self.prefix}:dedupe:{key}"

    def call(self, id: str) -> str:
        """The marker of one enqueue call, so that a repeat of it adds nothing."""
        return f"{self.prefix}:calls:{id}"

    def worker(self, worker_id: str) -> str:
        return f"{self.prefix}:workers:{worker_id}"

    def stats(self, queue: str, minute: int) -> str:
        """Counters of one minute: minutes since the epoch, by the client's clock."""
        return f"{self.prefix}:stats:{queue}:{minute}"
