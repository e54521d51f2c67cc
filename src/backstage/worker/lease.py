"""Lease: renews what the worker holds, from a thread with a connection of its own.

A handler that blocks the event loop must not lose its lease for that, so nothing here waits for the loop. The same
thread notices when the loop has been blocked, and says which task does it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import redis.exceptions

from backstage import blobs, wire
from backstage.job import Delivery
from backstage.lane import SyncConnection
from backstage.logs import job_fields
from backstage.scripts import load
from backstage.stream import Held

log = logging.getLogger("backstage")

LONGEST = 60.0
"""Seconds: a lease is renewed three times in its length, and at least three times in this."""

BLOCKED = 1.0
"""Seconds for which the loop may not answer before it counts as blocked."""

OVERDUE = 1.0
"""Seconds after its hard limit from which a run that nothing could end is not renewed any more."""


class Lease:
    """Renews `held` for `consumer`. `lost` is called, in the loop, with the deliveries that are not ours any more.

    `current` tells whose handler has the loop; None where another lease watches the loop.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], SyncConnection],
        stream_key: Callable[[str], str],
        group: str,
        consumer: str,
        held: Held,
        lease: float,
        lost: Callable[[list[Delivery]], None],
        overdue: Callable[[Delivery, float], bool],
        current: Callable[[], Delivery | None] | None,
    ) -> None:
        self._connect, self._key, self._group, self._consumer = connect, stream_key, group, consumer
        self._held, self._lease, self._lost, self._overdue = held, lease, lost, overdue
        self._current = current
        self._every = min(lease, LONGEST) / 3
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stop = threading.Event()
        self._connection: SyncConnection | None = None
        self._renewed = time.monotonic()
        self._asked = self._answered = 0
        self._asked_at = 0.0
        self._thread = threading.Thread(target=self._run, name="backstage lease", daemon=True)

    def start(self) -> None:
        self._renewed = time.monotonic()  # whatever the start had to wait for: nothing was held
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread. To be called when nothing is held any more."""
        self._stop.set()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, 5.0)

    # ---- in the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        next_renewal = time.monotonic() + self._every
        while not self._stop.wait(min(0.5, max(0.01, next_renewal - time.monotonic()))):
            if self._current is not None:
                self._watch_loop(self._current)
            now = time.monotonic()
            if now < next_renewal:
                continue
            kept = self._connection is not None
            try:
                self._renew()
                next_renewal = now + self._every
            except (redis.exceptions.RedisError, OSError) as exc:
                log.debug("leases not renewed: %s", exc)
                self._disconnect()
                self._give_up_late()
                # A connection that was kept may have died long ago; only a new one tells that Redis is away.
                next_renewal = now if kept else now + min(0.5, self._every)
        self._disconnect()

    def _renew(self) -> None:
        held = [
            kept
            for queue in list(self._held)
            if (kept := [d for d in list(self._held[queue].values()) if not self._overdue(d, OVERDUE)])
        ]
        if not held:
            self._renewed = time.monotonic()
            return
        keys = [self._key(deliveries[0].queue) for deliveries in held]
        begun = time.monotonic()
        reply = self._script(keys, blobs.renew(self._group, self._consumer, held))
        self._renewed = begun
        # What was finished while we asked is not lost: it is not held any more either.
        lost = [d for d in blobs.lost(held, reply) if self._held[d.queue].get(d.entry_id) is d]
        if lost:
            self._tell(lost)

    def _script(self, keys: list[str], blob: bytes) -> Any:
        script = load("renew")
        if self._connection is None:
            self._connection = self._connect()
            self._connection.connect()  # type: ignore[no-untyped-call]  # redis-py's
        try:
            return self._ask("EVALSHA", script.sha, len(keys), *keys, blob)
        except redis.exceptions.NoScriptError:
            self._ask("SCRIPT", "LOAD", script.text)  # not EVAL: a worker needs no right to run what it likes
            return self._ask("EVALSHA", script.sha, len(keys), *keys, blob)

    def _ask(self, *args: str | bytes | int) -> Any:
        assert self._connection is not None
        self._connection.send_command(*args, check_health=False)  # type: ignore[no-untyped-call]  # redis-py's
        return self._connection.read_response()

    def _give_up_late(self) -> None:
        """No renewal succeeded for a whole lease: others may have all of it by now, or soon what was taken since."""
        if time.monotonic() - self._renewed < self._lease:
            return
        held = [delivery for queue in list(self._held) for delivery in list(self._held[queue].values())]
        self._renewed = time.monotonic()
        if held:
            log.error("leases could not be renewed for a whole lease: %d jobs count as lost", len(held))
            self._tell(held)

    def _tell(self, lost: list[Delivery]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._lost, lost)
        except RuntimeError:  # the loop is closed
            self._stop.set()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()  # type: ignore[no-untyped-call]  # redis-py's

    # ---- the loop's health -------------------------------------------------------------------------------------------

    def _watch_loop(self, current: Callable[[], Delivery | None]) -> None:
        """Asks the loop for a sign; says once who holds it up when none comes."""
        now = time.monotonic()
        if self._answered == self._asked:
            self._asked, self._asked_at = self._asked + 1, now
            try:
                self._loop.call_soon_threadsafe(self._answer, self._asked)
            except RuntimeError:
                self._stop.set()
        elif self._asked_at and now - self._asked_at > BLOCKED:
            self._asked_at = 0.0
            delivery = current()
            job = wire.decode(delivery) if delivery is not None else None
            frame = sys._current_frames().get(self._loop_thread)
            stack = "".join(traceback.format_stack(frame, limit=12)) if frame else ""
            log.warning(
                "the event loop has been blocked for over %.0f s by %s; leases are kept, nothing else runs. "
                "Make the handler a plain `def` (it runs in a thread), or await.\n%s",
                BLOCKED, f"task {job.task!r}" if job else "something that is no job", stack,
                extra=job_fields(job.id, job.task, job.queue or "", job.attempt + 1) if job else None,
            )  # fmt: skip

    def _answer(self, number: int) -> None:
        self._answered = number
