"""Histories: what each process saw, one line a fact, written at once so that a SIGKILL loses nothing."""

from __future__ import annotations

import os
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode


class Event(msgspec.Struct, omit_defaults=True):
    """One fact. Which fields it has depends on `what`:

    producers    `enq?` token note=kind group delay number=ms before each retry; then `enq!` id, `enq0` duplicate,
                 `enq-` refused, `enq~` unknown
    workers      `up`; `take` number entry token id attempt deliveries span=since it was asked for; `start`, `end`
                 number token note=how; `sent` number entry note=kind before each call with its outcome; `settled` the
                 same with verdict and span; `lost` number entry; `renewed` span number=how many; `unrenewed` the same
                 and note=error; `gaveup` span=since the last renewal; `stall` span number=ms of processor used
                 meanwhile; `bye`. `number` is the delivery's, in the order in which its worker took them
    schedulers   `up`; `slot` note=schedule number=slot verdict; `bye`
    all          `hears` once SIGTERM is heard, `deaf` once it is not any more
    nemesis      `strike` note=kind target, `over` the same and span, group=queue of a group; `down` target number=exit
                 status; `stuck` target; `plant` token; `probe` token note=kind group=queue; `cron` note=schedule
                 number=its record at the begin
    """

    at: float
    """Seconds on the monotonic clock, which all processes of this machine share."""
    wall: int
    """Ms since the epoch."""
    what: str
    token: str = ""
    """The job, as whoever asked for it calls it: known before there is an id."""
    id: str = ""
    entry: str = ""
    """`<queue>:<entry id>`."""
    attempt: int = 0
    deliveries: int = 0
    note: str = ""
    target: str = ""
    group: str = ""
    """The dedupe key; the queue."""
    delay: int = 0
    number: int = 0
    span: float = 0.0
    """Seconds that it lasted, up to `at`."""
    verdict: bool | None = None
    process: str = ""
    """Who saw it: the name of the file."""


running: ContextVar[int] = ContextVar("running")
"""The number of the delivery whose run this is."""


class Log:
    """Appends to one process's history. Safe from any thread: a line is one write."""

    def __init__(self, folder: str | Path, process: str) -> None:
        self._file = os.open(Path(folder) / f"{process}.history", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def __call__(self, what: str, *, since: float | None = None, **fields: Any) -> None:
        """`since` makes it a span up to now: one look at the clock, for a freeze may come between two."""
        now = time.monotonic()
        if since is not None:
            fields["span"] = now - since
        event = Event(at=round(now, 6), wall=time.time_ns() // 1_000_000, what=what, **fields)
        os.write(self._file, _encode(event) + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read(folder: str | Path) -> list[Event]:
    """All histories of a folder, by time. A last line that a kill cut short is left out."""
    decode = msgspec.json.Decoder(Event).decode
    events: list[Event] = []
    for path in sorted(Path(folder).glob("*.history")):
        for line in path.read_bytes().rpartition(b"\n")[0].splitlines():
            event = decode(line)
            event.process = path.stem
            events.append(event)
    return sorted(events, key=lambda event: event.at)
