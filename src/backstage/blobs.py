"""What the scripts are given, made from values: KEYS and one flat MessagePack blob. The other half is in lua/*.lua."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from backstage import wire
from backstage.errors import BackstageError, MalformedJob, RedisRefused
from backstage.job import NO_OPTIONS, Delivery
from backstage.keys import Keys
from backstage.outcome import Again, Dead, Done, Outcome, Released
from backstage.ready import Ready, give_ids
from backstage.scripts import pack


class Batch(msgspec.Struct, frozen=True):
    keys: list[str]
    blob: bytes


class _Numbers:
    """KEYS as they are named: each once, known to the script by its number."""

    def __init__(self) -> None:
        self._at: dict[str, int] = {}

    def __call__(self, key: str) -> int:
        return self._at.setdefault(key, len(self._at) + 1)

    @property
    def keys(self) -> list[str]:
        return list(self._at)


def enqueue(keys: Keys, jobs: Sequence[Ready], call: str, marker_ttl: int) -> tuple[list[str], bytes]:
    """For enqueue.lua. Neighbours of one queue and task that have no options travel as one run."""
    give_ids(jobs)
    number = _Numbers()
    number(keys.call(call))
    number(keys.scheduled)
    runs: list[Sequence[Any]] = []
    task = queue = None
    flat: list[str] = []
    for job in jobs:
        if job.options is not None:
            runs.append(_special(keys, number, number(keys.stream(job.queue)), job))
            task = None
            continue
        if task != job.task or queue != job.queue:
            task, queue, flat = job.task, job.queue, []
            runs.append((number(keys.stream(queue)), task, flat))
        flat += (job.payload, job.id)
    return number.keys, pack((marker_ttl, runs, keys.control))


def verdicts(jobs: Sequence[Ready], refused: Sequence[Any]) -> list[str | BackstageError | None]:
    """What enqueue.lua answered: for each job its id, None for a duplicate, or why it was refused."""
    found: list[str | BackstageError | None] = [job.id for job in jobs]
    for at, verdict in zip(refused[::2], refused[1::2], strict=True):
        found[at - 1] = None if verdict == 0 else RedisRefused(f"not added: {verdict.decode('utf-8', 'replace')}")
    return found


def _special(keys: Keys, number: _Numbers, stream: int, job: Ready) -> Sequence[Any]:
    """A job with options, as enqueue.lua and finish.lua take it."""
    options = job.options or NO_OPTIONS
    delay, dedupe = options.delay or 0, options.dedupe
    member = wire.member(job, keys.stream(job.queue)) if delay else ""
    return (
        stream, job.task, (job.payload, job.id), wire.option_fields(options), delay, member,
        number(keys.dedupe(dedupe.key)) if dedupe else 0, dedupe.ttl_ms if dedupe else 0,
    )  # fmt: skip


def finish(
    keys: Keys,
    plain: Mapping[str, list[str]],
    others: Sequence[tuple[Delivery, Outcome]],
    server: str,
    *,
    group: str,
    consumer: str,
    delete: bool,
    encode: Callable[[object], str],
) -> Batch:
    """For finish.lua: `plain` (queue → entry ids) ran and asks for nothing more. `server` is who will answer."""
    number, minute = _Numbers(), int(time.time()) // 60
    runs: list[Any] = []
    for queue, ids in plain.items():
        if ids:
            runs += (number(keys.stream(queue)), number(keys.stats(queue, minute)), ids)
    items = []
    for delivery, outcome in others:
        queue = delivery.queue
        verify = "" if delivery.server == server else wire.job_id(delivery, wire.fields_of(delivery.fields))
        head = (
            number(keys.stream(queue)),
            number(keys.stats(queue, minute)),
            delivery.entry_id.decode(),
            delivery.times,
        )
        kind, *rest = _effects(keys, number, delivery, outcome, encode)
        items.append((kind, *head, verify, *rest))
    return Batch(number.keys, pack((group, consumer, int(delete), keys.control, runs, items)))


def _effects(
    keys: Keys, number: _Numbers, delivery: Delivery, outcome: Outcome, encode: Callable[[object], str]
) -> tuple[Any, ...]:
    """What an outcome asks for beyond the acknowledgement: its kind, then the parts that finish.lua names."""
    match outcome:
        case Done(next=jobs):
            successors = []
            for job in jobs:
                queue = job.queue or job.route or "default"
                stream = number(keys.stream(queue))
                payload = bytes(job.payload).decode() if isinstance(job.payload, msgspec.Raw) else encode(job.payload)
                successors.append(_special(keys, number, stream, Ready.of(job, payload, queue)))
            return "done", number(keys.scheduled), successors
        case Again(delay=delay):
            try:
                member = wire.retry_member(delivery, outcome, keys.stream(delivery.queue))
            except MalformedJob as exc:
                return _effects(keys, number, delivery, Dead("malformed", str(exc)), encode)
            return "again", number(keys.retries), delay, member
        case Dead():
            own = [part.decode("utf-8", "replace") for part in delivery.fields]
            return "dead", number(keys.dead_letter(delivery.queue)), wire.dead_fields(delivery, outcome), own
        case Released():
            return ("released",)


def renew(group: str, consumer: str, held: Sequence[Sequence[Delivery]]) -> bytes:
    """For renew.lua: what is held of each stream."""
    return pack((group, consumer, [[part for d in ds for part in (d.entry_id.decode(), d.times)] for ds in held]))


def lost(held: Sequence[Sequence[Delivery]], reply: Sequence[Any]) -> list[Delivery]:
    """The deliveries that renew.lua answered as lost."""
    gone = set(zip(reply[::2], reply[1::2], strict=True))
    return [d for place, ds in enumerate(held, 1) for d in ds if (place, d.entry_id) in gone]
