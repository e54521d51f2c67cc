"""What the script tests share: a keyspace, its state as plain values, and a way to call a script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from backstage.keys import Keys
from backstage.scripts import load, pack

GROUP = "backstage-workers"
ME = "me~1"
OTHER = "other~2"
FOREIGN = "typescript-worker"
RELEASED = "~released"


class Keyspace:
    """One prefix of one server; `db` speaks bytes."""

    def __init__(self, db: redis.Redis, prefix: str) -> None:
        self.db, self.keys = db, Keys(prefix)

    def run(self, name: str, keys: Sequence[str | bytes], *blob: Any) -> Any:
        """The script on these keys; the rest is its blob."""
        return self.db.eval(load(name).text, len(keys), *keys, pack(blob))

    def now(self) -> int:
        """The server's clock in ms."""
        seconds, micros = self.db.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def queue(self, name: str = "default") -> str:
        """The key of a queue's stream, with its group."""
        key = self.keys.stream(name)
        self.db.xgroup_create(key, GROUP, "0", mkstream=True)
        return key

    def add(self, key: str, n: int = 1, **fields: str | bytes) -> list[str]:
        """The ids of n new entries."""
        job = {"taskName": "t", "payload": "{}", "enqueuedAt": "1795491213548", **fields}
        with self.db.pipeline(transaction=False) as pipe:
            for i in range(n):
                pipe.xadd(key, {"jobId": f"job-{i}", **job})
            return [entry_id.decode() for entry_id in pipe.execute()]

    def read(self, key: str, consumer: str = ME, count: int = 10_000) -> list[str]:
        """The ids of new entries, delivered to a consumer."""
        reply = self.db.xreadgroup(GROUP, consumer, {key: ">"}, count)
        return [entry_id.decode() for _, entries in reply or () for entry_id, _ in entries]

    def held(self, key: str, n: int = 1, consumer: str = ME, **fields: str | bytes) -> list[str]:
        """The ids of n new entries that a consumer holds, delivered once."""
        self.add(key, n, **fields)
        return self.read(key, consumer)

    def age(self, key: str, ids: Sequence[str], ms: int, times: int = 1) -> None:
        """Make pending entries look as if nobody had touched them for `ms`."""
        for entry_id in ids:
            (owner, _) = self.pending(key)[entry_id]
            self.db.xclaim(key, GROUP, owner, 0, [entry_id], idle=ms, retrycount=times, justid=True)

    def give(self, key: str, entry_id: str, owner: str, times: int) -> None:
        """A pending entry to another consumer, with that delivery count."""
        self.db.xclaim(key, GROUP, owner, 0, [entry_id], retrycount=times, justid=True)

    def pending(self, key: str) -> dict[str, tuple[str, int]]:
        """Entry id → its owner and delivery count."""
        found = self.db.xpending_range(key, GROUP, "-", "+", 10_000)
        return {p["message_id"].decode(): (p["consumer"].decode(), p["times_delivered"]) for p in found}

    def idle(self, key: str, entry_id: str) -> int:
        (found,) = self.db.xpending_range(key, GROUP, entry_id, entry_id, 1)
        idle: int = found["time_since_delivered"]
        return idle

    def ids(self, key: str) -> list[str]:
        return [entry_id.decode() for entry_id, _ in self.db.xrange(key)]

    def entries(self, key: str) -> list[dict[str, str]]:
        """The fields of each entry, in order."""
        return [
            {name.decode(): value.decode("utf-8", "surrogateescape") for name, value in fields.items()}
            for _, fields in self.db.xrange(key)
        ]

    def members(self, key: str) -> dict[str, float]:
        return {m.decode("utf-8", "surrogateescape"): score for m, score in self.db.zrange(key, 0, -1, withscores=True)}

    def state(self) -> dict[str, Any]:
        """Everything under the prefix, to be compared."""
        found: dict[str, Any] = {}
        for raw in self.db.keys(f"{self.keys.prefix}:*"):
            key = raw.decode("utf-8", "surrogateescape")
            match self.db.type(raw):
                case b"stream":
                    groups = [group["name"].decode() for group in self.db.xinfo_groups(raw)]
                    found[key] = (self.db.xrange(raw), self.pending(key) if groups else None)
                case b"zset":
                    found[key] = self.db.zrange(raw, 0, -1, withscores=True)
                case b"hash":
                    found[key] = self.db.hgetall(raw)
                case b"list":
                    found[key] = self.db.lrange(raw, 0, -1)
                case _:
                    found[key] = self.db.get(raw)
        return found

    def plant(self, key: str) -> None:
        """A key of a type that none of ours has."""
        self.db.delete(key)
        self.db.lpush(key, "planted")

    def fill(self) -> None:
        """From now on the server's memory is full (only on a server of the test's own)."""
        self.db.config_set("maxmemory-policy", "noeviction")
        self.db.config_set("maxmemory", 1)
