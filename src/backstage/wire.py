"""Job ⇄ stream fields and scheduled members: the only reader and writer of the wire (docs/protocol.md).

Every SDK of Backstage speaks it, so names and formats here are facts. Fields are read leniently (an odd optional one is
ignored) and written exactly. The first fields of an entry stand in a fixed order, which the executor's fast path reads
by position: taskName, payload, enqueuedAt, jobId.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from backstage import shown
from backstage.durations import LONGEST
from backstage.errors import BackstageError, MalformedJob
from backstage.job import NO_OPTIONS, Backoff, Delivery, History, Job, Options
from backstage.outcome import Again, Dead
from backstage.ready import Ready

_json = msgspec.json.Encoder()
any_payload = msgspec.json.Decoder().decode
"""A payload as it came, for those who don't know its task."""
_NUMBER = re.compile(rb"[0-9]{1,16}")

FIELDS = ("taskName", "payload", "enqueuedAt", "jobId", "attempts", "backoff", "timeout", "attempt", "crashes", "since")
"""Every field of a job that Backstage knows, in the order in which promote writes them to a stream."""


# ---- reading ---------------------------------------------------------------------------------------------------------


def fields_of(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """The fields by name; of a name that stands twice the first one counts, as in the fast path."""
    pairs = iter(flat[::-1])
    return {name: value for value, name in zip(pairs, pairs, strict=False)}


def decode(delivery: Delivery, payload: object = None) -> Job:
    """The job in a delivery, with `payload` as its payload (already decoded for its task).

    Raises MalformedJob where the task's name is missing or is no text.
    """
    fields = fields_of(delivery.fields)
    try:
        task = fields[b"taskName"].decode()
    except (KeyError, UnicodeDecodeError):
        raise MalformedJob("the entry has no readable taskName") from None
    options = Options(
        attempts=_number(fields, b"attempts", 1),
        backoff=_backoff(fields.get(b"backoff")),
        timeout=_number(fields, b"timeout", 1),
    )
    ms = _number(fields, b"enqueuedAt", 0)
    history = History(
        None if ms is None else _instant(ms),
        _number(fields, b"attempt", 0) or 0,
        _number(fields, b"crashes", 0) or 0,
        _number(fields, b"since", 1),
    )
    return Job.read(job_id(delivery, fields), task, delivery.queue, payload, options, history)


def payload_of(fields: dict[bytes, bytes]) -> bytes:
    """The payload's JSON text; raises MalformedJob where there is none."""
    try:
        return fields[b"payload"]
    except KeyError:
        raise MalformedJob("the entry has no payload") from None


def job_id(delivery: Delivery, fields: dict[bytes, bytes]) -> str:
    """The job's own id; of an entry without one (another SDK wrote it) `<queue>:<entry id>`."""
    own = fields.get(b"jobId")
    return own.decode("utf-8", "replace") if own else f"{delivery.queue}:{delivery.entry_id.decode()}"


def _number(fields: dict[bytes, bytes], name: bytes, minimum: int) -> int | None:
    """A whole number, or None: odd optional fields of others (`1.5`, `null`, `1e400`) are ignored."""
    text = fields.get(name)
    if text is None or not _NUMBER.fullmatch(text):
        return None
    value = int(text)
    return value if minimum <= value <= LONGEST else None


def _instant(ms: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def _backoff(text: bytes | None) -> Backoff | None:
    """`{"type", "delay", "maxDelay"}`; a maxDelay of 0 means none (another SDK always writes the field)."""
    if text is None:
        return None
    try:
        raw = msgspec.json.decode(text)
        return Backoff(raw["type"], raw.get("delay", 1000), raw.get("maxDelay") or None, raw.get("jitter", 0.0))
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError, RecursionError, BackstageError):
        return None


# ---- writing ---------------------------------------------------------------------------------------------------------


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def backoff_text(backoff: Backoff) -> str:
    wire: dict[str, Any] = {"type": backoff.type, "delay": backoff.delay}
    if backoff.max_delay is not None:
        wire["maxDelay"] = backoff.max_delay
    if backoff.jitter:
        wire["jitter"] = backoff.jitter
    return _json.encode(wire).decode()


def option_fields(options: Options) -> list[str]:
    """The optional fields of a stream entry, flat: only what the caller gave."""
    flat: list[str] = []
    if options.attempts is not None:
        flat += ("attempts", str(options.attempts))
    if options.backoff is not None:
        flat += ("backoff", backoff_text(options.backoff))
    if options.timeout is not None:
        flat += ("timeout", str(options.timeout))
    return flat


def member(job: Ready, stream: str) -> str:
    """A scheduled member for a job that is enqueued with a delay."""
    options = job.options or NO_OPTIONS
    wire: dict[str, Any] = {
        "taskName": job.task, "payload": job.payload, "enqueuedAt": now_ms(), "streamKey": stream,
        "priority": job.queue,
    }  # fmt: skip
    if options.attempts is not None:
        wire["attempts"] = options.attempts
    if options.backoff is not None:
        wire["backoff"] = backoff_text(options.backoff)
    if options.timeout is not None:
        wire["timeout"] = options.timeout
    wire["jobId"] = job.id
    return _json.encode(wire).decode()


def retry_member(delivery: Delivery, again: Again, stream: str) -> str:
    """A member of `retries`: the delivery's own fields, with its counts brought up to date.

    Raises MalformedJob where JSON can't carry the bytes of a field; the job belongs in the dead letter then.
    """
    fields = fields_of(delivery.fields)
    try:
        wire: dict[str, Any] = {name.decode(): value.decode() for name, value in fields.items()}
    except UnicodeDecodeError as exc:
        raise MalformedJob(f"a field is not UTF-8: {exc}") from None
    wire["jobId"] = job_id(delivery, fields)
    for name, minimum in (("enqueuedAt", 0), ("attempts", 1), ("timeout", 1)):
        number = _number(fields, name.encode(), minimum)
        if number is not None:
            wire[name] = number
    failed = (_number(fields, b"attempt", 0) or 0) + again.counts
    crashes = (_number(fields, b"crashes", 0) or 0) + delivery.times - 1
    for name, value in (("attempt", failed), ("crashes", crashes), ("since", again.since)):
        wire.pop(name, None)
        if value:
            wire[name] = value
    wire["streamKey"], wire["priority"] = stream, delivery.queue
    return _json.encode(wire).decode()


def dead_fields(delivery: Delivery, dead: Dead) -> list[str]:
    """What a dead-letter entry has beyond the job's own fields, flat; the script adds `deadLetteredAt`."""
    flat = ["originalId", delivery.entry_id.decode(), "deliveryCount", str(delivery.times)]
    flat += ("queue", delivery.queue, "reason", dead.reason)
    if dead.error:
        flat += ("error", shown.bounded(dead.error, shown.ERROR))
    if dead.traceback:
        flat += ("traceback", shown.bounded(dead.traceback, shown.TRACEBACK))
    if b"jobId" not in delivery.fields[::2]:
        flat += ("jobId", job_id(delivery, {}))
    return flat
