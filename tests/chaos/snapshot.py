"""What stands in Redis when all is over."""

from __future__ import annotations

import contextlib
import json

import msgspec
import redis

GROUP = "backstage-workers"


class Key(msgspec.Struct):
    name: str
    """Without the prefix."""
    type: str
    ttl: int
    """Ms; -1 for none."""


class Snapshot(msgspec.Struct):
    keys: list[Key] = []
    dead: list[dict[str, str]] = []
    """The entries of all dead letters."""
    undelivered: int = 0
    """Entries that nobody was given."""
    waiting: int = 0
    """Entries that nobody was given, members of both sets, and deliveries without a finish."""
    consumers: list[str] = []
    """`<queue>:<consumer>`, without `~released`."""
    stats: dict[str, int] = {}
    """What the workers counted, all minutes together."""
    cron: dict[str, int] = {}

    def then(self, later: Snapshot) -> Snapshot:
        """This one, and one of what came after the server had lost everything."""
        stats = {what: self.stats.get(what, 0) + later.stats.get(what, 0) for what in self.stats | later.stats}
        waiting, undelivered = self.waiting + later.waiting, self.undelivered + later.undelivered
        dead, consumers = self.dead + later.dead, self.consumers + later.consumers
        return Snapshot(self.keys + later.keys, dead, undelivered, waiting, consumers, stats, self.cron)


def take(client: redis.Redis, prefix: str) -> Snapshot:
    """`client` decodes its replies."""
    found = Snapshot([], [], 0, 0, [], {}, {})
    for key in sorted(client.scan_iter(match=f"{prefix}:*", count=1000)):
        name, kind = key.removeprefix(f"{prefix}:"), client.type(key)
        if kind == "none":  # it lapsed meanwhile
            continue
        ttl = client.pttl(key)
        if ttl != -2:  # it lapsed just now
            found.keys.append(Key(name, kind, ttl))
        if name.endswith(":dead-letter") and kind == "stream":
            found.dead += [fields for _, fields in client.xrange(key)]
        elif kind == "stream":
            _look(client, key, name, found)
        elif name in ("scheduled", "retries"):
            found.waiting += client.zcard(key)
        elif name.startswith("stats:"):
            for what, count in client.hgetall(key).items():
                found.stats[what] = found.stats.get(what, 0) + int(count)
        elif name == "cron":
            found.cron = {schedule: int(slot) for schedule, slot in client.hgetall(key).items()}
    return found


def _look(client: redis.Redis, key: str, name: str, found: Snapshot) -> None:
    last = "0-0"
    for group in client.xinfo_groups(key):
        if group["name"] == GROUP:
            last = group["last-delivered-id"]
            found.waiting += group["pending"]
            consumers = [each["name"] for each in client.xinfo_consumers(key, GROUP)]
            found.consumers += [f"{name}:{each}" for each in consumers if each != "~released"]
    behind = len(client.xrange(key, f"({last}", "+"))
    found.undelivered += behind
    found.waiting += behind


def token_of(fields: dict[str, str]) -> str:
    """Of a dead-letter entry."""
    with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
        payload = json.loads(fields["payload"])
        return str(payload[0] if isinstance(payload, list) else payload["token"])
    return fields.get("jobId", "")
